"""`env check --model`: it plays the rollouts that a run begins with, and says what keeps the model from learning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_run import TINY, error_of

from echo_cli.cli.main import main
from echo_cli.trajectory import Trajectory


def _checked(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main(["env", "check", *words, "--model", "--json"]) == 0, capsys.readouterr().err
    found: dict[str, Any] = json.loads(capsys.readouterr().out)["model"]
    return found


def test_the_rollouts_are_those_of_the_runs_first_step(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = _checked(capsys, str(finished / "config.yaml"))
    played = [Trajectory.from_json(record) for record in found["rollouts"]]
    kept = [json.loads(line) for line in (finished / "rollouts.jsonl").read_text().splitlines()]
    first = [record for record in kept if record.pop("meta")["step"] == 1 and record["source"] == "policy"]
    assert played == [Trajectory.from_json(record) for record in first] and len(played) == 2
    row = json.loads((finished / "metrics.jsonl").read_text().splitlines()[1])
    for name in ("malformed_fraction", "capped_fraction", "action_length", "zero_advantage_fraction", "reward"):
        assert found["signals"][name] == pytest.approx(row[f"train/{name}"])
    assert sum(found["stop_reasons"].values()) == 2


def test_actions_that_are_all_cut_are_shown_with_the_key_to_change(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("toy", *TINY, "rollout.max_action_tokens=1", "rollout.explorers=0")
    found = _checked(capsys, *words)
    assert [warning["name"] for warning in found["warnings"]] == ["cut_actions", "no_observations", "no_contrast"]
    assert (found["observed_tokens"], found["stop_reasons"]) == (0, {"length_cap": 2})
    assert main(["env", "check", *words, "--model"]) == 0
    text = capsys.readouterr().out
    assert f"| {found['rollouts'][0]['turns'][0]['command']}" in text
    assert "actions: 0% can be run, 100% malformed, 0% empty; 1.0 tokens on average, at most 1" in text
    assert "rollouts: 2; 100% end at a cap (2 length_cap)" in text and "raise rollout.max_action_tokens (1)" in text


def test_the_model_is_the_configs_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["env", "check", "toy", "--model", "my-model"]) == 2
    message, tip = error_of(capsys.readouterr().err)
    assert "--model takes no value" in message and "model.path=my-model" in tip
