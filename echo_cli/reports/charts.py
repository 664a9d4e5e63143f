"""Charts of a report: their curves and SVG coordinates. charts.html draws them, report.js zooms them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, ClassVar

from echo_cli.runs.curves import Curve, Points
from echo_cli.runs.parts import names_in


@dataclass(frozen=True)
class Line:
    """One series of one run. `run` is an index into the report's runs, `series` into the chart's series, 0-based."""

    run: int
    series: int
    points: Points

    @property
    def marked(self) -> Points:
        """Points with a mark: all points of a line of up to 13, else about 6, at positions that differ between runs."""
        every = 1 if len(self.points) <= 13 else math.ceil(len(self.points) / 6)
        return [point for place, point in enumerate(self.points) if (place + self.run) % every == 0]


@dataclass(frozen=True)
class Chart:
    """Curves by step, with coordinates in SVG user units; the page scales the drawing to its width."""

    box: ClassVar = {"width": 360, "height": 220, "left": 46, "top": 8, "right": 352, "bottom": 192}
    """Size of the drawing and edges of its plot area, SVG user units."""

    title: str
    unit: str
    series: tuple[str, ...]
    """Labels of a run's lines, which are distinguished by their dashes."""
    lines: tuple[Line, ...]
    best: tuple[tuple[int, int, float], ...]
    """(run index, step, value) of each run whose best step has a point on the first series."""

    @cached_property
    def steps(self) -> list[int]:
        """Steps at which any line has a point, ascending."""
        return sorted({step for line in self.lines for step, _ in line.points})

    @cached_property
    def view(self) -> tuple[int, int]:
        """First and last step; if there is only one step, one step to either side of it."""
        first, last = self.steps[0], self.steps[-1]
        return (first, last) if first < last else (first - 1, first + 1)

    @cached_property
    def range(self) -> tuple[float, float]:
        """Values at the lower and the upper edge of the plot area."""
        values = [value for line in self.lines for _, value in line.points]
        low, high = min(values), max(values)
        pad = (high - low or abs(high) * 0.2 or 1.0) * 0.06
        return low - pad, high + pad

    @property
    def step_ticks(self) -> list[tuple[float, str]]:
        """(step, label) pairs on the horizontal axis."""
        return _ticks(*self.view, 6, whole=True)

    @property
    def value_ticks(self) -> list[tuple[float, str]]:
        """(value, label) pairs on the vertical axis, each with a grid line."""
        return _ticks(*self.range, 5, whole=False)

    @property
    def rows(self) -> list[tuple[int, list[float | None]]]:
        """(step, values of all lines) pairs; None where a line has no point."""
        values = [dict(line.points) for line in self.lines]
        return [(step, [of.get(step) for of in values]) for step in self.steps]

    @property
    def data(self) -> dict[str, Any]:
        """Input of report.js, values rounded to five significant digits."""
        return {
            "box": self.box,
            "view": self.view,
            "series": self.series,
            "lines": [
                {"run": line.run, "series": line.series, "points": [[s, _five_digits(v)] for s, v in line.points]}
                for line in self.lines
            ],
            "best": [[run, step, _five_digits(value)] for run, step, value in self.best],
        }

    def headings(self, runs: Sequence[str]) -> list[str]:
        """Return a heading per line: its series and, if there are several runs, its run."""
        return [
            ", ".join([self.series[line.series], *([runs[line.run]] if len(runs) > 1 else [])]) for line in self.lines
        ]

    def path(self, line: Line) -> str:
        """Return the line as an SVG path."""
        return "M" + "L".join(f"{self.x(step)} {self.y(value)}" for step, value in line.points)

    def x(self, step: float) -> str:
        """Return the x coordinate of a step."""
        first, last = self.view
        return _short(self.box["left"] + (step - first) / (last - first) * (self.box["right"] - self.box["left"]))

    def y(self, value: float) -> str:
        """Return the y coordinate of a value."""
        low, high = self.range
        return _short(self.box["bottom"] - (value - low) / (high - low) * (self.box["bottom"] - self.box["top"]))


@dataclass(frozen=True)
class _ChartOf:
    title: str
    unit: str
    series: Mapping[str, str]
    """Labels of the lines, by metric."""
    missed: bool = True
    """Whether the page mentions the chart if no run has a value."""


