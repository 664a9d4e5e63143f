"""Curves of a run over its steps: points of metrics, best step and λ; and the mean over several runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from echo_cli.errors import EchoError
from echo_cli.files import Row
from echo_cli.runs.directory import RunDirectory
from echo_cli.runs.parts import names_in, row_of
from echo_cli.runs.summary import is_met
from echo_cli.text import escape_unprintable

_SELECTED_BY = {
    "validation/pass_at_1": "validation pass@1",
    "validation/mean_reward": "validation reward",
}

Points = list[tuple[int, float]]
"""Points (step, value); steps without a value are omitted."""


@dataclass(frozen=True)
class Curve:
    """Metrics of a run over its steps."""

    name: str
    coefficient: float | None
    """λ"""
    series: dict[str, Points]
    """Points by metric name; `env_ce_seen` of a pool only at steps by which training had executed all its pairs."""
    best_step: int | None
    """Step chosen on the validation split; None without validation."""
    selected_by: str = "validation env-CE"
    """Measure that chose the best step, as text."""


@dataclass(frozen=True)
class Band:
    """A metric over several runs, at the `steps` where every run with the metric has a value."""

    steps: list[int]
    mean: list[float]
    low: list[float]
    high: list[float]
    runs: int
    """Number of runs with the metric."""
    uneven: bool
    """Whether a run has values at other steps, because a run ended early or was evaluated at other steps."""


def read_curve(path: Path, name: str, metrics: Sequence[str], environment: str = "") -> Curve:
    """Read the `metrics` of a run, or of one of its several environments, and the best step and λ from its summary.

    A run without a summary was killed or is in progress: its best step is the step with the lowest validation env-CE so
    far, and its λ is the last in the metrics.

    Raises:
        EchoError: the metrics file does not exist or is empty, or a step or value is not a number; the message has the
            file.
    """
    run = RunDirectory(path)
    rows = run.read_metrics()
    if not rows:
        raise EchoError(f"{escape_unprintable(run.metrics_path)} is empty", "wait for the first step of the run")
    validation = _points(rows, "validation/env_ce")
    if environment:
        names = names_in(rows[-1])
        rows = [row_of(row, environment, names) for row in rows]
    coefficients = _points(rows, "train/lambda")
    best = min(validation, key=lambda point: point[1])[0] if validation else None
    coefficient = coefficients[-1][1] if coefficients else None
    summary = run.read_summary() or {}
    said_best, said_coefficient = _lookup(summary, "heldout", "best", "step"), _lookup(summary, "lambda")
    return Curve(
        name,
        coefficient if said_coefficient is None else said_coefficient,
        {metric: _points(rows, metric) for metric in metrics},
        best if said_best is None else int(said_best),
        _SELECTED_BY.get(summary.get("selected_by", ""), "validation env-CE"),
    )


def environment_names(path: Path) -> list[str]:
    """Return the names of the several environments of a run; none for a run in one, or without metrics."""
    rows = RunDirectory(path).read_metrics()
    return names_in(rows[-1]) if rows else []


def band(curves: Sequence[Curve], metric: str) -> Band:
    """Return mean, minimum and maximum of `metric` over `curves`, at their common steps."""
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


def _points(rows: Sequence[Row], metric: str) -> Points:
    points = []
    pool, _, name = metric.partition("/")
    for row in rows:
        if name == "env_ce_seen" and not is_met(row, pool):
            continue
        if (value := row.get(metric)) is not None:
            points.append((row["step"], float(value)))
    return points


def _lookup(summary: Row, *keys: str) -> float | None:
    """Return the number at a path of keys, or None."""
    value: Any = summary
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, (int, float)) else None
