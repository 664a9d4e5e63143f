"""Whole runs whose episodes a grader rewards: criteria as metrics, faults by their rule, resuming after a stop."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from loopback_server import Behaviour, LoopbackServer, loopback_server
from tiny_run import error_of, rows, weights

from echo_cli.cli.main import main

CONFIG = {
    "steps": 2,
    "threads": 1,
    "environment": {
        "url": "http://127.0.0.1:1",
        "tasks": {"items": [{"instruction": word, "steps": 2} for word in "oak elm ash yew fir fig bay box".split()]},
        "action": {"template": {"command": "{text}"}},
        "observation": [{"path": "output", "channel": "stdout"}],
        "explorer": ["look", "count again", "what now"],
        "reward": {
            "rubric": [
                {"name": "vowel", "weight": 1, "pattern": "[aeiou]"},
                {"name": "length", "weight": 3, "function": "run_graders:length"},
            ]
        },
    },
    "rollout": {"tasks_per_step": 2, "group_size": 2, "explorers": 2, "explorer_commands": 2, "keep": 4},
    "evaluation": {"every": 2, "pass_every": 2, "heldout_rollouts": 1, "validation_rollouts": 1},
    "checkpoint": {"every": 1, "keep": 9},
}
GRADERS = """
import os
def length(episode):
    assert episode["source"] == "policy" and episode["meta"]["task"]["reset"]["instruction"]
    broken = os.environ["BROKEN"]
    if os.path.exists(broken) and episode["group_id"].startswith(open(broken).read()):
        raise ValueError("no judge")
    return min(len(episode["turns"][-1]["command"]), 10) / 10
