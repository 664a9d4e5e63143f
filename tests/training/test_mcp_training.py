"""Training in an MCP server: a grader's rewards, a killed server, resumption, a tool that has vanished."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from loopback import ROOT

from echo_cli.cli.main import main
from echo_cli.runs.directory import open_run
from echo_cli.trajectory import Role

ALLOW = ["colour", "add", "stumble"]


def config(folder: Path) -> Path:
    """Write a config without rewards: the sample server, shared by the episodes, one of whose calls ends it once."""
    tasks = [
        {
            "reset": {"n": n, "setup": {"calls": [{"name": "write", "arguments": {"path": "a", "text": "x"}}]}},
            "question": f"which colour has number {n}?",
            "split": split,
            "actions": [{"name": "colour", "arguments": {"fruit": fruit}}],
        }
        for n, (split, fruit) in enumerate(
            [("train", "apple"), ("train", "lime"), ("validation", "plum"), ("heldout", "nut")]
        )
    ]
    environment = {
        "mcp": {
            "command": ["python", str(ROOT / "tests" / "mcp_samples.py")],
            "env": {"SAMPLES_WITHOUT": "${SAMPLES_WITHOUT}"},
            "allow": ALLOW,
            "shared": True,
        },
        "tasks": {"items": tasks},
        "max_turns": 1,
        "explorer": [
            {"name": "add", "arguments": {"a": 1}},
            {"name": "stumble", "arguments": {"path": str(folder / "stumbled")}},
        ],
    }
    file = folder / "samples.yaml"
    values = {
        "environment": environment,
        "model": {"path": "tiny-base"},
        "threads": 1,
        "rollout": {"tasks_per_step": 1, "group_size": 1, "explorers": 6, "explorer_commands": 1},
        "objective": {"use_rl": False, "world_model_coeff": 1.0},
        "evaluation": {"validation_rollouts": 0, "heldout_rollouts": 0},
    }
    values["rollout"] |= {"max_action_tokens": 64, "max_output_tokens": 64}
    file.write_text(yaml.safe_dump(values))
    return file


GRADER = """
import json, sys

def score(episode):
    turns = episode["turns"]
    looked = any("colour" in turn["command"] and turn["output"] for turn in turns)
    right = bool(turns) and episode["meta"]["task"]["answer"] in turns[-1]["command"]
    return {"looked": float(looked), "right": float(right)}

if __name__ == "__main__":
    print(json.dumps(score(json.load(sys.stdin))))
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["function", "command"])
def test_a_grader_rewards_what_the_policy_called_and_said(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SAMPLES_WITHOUT", "")
    module = f"mcp_grader_{kind}"
    (tmp_path / f"{module}.py").write_text(GRADER)
    file = config(tmp_path)
    values = yaml.safe_load(file.read_text())
    grader = {"function": f"{module}:score", "command": ["python", str(tmp_path / f"{module}.py")]}[kind]
    environment = values["environment"] | {"max_turns": 2, "explorer": [{"name": "add", "arguments": {"a": 1}}]}
    environment["reward"] = {kind: grader, "criteria": {"looked": 1, "right": 3}}
    for task in environment["tasks"]["items"]:
        task |= {"answer": "red", "actions": [*task["actions"], "It is red."]}
    values |= {"environment": environment, "objective": {"use_rl": True}, "evaluation": {"every": 1, "pass_every": 1}}
    values["rollout"] |= {"group_size": 2, "explorers": 1}
    file.write_text(yaml.safe_dump(values))
    words = ["--import-from", str(tmp_path)]

    assert main(["env", "check", str(file), *words]) == 0
    shown = capsys.readouterr().out
    assert "criteria: looked 1, right 1" in shown and "episode reward: 1" in shown
    assert "the grader rewards doing nothing" not in shown
    assert main(["train", "--config", str(file), *words, "--steps", "1", "--output-dir", str(tmp_path)]) == 0
    assert "held-out criterion looked" in capsys.readouterr().out
    (run,) = (path.parent for path in tmp_path.glob("*/metrics.jsonl"))
    row = open_run(run).read_metrics()[-1]
    assert row["environment/ungraded"] == row["environment/unrewarded"] == 0
    for part, reward in (("train", "reward"), ("heldout", "mean_reward")):
        looked, right = row[f"{part}/criterion_looked"], row[f"{part}/criterion_right"]
        assert row[f"{part}/{reward}"] == pytest.approx((looked + 3 * right) / 4)


@pytest.mark.slow
def test_a_run_survives_the_end_of_its_server_and_resumes_with_the_same_tools_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SAMPLES_WITHOUT", "")
    run = tmp_path / "run"
    words = ["--config", str(config(tmp_path)), "--output-dir", str(tmp_path), "--run-name", "run"]
    assert main(["train", *words, "--steps", "1"]) == 0
    (row,) = [row for row in open_run(run).read_metrics() if row["step"] == 1]
    assert row["environment/sessions_lost"] >= 1 and row["train/env_tokens"] > 0
    assert (tmp_path / "stumbled").exists()
    held = [json.loads(line) for line in open_run(run).pool_paths["heldout"].read_text().splitlines()]
    (tools, question, *_) = held[0]["segments"]
    assert tools["channel"] == "tools" and question["text"] == "which colour has number 3?\n"
    assert [part["channel"] for part in held[0]["segments"] if part["role"] == Role.ENV_OUTPUT.name.lower()] == [
        "tool_error"
    ]

    assert main(["train", *words, "--steps", "2", "--resume"]) == 0
    assert [row["step"] for row in open_run(run).read_metrics()] == [0, 1, 2]
    capsys.readouterr()
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    monkeypatch.setenv("SAMPLES_WITHOUT", "add")
    assert main(["train", *words, "--steps", "3", "--resume"]) == 2
    assert "environment.mcp.allow: the server has no tool 'add'" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