_SAME_PAIRS = "the same pairs before training"
_SEEN_PAIRS = "seen pairs, as none is novel"
_CHARTS = (
    _ChartOf(
        "Held-out env-CE",
        "nats/token",
        {
            "heldout/env_ce": "held-out",
            "heldout/env_ce_start": _SAME_PAIRS,
            "heldout/env_ce_shown": "pairs whose lines were all shown",
            "heldout/env_ce_unshown": "pairs with a line never shown",
            "heldout/env_ce_seen": _SEEN_PAIRS,
        },
    ),
    _ChartOf(
        "OOD env-CE",
        "nats/token",
        {"ood/env_ce": "OOD", "ood/env_ce_start": _SAME_PAIRS, "ood/env_ce_seen": _SEEN_PAIRS},
    ),
    _ChartOf(
        "Env-CE of held-out traces",
        "nats/token",
        {"traces/env_ce": "held-out traces", "traces/env_ce_start": _SAME_PAIRS, "traces/env_ce_seen": _SEEN_PAIRS},
        missed=False,
    ),
    _ChartOf("pass@1", "tasks solved", {"heldout/pass_at_1": "held-out", "validation/pass_at_1": "validation"}),
    _ChartOf(
        "Groups without contrast",
        "share of the step's groups",
        {"train/groups_all_failed": "all rollouts fail", "train/groups_all_solved": "all rollouts solve the task"},
        missed=False,
    ),
    _ChartOf("Actions refused", "share of turns", {"heldout/refused_fraction": "held-out tasks"}, missed=False),
    _ChartOf(
        "Own actions moved by the env term alone",
        "nats/token",
        {"probe/action_distance": "mean |change| of the logprob", "probe/action_kl": "KL"},
        missed=False,
    ),
    _ChartOf(
        "Mean reward",
        "reward",
        {"heldout/mean_reward": "held-out", "validation/mean_reward": "validation"},
        missed=False,
    ),
    _ChartOf("Reward in training", "mean", {"train/reward": "train"}),
    _ChartOf("env-CE in training", "nats/token", {"train/env_ce": "all rollouts", "train/policy_env_ce": "on-policy"}),
    _ChartOf(
        "Loss", "", {"train/loss": "loss", "train/rl_loss": "RL term", "train/env_loss": "env term, without its λ"}
    ),
    _ChartOf("Action entropy", "nats/token", {"train/entropy": "train"}),
    _ChartOf("λ", "", {"train/lambda": "λ", "train/portable_lambda": "portable λ"}),
    _ChartOf("Gradient norm", "before clipping", {"train/grad_norm": "train"}),
    _ChartOf("Held-out bits per byte", "bits", {"heldout/env_bits_per_byte": "held-out"}),
    _ChartOf("Held-out token accuracy", "tokens", {"heldout/token_accuracy": "held-out"}),
    _ChartOf("Action length", "tokens", {"train/action_length": "train"}),
)
_CRITERION_SERIES = {"heldout": "held-out", "validation": "validation", "train": "train"}


def criterion_metrics(names: Iterable[str]) -> tuple[str, ...]:
    """Return the metrics of a grader's criteria that charts draw."""
    return tuple(f"{part}/criterion_{name}" for name in names for part in _CRITERION_SERIES)


_EACH = {
    "heldout/env_ce": ("Held-out env-CE by environment", "nats/token"),
    "heldout/pass_at_1": ("pass@1 by environment", "tasks solved"),
    "train/reward": ("Reward in training by environment", "mean"),
    "train/env_ce": ("env-CE in training by environment", "nats/token"),
}
"""Titles and units of the charts with a line for each of several environments."""


def environment_metrics(names: Iterable[str]) -> tuple[str, ...]:
    """Return the metrics of several environments that charts draw."""
    return tuple(metric.replace("/", f"/{name}/") for metric in _EACH for name in names)


def _charts_of(curves: Sequence[Curve]) -> list[_ChartOf]:
    """Return the charts of curves: those of every run, of several environments, and one per criterion of a grader."""
    metrics = dict.fromkeys(metric for curve in curves for metric in curve.series)
    environments = names_in(metrics)
    names = dict.fromkeys(metric.partition("/criterion_")[2] for metric in metrics if "/criterion_" in metric)
    return [
        *_CHARTS,
        *(
            _ChartOf(title, unit, {metric.replace("/", f"/{name}/"): name for name in environments}, missed=False)
            for metric, (title, unit) in _EACH.items()
            if environments
        ),
        *(
            _ChartOf(
                f"Criterion {name}",
                "mean",
                {f"{part}/criterion_{name}": label for part, label in _CRITERION_SERIES.items()},
                missed=False,
            )
            for name in names
        ),
    ]


METRICS = tuple(dict.fromkeys(metric for chart in _CHARTS for metric in chart.series))
"""Metrics that the charts of every run draw."""


def charts(curves: Sequence[Curve], most: int) -> list[Chart]:
    """Return the charts that have a finite value, with at most `most` points per line."""
    found = []
    for spec in _charts_of(curves):
        drawn = [metric for metric in spec.series if any(_is_drawn(curve, metric) for curve in curves)]
        lines = [
            Line(run, series, thinned(curve.series[metric], most))
            for run, curve in enumerate(curves)
            for series, metric in enumerate(drawn)
            if _is_drawn(curve, metric)
        ]
        first = next(iter(spec.series))
        best = tuple(
            (run, step, value)
            for run, curve in enumerate(curves)
            for step, value in curve.series.get(first, ())
            if step == curve.best_step and first.startswith("heldout/") and math.isfinite(value)
        )
        if lines:
            found.append(
                Chart(spec.title, spec.unit, tuple(spec.series[metric] for metric in drawn), tuple(lines), best)
            )
    return found


def _is_drawn(curve: Curve, metric: str) -> bool:
    return any(math.isfinite(value) for _, value in curve.series.get(metric, ()))


def undrawn(curves: Sequence[Curve]) -> list[str]:
    """Return the titles of the charts for which no run has a value, except charts that only few runs have."""
    missed = [spec for spec in _CHARTS if spec.missed]
    return [spec.title for spec in missed if not any(curve.series[name] for curve in curves for name in spec.series)]


def thinned(points: Points, most: int) -> Points:
    """Return at most `most` ≥ 4 of `points`: both ends, and the minimum and maximum of each stretch between them."""
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


def _ticks(low: float, high: float, most: int, *, whole: bool) -> list[tuple[float, str]]:
    """Return at most about `most` round values from `low` to `high`, with their labels."""
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(digit * power for digit in (1, 2, 5, 10) if digit * power * most >= (high - low) * 0.999999)
    step = max(step, 1.0) if whole else step
    values = [number * step for number in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]
    decimals = max(0, math.ceil(-math.log10(step) - 1e-9))
    plain = decimals <= 5 and max(map(abs, values), default=0) < 1e6
    return [(value, f"{value:.{decimals}f}" if plain else f"{value:.1e}") for value in values]


def _short(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _five_digits(value: float) -> float:
    return float(f"{value:.5g}")
