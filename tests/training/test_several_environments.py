"""Runs in several environments: two real servers, one of which is killed, and the commands that know them by name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from loopback_server import Behaviour, LoopbackServer, loopback_server
from tiny_run import error_of, observations, rows, weights

from echo_cli.cli.main import main
from echo_cli.config.loader import load_config
from echo_cli.errors import EchoError
from echo_cli.runs.directory import open_run
from echo_cli.training.experiment import RunHooks, run_experiment
from echo_cli.trajectory import read_trajectories

WORDS = "oak elm ash yew fir fig bay box".split()


def entry(name: str, url: str, **keys: Any) -> dict[str, Any]:
    return {
        "name": name,
        "url": url,
        "tasks": {"items": [{"instruction": f"{name} {word}", "steps": 2} for word in WORDS]},
        "action": {"template": {"command": "{text}"}},
        "observation": [{"path": "output", "channel": "stdout"}],
        "explorer": [f"{name} look", f"{name} now"],
        "reward": {"none": "zero"},
        "retry_s": 0.2,
        "step_timeout_s": 20.0,
        **keys,
    }


def write(path: Path, *entries: dict[str, Any]) -> Path:
    values = {
        "steps": 3,
        "threads": 1,
        "environments": list(entries),
        "rollout": {"tasks_per_step": 2, "group_size": 2, "explorers": 2, "explorer_commands": 2},
        "evaluation": {"every": 3, "pass_every": 3, "heldout_rollouts": 1, "validation_rollouts": 1},
        "checkpoint": {"every": 1, "keep": 9},
    }
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture
def servers() -> Iterator[tuple[LoopbackServer, LoopbackServer]]:
    with loopback_server(Behaviour(capacity=4)) as first, loopback_server(Behaviour(capacity=2)) as second:
        yield first, second


@pytest.fixture
def config(tmp_path: Path, servers: tuple[LoopbackServer, LoopbackServer]) -> Path:
    return write(tmp_path / "two.yaml", entry("left", servers[0].url), entry("right", servers[1].url))


def train(config: Path, run: Path, *more: str) -> int:
    return main(["train", "--config", str(config), "--output-dir", str(run.parent), "--run-name", run.name, *more])


@pytest.fixture
def run(config: Path, tmp_path: Path) -> Path:
    assert train(config, tmp_path / "run") == 0
    return tmp_path / "run"


def test_every_figure_is_also_of_each_environment_and_groups_stay_in_one(run: Path) -> None:
    first, *_, last = rows(run)
    for measure in ("env_ce", "pass_at_1", "mean_reward"):
        assert all(last[f"heldout/{name}/{measure}"] is not None for name in ("left", "right")), measure
    assert last["heldout/novel_pairs"] == last["heldout/left/novel_pairs"] + last["heldout/right/novel_pairs"]
    pool = list(read_trajectories(run / "pool_heldout.jsonl"))
    tasks = {name: sum(played.meta["environment"] == name for played in pool) for name in ("left", "right")}
    rewards = {name: count * last[f"heldout/{name}/mean_reward"] for name, count in tasks.items()}
    assert last["heldout/mean_reward"] == pytest.approx(sum(rewards.values()) / sum(tasks.values()))
    assert first["validation/left/env_ce"] < first["validation/env_ce"] < first["validation/right/env_ce"] or (
        first["validation/right/env_ce"] < first["validation/env_ce"] < first["validation/left/env_ce"]
    )
    assert last["train/left/rollouts"] + last["train/right/rollouts"] == 6 and last["train/left/env_ce"] is not None
    assert first.keys() == last.keys()
    for trajectory in pool:
        name = trajectory.meta["environment"]
        assert trajectory.task_id.startswith(f'{name}/instruction="{name} ')
    executed = [json.loads(line) for line in (run / "observations.jsonl").read_text().splitlines()]
    assert {row["environment"] for row in executed} == {"left", "right"}
    assert all(row["environment"] in row["command"] for row in executed if row["command"].endswith((" look", " now")))
    record = json.loads((run / "environment.json").read_text())["environment"]
    assert record["environments"]["right"] == {"name": "Counting", "sessions": 2}


def of_training(row: dict[str, Any]) -> dict[str, Any]:
    """Return the metrics of training: the last step of a run that is resumed later was evaluated."""
    return {key: value for key, value in row.items() if key.startswith("train/")}


def test_a_resumed_run_is_bitwise_the_same_and_may_move_one_environment(
    run: Path, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = tmp_path / "again"
    assert train(config, again, "--steps", "1") == 0
    assert train(config, again, "--resume") == 0
    assert [of_training(row) for row in rows(again)] == [of_training(row) for row in rows(run)]
    assert rows(again)[-1] == rows(run)[-1] and observations(again) == observations(run)
    assert weights(again, 3) == weights(run, 3)
    capsys.readouterr()
    with loopback_server(Behaviour(capacity=2)) as third:
        moved = (f"environments.right.url={third.url}", "--steps", "4", "--resume")
        assert train(config, again, *moved) == 0
        assert third.episodes > 0
    assert train(config, again, "environments.right.weight=2", "--resume") == 2
    assert "environments.right.weight was 1.0, now 2.0" in error_of(capsys.readouterr().err)[0]
    assert train(config, again, "environments.right.name=other", "--resume") == 2
    assert "with other environments: they were left, right, now left, other" in error_of(capsys.readouterr().err)[0]


def test_an_environment_whose_server_is_killed_is_left_out_and_the_others_go_on(
    config: Path, tmp_path: Path, servers: tuple[LoopbackServer, LoopbackServer]
) -> None:
    said: list[str] = []

    def kill_after_the_first_step(row: Any) -> None:
        if row["step"] == 1:
            servers[1].kill()

    path = tmp_path / "run"
    hooks = RunHooks(on_row=kill_after_the_first_step, on_notice=said.append)
    assert run_experiment(path, load_config(config), hooks)["status"] == "finished"
    warnings = [line for line in said if "left out" in line]
    assert len(warnings) == 1 and warnings[0].startswith("warning: environment right is left out from here on: ")
    found = rows(path)
    assert [row["environment/right/left_out"] for row in found] == [0, 0, 1, 0]
    assert [row["environment/left_out"] for row in found] == [0, 0, 1, 0]
    assert found[2]["environment/right/groups_dropped"] == 1 and found[2]["environment/left/groups_dropped"] == 0
    assert found[2]["train/right/rollouts"] == 0 < found[2]["train/left/rollouts"]
    assert found[3]["train/left/rollouts"] == 6  # the whole step is drawn among the others
    last = found[3]
    assert last["heldout/right/env_ce"] is not None  # its pool is on disk
    assert last["heldout/left/pass_at_1"] is not None and last["heldout/right/pass_at_1"] is None
    assert last["heldout/pass_at_1"] is None  # figures over other tasks are not comparable
    assert main(["eval-heldout", str(path), "--environment", "left"]) == 0


def test_a_run_ends_with_a_checkpoint_once_no_environment_is_left(
    config: Path, tmp_path: Path, servers: tuple[LoopbackServer, LoopbackServer]
) -> None:
    def kill(row: Any) -> None:
        if row["step"] == 1:
            servers[0].kill()
            servers[1].kill()

    with pytest.raises(EchoError, match="no environment to train in is left; the last, right: ") as caught:
        run_experiment(tmp_path / "run", load_config(config), RunHooks(on_row=kill))
    assert caught.value.exit_code == 1
    assert open_run(tmp_path / "run").checkpoints.steps()[-1] == 1
    for server in servers:
        server.restart()
    assert train(config, tmp_path / "run", "--resume") == 0
    assert [row["step"] for row in rows(tmp_path / "run")] == [0, 1, 2, 3]


def test_an_environment_of_weight_zero_is_measured_and_never_trained_in(
    config: Path, tmp_path: Path, servers: tuple[LoopbackServer, LoopbackServer]
) -> None:
    assert train(config, tmp_path / "run", "environments.right.weight=0", "--steps", "1") == 0
    last = rows(tmp_path / "run")[-1]
    assert last["train/right/rollouts"] == 0 and last["heldout/right/env_ce"] is not None


def test_a_server_that_is_away_at_the_start_is_named(
    config: Path, tmp_path: Path, servers: tuple[LoopbackServer, LoopbackServer], capsys: pytest.CaptureFixture[str]
) -> None:
    servers[1].kill()
    assert train(config, tmp_path / "run") == 1
    assert error_of(capsys.readouterr().err)[0].startswith("environments.right: cannot reach ")
    assert not (tmp_path / "run").exists()


def test_the_commands_know_environments_by_name(
    run: Path, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["eval-heldout", str(run), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    last = rows(run)[-1]
    for key in ("heldout/env_ce", "heldout/left/env_ce", "heldout/right/pass_at_1", "heldout/right/novel_pairs"):
        assert found["after"][key] == pytest.approx(last[key]), key
    assert main(["eval-heldout", str(run), "--environment", "left", "--rollouts", "0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["after"]["heldout/env_ce"] == last["heldout/left/env_ce"]
    assert main(["eval-heldout", str(run), "--environment", "lef"]) == 2
    assert error_of(capsys.readouterr().err) == ("no environment is named 'lef'", "did you mean 'left'?")

    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text()
    assert "left: held-out env-CE, nats/token" in page and "Held-out env-CE by environment" in page
    left, right = (last[f"heldout/{name}/novel_pairs"] for name in ("left", "right"))
    assert f"the same {left + right} held-out ({left} of left, {right} of right) (command, output) pairs" in page
    assert "right" in (run / "heldout_env_ce.csv").read_text()
    capsys.readouterr()

    assert main(["dream", str(run), "--list-tasks"]) == 2
    assert "choose one with --environment: left, right" in error_of(capsys.readouterr().err)[1]
    assert main(["dream", str(run), "--environment", "right", "--score", "2", "--json"]) == 0
    capsys.readouterr()
    assert main(["env", "check", str(config), "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)["environments"]) == {"left", "right"}
    assert main(["train", "--config", str(config), "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert "right" in json.dumps(plan)


def test_a_sweep_has_tables_of_each_environment(
    config: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["--config", str(config), "--output-dir", str(tmp_path), "--run-name", "sweep", "steps=1"]
    assert main(["sweep-lambda", "0.05", "--seeds", "0", *words]) == 0
    printed = capfd.readouterr().out
    assert "left: held-out env-CE" in printed and "right: held-out tasks" in printed
    found = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    (cell,) = found["cells"]
    last = cell["summary"]["environments"]["right"]["heldout"]["last"]
    assert found["environments"]["right"][0]["env_ce_last"]["value"] == last["env_ce"]
    assert "environment" not in found["config"]
