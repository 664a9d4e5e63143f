"""What a run's files say over the steps: the points of its metrics, its best step, its λ; and the mean over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from echo_cli.errors import EchoError
from echo_cli.files import Row
from echo_cli.runs.directory import RunDirectory
from echo_cli.text import escape_unprintable

Points = list[tuple[int, float]]
"""(step, value); a step without a value has no point."""


@dataclass(frozen=True)
class Curve:
    """A run's metrics by name, with the step chosen on the validation split (None: there was no validation)."""

    name: str
    coefficient: float | None
    """λ"""
    series: dict[str, Points]
    best_step: int | None


@dataclass(frozen=True)
class Band:
    """A metric over several runs: at `steps`, where every run that has the metric has a value."""

    steps: list[int]
    mean: list[float]
    low: list[float]
    high: list[float]
    runs: int
    """How many runs have the metric."""
    uneven: bool
    """Some of them have values at other steps too: a run ended early, or was evaluated at other steps."""


def read_curve(path: Path, name: str, metrics: Sequence[str]) -> Curve:
    """Read the `metrics` of a run, and from its summary the best step and λ.

    A run without a summary was killed or is still going: its best step is that of the lowest validation env-CE so far.

    Raises:
        EchoError: no metrics file, no rows in it, or a step or value that is not a number; names the file.
    """
    run = RunDirectory(path)
    rows = run.read_metrics()
    if not rows:
        raise EchoError(f"{escape_unprintable(run.metrics_path)} has no rows yet", "wait for the first step of the run")
    validation = _points(run, rows, "validation/env_ce")
    coefficients = _points(run, rows, "train/lambda")
    best = min(validation, key=lambda point: point[1])[0] if validation else None
    coefficient = coefficients[-1][1] if coefficients else None
    summary = run.read_summary() or {}
    said_best, said_coefficient = _lookup(summary, "heldout", "best", "step"), _lookup(summary, "lambda")
    return Curve(
        name,
        coefficient if said_coefficient is None else said_coefficient,
        {metric: _points(run, rows, metric) for metric in metrics},
        best if said_best is None else int(said_best),
    )


def band(curves: Sequence[Curve], metric: str) -> Band:
    """Mean, lowest and highest value of `metric` over `curves`, at the steps they share."""
    values = [dict(points) for curve in curves if (points := curve.series[metric])]
    steps = sorted(set(values[0]).intersection(*values)) if values else []
    at = [[points[step] for points in values] for step in steps]
    return Band(
        steps,
        [math.fsum(seen) / len(seen) for seen in at],
        [min(seen) for seen in at],
        [max(seen) for seen in at],
        len(values),
        any(len(points) > len(steps) for points in values),
    )


def _points(run: RunDirectory, rows: Sequence[Row], metric: str) -> Points:
    points = []
    for row in rows:
        step, value = row.get("step"), row.get(metric)
        if not isinstance(step, int):
            raise EchoError(
                f"{escape_unprintable(run.metrics_path)}: a row has no step", "it is not the metrics file of a run"
            )
        if value is not None and not isinstance(value, (int, float)):
            raise EchoError(
                f"{escape_unprintable(run.metrics_path)}: {metric} of step {step} is not a number",
                "it is not the metrics file of a run",
            )
        if value is not None:
            points.append((step, float(value)))
    return points


def _lookup(summary: Row, *keys: str) -> float | None:
    """The number at a path of keys, or None."""
    value: Any = summary
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, (int, float)) else None
