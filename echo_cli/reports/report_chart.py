"""The curves of runs as charts: which metrics stand together, and lines of no more points than there is room for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from echo_cli.runs.curves import Curve, Points


@dataclass(frozen=True)
class Line:
    """One series of one run: both by their number, in the report and in the chart."""

    run: int
    series: int
    points: Points


@dataclass(frozen=True)
class Chart:
    """Curves over the steps."""

    title: str
    unit: str
    series: tuple[str, ...]
    """What the lines of a run are, told apart by their dashes."""
    lines: tuple[Line, ...]
    best: tuple[tuple[int, int, float], ...]
    """For each run whose best step has a point on the first series: run, step, value."""


@dataclass(frozen=True)
class _ChartOf:
    title: str
    unit: str
    series: Mapping[str, str]
    """By metric, what the line is."""
    missed: bool = True
    """Worth a word where it has no value in any run."""


_SAME_PAIRS = "the same pairs before training"
_CHARTS = (
    _ChartOf("Held-out env-CE", "nats/token", {"heldout/env_ce": "held-out", "heldout/env_ce_start": _SAME_PAIRS}),
    _ChartOf("OOD env-CE", "nats/token", {"ood/env_ce": "OOD", "ood/env_ce_start": _SAME_PAIRS}),
    _ChartOf(
        "Env-CE of held-out traces",
        "nats/token",
        {"traces/env_ce": "held-out traces", "traces/env_ce_start": _SAME_PAIRS},
        missed=False,
    ),
    _ChartOf("pass@1", "tasks solved", {"heldout/pass_at_1": "held-out", "validation/pass_at_1": "validation"}),
    _ChartOf("Reward in training", "mean", {"train/reward": "train"}),
    _ChartOf("env-CE in training", "nats/token", {"train/env_ce": "all rollouts", "train/policy_env_ce": "on-policy"}),
    _ChartOf(
        "Loss", "", {"train/loss": "loss", "train/rl_loss": "RL term", "train/env_loss": "env term, before its λ"}
    ),
    _ChartOf("Action entropy", "nats/token", {"train/entropy": "train"}),
    _ChartOf("λ", "", {"train/lambda": "λ", "train/portable_lambda": "portable λ"}),
    _ChartOf("Gradient norm", "before clipping", {"train/grad_norm": "train"}),
    _ChartOf("Held-out bits per byte", "bits", {"heldout/env_bits_per_byte": "held-out"}),
    _ChartOf("Held-out token accuracy", "tokens", {"heldout/token_accuracy": "held-out"}),
    _ChartOf("Action length", "tokens", {"train/action_length": "train"}),
)
METRICS = tuple(dict.fromkeys(metric for chart in _CHARTS for metric in chart.series))
"""The metrics that are drawn."""


def charts(curves: Sequence[Curve], most: int) -> list[Chart]:
    """The charts that have something to draw, with at most `most` points a line."""
    found = []
    for spec in _CHARTS:
        lines = [
            Line(run, series, thinned(curve.series[metric], most))
            for run, curve in enumerate(curves)
            for series, metric in enumerate(spec.series)
            if any(math.isfinite(value) for _, value in curve.series[metric])
        ]
        first = next(iter(spec.series))
        best = tuple(
            (run, step, value)
            for run, curve in enumerate(curves)
            for step, value in curve.series[first]
            if step == curve.best_step and first.startswith("heldout/")
        )
        if lines:
            found.append(Chart(spec.title, spec.unit, tuple(spec.series.values()), tuple(lines), best))
    return found


def undrawn(curves: Sequence[Curve]) -> list[str]:
    """The titles of the charts without a value in any run, but for those that few runs have."""
    missed = [spec for spec in _CHARTS if spec.missed]
    return [spec.title for spec in missed if not any(curve.series[name] for curve in curves for name in spec.series)]


def thinned(points: Points, most: int) -> Points:
    """At most `most` of `points`, at least 4: both ends, and the lowest and the highest of every stretch between."""
    points = [point for point in points if math.isfinite(point[1])]
    if len(points) <= most:
        return points
    inner, stretches = points[1:-1], (most - 2) // 2
    bounds = [len(inner) * number // stretches for number in range(stretches + 1)]
    kept = [points[0]]
    for begin, end in pairwise(bounds):
        stretch = inner[begin:end]
        extremes = {min(stretch, key=lambda point: point[1]), max(stretch, key=lambda point: point[1])}
        kept += sorted(extremes)
    return [*kept, points[-1]]