"""


QUIET = ("evaluation.heldout_rollouts=0", "evaluation.validation_rollouts=0")


@pytest.fixture(scope="module")
def server() -> Iterator[LoopbackServer]:
    with loopback_server(Behaviour(capacity=4)) as running:
        yield running


def words_in(folder: Path, server: LoopbackServer) -> list[str]:
    (folder / "run_graders.py").write_text(GRADERS)
    (folder / "mine.yaml").write_text(yaml.safe_dump(CONFIG))
    config = ["train", "--config", str(folder / "mine.yaml"), "--import-from", str(folder)]
    broken = f"environment.reward.env.BROKEN={folder}/broken"
    return [*config, "--output-dir", str(folder), f"environment.url={server.url}", broken]


@pytest.fixture
def words(tmp_path: Path, server: LoopbackServer) -> list[str]:
    return words_in(tmp_path, server)


@dataclass(frozen=True)
class Graded:
    folder: Path
    out: str
    err: str


@pytest.fixture(scope="module")
def graded(tmp_path_factory: pytest.TempPathFactory, server: LoopbackServer) -> Graded:
    """A run of two steps, and what it printed."""
    folder = tmp_path_factory.mktemp("graded")
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        assert main([*words_in(folder, server), "--run-name", "run"]) == 0
    return Graded(folder, out.getvalue(), err.getvalue())


def test_criteria_are_metrics_of_their_own_in_rows_tables_and_the_report(
    graded: Graded, capsys: pytest.CaptureFixture[str]
) -> None:
    run, shown, tmp_path = graded.folder / "run", graded, graded.folder
    assert "train: this command imports run_graders:length (also from" in shown.err and "BROKEN set" in shown.err
    assert "held-out criterion vowel" in shown.out and "held-out criterion length" in shown.out
    first, middle, last = rows(run)
    for row in (middle, last):
        vowel, length = row["train/criterion_vowel"], row["train/criterion_length"]
        assert row["train/reward"] == pytest.approx((vowel + 3 * length) / 4)
        assert row["environment/ungraded"] == row["environment/unrewarded"] == 0
    assert first.keys() == last.keys() and first["train/criterion_vowel"] is None
    assert last["heldout/mean_reward"] == pytest.approx(
        (last["heldout/criterion_vowel"] + 3 * last["heldout/criterion_length"]) / 4
    )
    kept = [json.loads(line) for line in (run / "rollouts.jsonl").read_text().splitlines()]
    assert all(trace["meta"]["criteria"].keys() == {"vowel", "length"} and trace["meta"]["step"] for trace in kept)
    assert "task" not in kept[0]["meta"]  # its answer stays with the grader

    assert main(["report", str(run), "--output", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert "held-out criterion vowel" in page and "Criterion length" in page and "<dt>criteria</dt>" in page
    capsys.readouterr()
    again = ["eval-heldout", str(run), "--checkpoint", "latest", "--rollouts", "1", "--import-from", str(tmp_path)]
    assert main([*again, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["after"]["heldout/criterion_vowel"] == pytest.approx(last["heldout/criterion_vowel"])
    assert {entry["criterion"] for entry in found["criteria"]} == {"vowel", "length"}


def test_a_grader_that_fails_takes_the_reward_and_says_so_once(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken").touch()
    assert main([*words, "--run-name", "skip", "--steps", "1", *QUIET]) == 0
    said = capsys.readouterr().err
    assert said.count("the grader failed: the criterion length raised ValueError: no judge") == 1
    assert "4 rollouts whose grader failed, 4 rollouts without a reward, 2 groups excluded" in said
    assert "environment.reward.on_error has the rule" in said
    _, middle = rows(tmp_path / "skip")
    assert middle["train/reward"] is None and middle["environment/groups_dropped"] == 2
    assert middle["train/criterion_length"] is None and middle["train/criterion_vowel"] is not None
    assert main([*words, "--run-name", "zero", "--steps", "1", *QUIET, "environment.reward.on_error=zero"]) == 0
    _, row = rows(tmp_path / "zero")
    assert row["train/reward"] == 0.0 and row["environment/ungraded"] == 4 and row["environment/groups_dropped"] == 0


def test_a_run_that_a_grader_stopped_continues_as_if_it_had_not(
    graded: Graded, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*words, "environment.reward.on_error=stop", "--run-name", "stopped"]
    (tmp_path / "broken").write_text("1/")  # the groups of the second step
    assert main(words) == 1
    message, tip = error_of(capsys.readouterr().err)
    assert message.startswith("the grader failed on task") and "--resume" in tip
    assert [row["step"] for row in rows(tmp_path / "stopped")] == [0, 1]
    (tmp_path / "broken").unlink()
    assert main([*words, "--resume"]) == 0
    assert rows(tmp_path / "stopped") == rows(graded.folder / "run")
    assert weights(tmp_path / "stopped", 2) == weights(graded.folder / "run", 2)


def test_the_check_shows_the_criteria_and_what_is_wrong_with_a_grader(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run_graders.py").write_text("def length(episode): return 0.5\n")
    check = ["env", "check", words[2], *words[3:5], *words[7:]]
    assert main(check) == 0
    shown = capsys.readouterr().out
    assert "criteria: vowel 1, length 0.5" in shown and "episode reward: 0.625" in shown
    assert "the grader rewards doing nothing" in shown
    (tmp_path / "run_graders.py").write_text("def length(episode): return None\n")
    assert main([*check, "--json"]) == 0
    warnings = {found["name"]: found["message"] for found in json.loads(capsys.readouterr().out)["warnings"]}
    assert warnings["grader_fault"] == "the grader failed: the criterion length gave null in place of a number"
    assert "no_reward" not in warnings


def test_a_grader_that_is_not_there_is_refused_before_the_run_is_made(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = "environment.reward.rubric=[{name: a, command: [./gone.sh]}]"
    assert main([*words, "--run-name", "none", gone]) == 2
    message, tip = error_of(capsys.readouterr().err)
    assert "gone.sh does not exist" in message and tip
    assert not (tmp_path / "none").exists()
    status = "environment.reward.rubric=[{name: a, exit_status: 0}]"
    assert main([*words, "--run-name", "none", status]) == 2
    assert "environment.exit_code is null" in error_of(capsys.readouterr().err)[0]
