"""Training on real shells: a run that is stopped and resumed equals one that is not, and says what a shell runs in."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from terminal_sites import skip_without_bubblewrap, write_task

from echo_cli.cli.main import main
from echo_cli.config.terminal import shipped_tasks

SMALL = """
rollout.tasks_per_step=1 rollout.group_size=2 rollout.explorers=2 rollout.max_episode_tokens=192 evaluation.every=1
evaluation.pass_every=1 evaluation.validation_rollouts=0 evaluation.heldout_rollouts=0 threads=1
optim.lr_schedule=constant
""".split()


def train(folder: Path, name: str, steps: int, *words: str) -> int:
    where = ["--output-dir", str(folder), "--run-name", name, "--steps", str(steps)]
    return main(["train", "--config", "terminal", *where, *SMALL, *words])


def rows(run: Path) -> list[dict[str, Any]]:
    read = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{key: value for key, value in row.items() if not key.startswith("time/")} for row in read]


def test_a_resumed_run_on_real_shells_equals_one_that_was_not_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    skip_without_bubblewrap()
    tasks = tmp_path / "tasks"
    for name in ("count-errors", "count-words", "count-unique", "count-blank"):
        shutil.copytree(shipped_tasks() / name, tasks / name)
    write_task(tasks / "needy", {"tests/test.sh": "uvx pytest\n"})
    own = f"environment.terminal.folder={tasks}"
    assert train(tmp_path, "whole", 2, own) == 0
    said = capsys.readouterr().err
    assert f"train: this command starts shells for the tasks of {tasks} under bubblewrap\n" in said
    assert "warning: 1 terminal task of 5 left out\n" in said
    assert "left out: needy: needs the network: tests/test.sh has uvx\n" in said
    assert train(tmp_path, "parts", 1, own) == 0
    assert train(tmp_path, "parts", 2, own, "--resume", "environment.terminal.runtime=bwrap") == 0
    whole = rows(tmp_path / "whole")
    assert rows(tmp_path / "parts") == whole
    assert whole[-1]["train/env_tokens"] > 0 and whole[-1]["environment/unrewarded"] == 0
    assert not list(Path(tmp_path).glob("echo-terminal-*"))


def test_a_plain_process_is_announced_and_a_plan_starts_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_task(tmp_path / "task", {"environment/Dockerfile": "FROM debian\nWORKDIR /app\nRUN touch /never\n"})
    words = [f"environment.terminal.folder={folder}", "environment.terminal.runtime=process"]
    assert train(tmp_path, "plan", 1, *words, "--dry-run", "--json") == 0
    planned = json.loads(capsys.readouterr().out)
    assert planned["plan"]["environment"] == f"terminal tasks of {folder}, runtime process"
    assert planned["plan"]["terminal tasks"] == {"train": 1, "validation": 0, "heldout": 0}
    assert not Path("/never").exists()
    assert main(["env", "check", "terminal", "environment.terminal.runtime=process"]) == 0
    said = capsys.readouterr()
    assert "with the rights of this user, which is no security boundary" in said.err
    assert "no problems found" in said.out


def test_real_shells_beside_the_toy_are_played_graded_and_learned_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("count-errors", "count-words", "count-unique", "count-blank"):
        shutil.copytree(shipped_tasks() / name, tmp_path / "tasks" / name)
    words = [
        *("rollout.tasks_per_step=2", "rollout.group_size=2", "rollout.explorers=4", "evaluation.every=2"),
        *("evaluation.pass_every=2", "threads=1", "environments.machine.weight=1"),
        *(f"environments.shell.terminal.folder={tmp_path / 'tasks'}", "environments.shell.terminal.runtime=process"),
    ]
    where = ["--output-dir", str(tmp_path), "--run-name", "run", "--steps", "2"]
    assert main(["train", "--config", "several", *where, *words]) == 0
    assert "with the rights of this user, which is no security boundary" in capsys.readouterr().err
    last = rows(tmp_path / "run")[-1]
    for name in ("machine", "shell"):
        assert last[f"train/{name}/rollouts"] == 4 and last[f"train/{name}/env_ce"] > 0
        assert last[f"heldout/{name}/env_ce"] > 0 and last[f"heldout/{name}/pass_at_1"] is not None
        assert last[f"environment/{name}/unrewarded"] == last[f"environment/{name}/left_out"] == 0
    listed = [json.loads(line) for line in (tmp_path / "run" / "observations.jsonl").read_text().splitlines()]
    shells = [row for row in listed if row["environment"] == "shell" and row["command"].endswith("pwd")]
    assert shells and all(row["output"].startswith("/") for row in shells)
