"""GRPO's curve beside the default run: measured with the shipped configs, and drawn beside these settings alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from echo_cli.config.loader import load_config
from echo_cli.files import read_json
from echo_cli.reports.reference import REFERENCE_PATH, fingerprint, reference_of
from echo_cli.reports.run_figure import plot_run
from echo_cli.runs.directory import RunDirectory, create_run


def _run(path: Path, *overrides: str) -> RunDirectory:
    run = create_run(path, config_yaml=load_config("toy", overrides).to_yaml(), environment={})
    run.append_metrics({"step": 0, "heldout/pass_at_1": 0.1, "heldout/env_ce": 1.0})
    return run


def test_the_curve_was_measured_with_the_shipped_configs() -> None:
    measured = read_json(REFERENCE_PATH)
    assert measured["beside"] == fingerprint(load_config("toy"))
    grpo = load_config("toy-grpo")
    assert measured["config"] == fingerprint(grpo)
    assert [step for step, _ in measured["points"]] == [*range(0, grpo.steps + 1, grpo.evaluation.pass_every)]


def test_the_curve_is_drawn_beside_a_run_of_the_default_settings(tmp_path: Path) -> None:
    run = _run(tmp_path / "run", "threads=1", "run_name=mine", "checkpoint.every=7")
    assert reference_of(run) == [tuple(point) for point in read_json(REFERENCE_PATH)["points"]]
    assert "GRPO, λ = 0" in plot_run([run.path]).svg.read_text()


@pytest.mark.parametrize("override", ["seed=1", "steps=30", "optim.lr=3e-3", "objective.world_model_coeff=0.5"])
def test_a_run_of_other_settings_has_no_curve(tmp_path: Path, override: str) -> None:
    run = _run(tmp_path / "run", override)
    assert reference_of(run) == []
    assert "GRPO, λ = 0" not in plot_run([run.path]).svg.read_text()


def test_runs_that_are_compared_and_a_run_without_a_readable_config_have_no_curve(tmp_path: Path) -> None:
    run, other = _run(tmp_path / "run"), _run(tmp_path / "other")
    assert "GRPO, λ = 0" not in plot_run([run.path, other.path]).svg.read_text()
    run.config_path.write_text("steps: many")
    assert reference_of(run) == []
