"""A whole run at a stand-in Tinker service: training, resumption, measures, and what a lost service leaves."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from stand_in_service import BASE, StandInService
from tiny_run import rows

from echo_cli.cli.main import main

pytest.importorskip("tinker", reason="the extra tinker, of Python 3.11 and newer, is not installed")

VOCABULARY = 1123
"""Number of ids of random-qwen3's tokenizer."""
MEASURED = 4
"""Number of gradients by which a start measures the service."""
SMALL = (
    *("rollout.tasks_per_step=1", "rollout.group_size=2", "rollout.explorers=2", "rollout.max_action_tokens=4"),
    *("evaluation.validation_rollouts=0", "evaluation.every=2", "evaluation.pass_every=2", "checkpoint.every=1"),
    "environment.toy_terminal.families=[key]",
    "optim.lr=0.05",
)


@pytest.fixture
def service() -> Iterator[StandInService]:
    started = StandInService(VOCABULARY)
    yield started
    started.stop()


def train(run: Path, service: StandInService, *words: str) -> int:
    place = ("--config", "hf-smoke", "--output-dir", str(run.parent), "--run-name", run.name)
    backend = ("backend.kind=tinker", f"backend.url={service.url}", f"backend.base_model={BASE}", "backend.lora_rank=4")
    return main(["train", *place, *backend, *SMALL, *words])


def close(row: dict[str, Any], expected: dict[str, Any]) -> bool:
    """Return whether two rows of metrics are equal up to rounding."""
    floats = {key for key, value in expected.items() if isinstance(value, float)}
    return row.keys() == expected.keys() and all(
        value == (pytest.approx(expected[key], rel=1e-4, abs=1e-6) if key in floats else expected[key])
        for key, value in row.items()
    )


def test_a_resumed_run_equals_an_uninterrupted_one(
    service: StandInService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MY_KEY", "tml-secret")
    key = "backend.api_key_env=MY_KEY"
    whole, halved = tmp_path / "whole", tmp_path / "halved"
    assert train(whole, service, "--steps", "4", key) == 0
    lines = capsys.readouterr().err
    assert f"on the Tinker service at {service.url}: {BASE}, LoRA of rank 4; SDK 0.24" in lines
    assert "sends MY_KEY" in lines
    assert train(halved, service, "--steps", "2", key) == 0
    assert train(halved, service, "--steps", "4", "--resume", key) == 0
    assert all(map(close, rows(halved), rows(whole))) and len(rows(halved)) == 5
    first, *_, last = rows(whole)
    assert last["heldout/env_ce"] < first["heldout/env_ce"] and last["heldout/pass_at_1"] == 0
    assert last["heldout/token_accuracy"] is None and last["train/entropy"] > 0
    assert not service.adapters  # each run has removed its own
    assert all(b"tml-secret" not in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    capsys.readouterr()
    assert main(["eval-heldout", str(whole), "--rollouts", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)
    assert not service.adapters


def test_a_lost_session_ends_the_run_with_its_last_checkpoint(
    service: StandInService, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert train(run, service, "--steps", "2") == 0
    shutil.copytree(run, tmp_path / "copy")
    lose_after(service, "forward_backward", MEASURED + 1)
    assert train(run, service, "--steps", "4", "--resume") == 1
    *_, error, tip = capsys.readouterr().err.splitlines()
    assert error.startswith(f"error: the Tinker service at {service.url} did not compute a gradient")
    assert tip.endswith("--resume continues from the checkpoint of step 3")
    assert train(run, service, "--steps", "4", "--resume") == 0
    assert train(tmp_path / "copy", service, "--steps", "4", "--resume") == 0
    assert all(map(close, rows(run), rows(tmp_path / "copy"))) and len(rows(run)) == 5


def lose_after(service: StandInService, name: str, count: int) -> None:
    """Let the service carry out a request after `count` more and lose its answer."""
    carried = getattr(service, f"_{name}")

    def lose(body: dict[str, object]) -> tuple[int, dict[str, object]]:
        nonlocal count
        count -= 1
        if count == -1:
            service.silent = [name]
        answer: tuple[int, dict[str, object]] = carried(body)
        return answer

    setattr(service, f"_{name}", lose)
