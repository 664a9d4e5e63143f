"""The smallest possible run, for tests of the commands: in this process or in a separate one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from echo_cli.cli.main import main

TINY = (
    "threads=1 rollout.tasks_per_step=1 rollout.group_size=2 rollout.explorers=2 evaluation.heldout_rollouts=0 "
    "evaluation.validation_rollouts=0 environment.toy_terminal.ood_world_seeds=[] evaluation.every=2 "
    "checkpoint.every=1 checkpoint.keep=9 rollout.keep=3"
).split()

COMMAND = (sys.executable, "-m", "echo_cli")


def train_words(run: Path, *words: str) -> list[str]:
    """Return the command line that trains `run`, by default for two steps in a world of files.

    A resumed run keeps its own config, which `--config` would replace.
    """
    config = () if {"--config", "--resume"} & {*words} else ("--config", "toy-files")
    steps = () if "--steps" in words else ("--steps", "2")
    return ["train", "--output-dir", str(run.parent), "--run-name", run.name, *config, *steps, *TINY, *words]


def train(run: Path, *words: str) -> int:
    """Train in this process and return the exit code."""
    return main(train_words(run, *words))


def rows(run: Path) -> list[dict[str, Any]]:
    """Return metrics.jsonl without values that depend on the clock; a constant that is not JSON is an error."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} in metrics.jsonl")

    lines = (run / "metrics.jsonl").read_text().splitlines()
    found = [json.loads(line, parse_constant=refuse) for line in lines]
    return [{key: value for key, value in row.items() if not key.startswith("time/")} for row in found]


def weights(run: Path, step: int) -> bytes:
    return (run / "checkpoints" / f"step_{step:06d}" / "model.safetensors").read_bytes()


def observations(run: Path) -> bytes:
    return (run / "observations.jsonl").read_bytes()


def start(*words: str, **options: Any) -> subprocess.Popen[str]:
    """Start `echo-cli` in a separate process, with pipes for its output."""
    environment = {**os.environ, **options.pop("env", {})}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.Popen([*COMMAND, *words], text=True, env=environment, **pipes)


def error_of(captured: str) -> tuple[str, str]:
    """Return message and tip of a command's stderr, which must end with exactly one error line and at most one tip."""
    lines = captured.splitlines()
    assert "Traceback" not in captured
    errors = [number for number, line in enumerate(lines) if line.startswith("error: ")]
    assert len(errors) == 1, captured
    after = lines[errors[0] + 1 :]
    assert len(after) <= 1 and all(line.startswith("  tip: ") for line in after), captured
    return lines[errors[0]].removeprefix("error: "), after[0].removeprefix("  tip: ") if after else ""
