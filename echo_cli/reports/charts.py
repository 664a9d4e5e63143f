"""Charts of a report as SVG: what is shown without a script and in print, and the data that the script zooms into."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

from echo_cli.runs.curves import Curve, Points

# Units of the SVG; the page scales it to the width that there is.
_WIDTH, _HEIGHT = 360, 220
_LEFT, _TOP, _RIGHT, _BOTTOM = 46, 8, 352, 192

_COLOURS = 7  # that report.css has for runs
# Shapes around the origin: runs are told apart by them on grey paper too.
_MARKS = (
    "M-3.4 0a3.4 3.4 0 1 0 6.8 0a3.4 3.4 0 1 0-6.8 0z",
    "M-3 -3H3V3H-3z",
    "M0 -4L4 3H-4z",
    "M0 -4.3L4.3 0L0 4.3L-4.3 0z",
    "M0 4L4 -3H-4z",
    "M-1.3 -4H1.3V-1.3H4V1.3H1.3V4H-1.3V1.3H-4V-1.3H-1.3z",
    "M-4 -2.4L-2.4 -4L0 -1.6L2.4 -4L4 -2.4L1.6 0L4 2.4L2.4 4L0 1.6L-2.4 4L-4 2.4L-1.6 0z",
    "M-4 0L3 -4V4z",
    "M4 0L-3 -4V4z",
)
_STAR = "M0 -7.5L1.8 -2.4L7.1 -2.3L2.8 0.9L4.4 6.1L0 3L-4.4 6.1L-2.8 0.9L-7.1 -2.3L-1.8 -2.4z"


def definitions() -> str:
    """What the charts refer to; once in a page."""
    marks = "".join(f'<path id="mark-{number}" d="{d}"/>' for number, d in enumerate(_MARKS))
    return (
        f'<svg class="defs" aria-hidden="true"><defs>{marks}<path id="star" d="{_STAR}"/><clipPath id="inside">'
        f'<rect x="{_LEFT - 5}" y="{_TOP - 4}" width="{_RIGHT - _LEFT + 12}" height="{_BOTTOM - _TOP + 8}"/>'
        "</clipPath></defs></svg>"
    )


def swatch(run: int) -> str:
    """How the lines of a run look."""
    return (
        f'<svg viewBox="0 0 36 14" aria-hidden="true"><path class="line run-{run % _COLOURS}" d="M1 7H35"/>'
        f"{_use('mark', run, '18', '7')}</svg>"
    )


def dash(series: int) -> str:
    """How the lines of a series look, whatever the run."""
    return (
        f'<svg class="key" viewBox="0 0 30 10" aria-hidden="true"><path class="line dash-{series}" d="M1 5H29"/></svg>'
    )


def chart_svg(chart: Chart, label: str) -> str:
    """The chart as it looks unzoomed; `label` is its accessible name."""
    low, high = _range([value for line in chart.lines for _, value in line.points])
    first, last = _view(chart)

    def x(step: float) -> str:
        return _short(_LEFT + (step - first) / (last - first) * (_RIGHT - _LEFT))

    def y(value: float) -> str:
        return _short(_BOTTOM - (value - low) / (high - low) * (_BOTTOM - _TOP))

    axes = [
        f'<path class="grid" d="M{_LEFT} {y(value)}H{_RIGHT}"/>'
        f'<text x="{_LEFT - 6}" y="{float(y(value)) + 4:g}" text-anchor="end">{text}</text>'
        for value, text in _ticks(low, high, 5, whole=False)
    ]
    axes += [
        f'<text class="step" x="{x(value)}" y="{_BOTTOM + 15}" text-anchor="middle">{text}</text>'
        for value, text in _ticks(first, last, 6, whole=True)
    ]
    parts = []
    for line in chart.lines:
        path = "L".join(f"{x(step)} {y(value)}" for step, value in line.points)
        parts.append(f'<path class="line run-{line.run % _COLOURS} dash-{line.series}" d="M{path}"/>')
        parts += [_use("mark", line.run, x(step), y(value)) for step, value in _marked(line)]
    parts += [_use("best", run, x(step), y(value)) for run, step, value in chart.best]
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(label)}">'
        f'<g class="axes">{"".join(axes)}</g>'
        f'<g class="plot" clip-path="url(#inside)">{"".join(parts)}</g>'
        f'<text x="{(_LEFT + _RIGHT) / 2:g}" y="{_HEIGHT - 1}" text-anchor="middle">step</text></svg>'
    )


def chart_json(chart: Chart) -> str:
    """The data of a chart for report.js; text in it cannot end the element that it stands in."""
    data = {
        "box": {"width": _WIDTH, "left": _LEFT, "top": _TOP, "right": _RIGHT, "bottom": _BOTTOM},
        "looks": {"colours": _COLOURS, "marks": len(_MARKS)},
        "view": _view(chart),
        "series": chart.series,
        "lines": [
            {"run": line.run, "series": line.series, "points": [[s, float(f"{v:.5g}")] for s, v in line.points]}
            for line in chart.lines
        ],
        "best": [[run, step, float(f"{value:.5g}")] for run, step, value in chart.best],
    }
    return script_json(data)


def script_json(value: object) -> str:
    """JSON to stand in a script element or an attribute between single quotes, whatever its texts spell."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026").replace("'", "\\u0027")


def _view(chart: Chart) -> tuple[float, float]:
    """The first and the last step, or something around the only one."""
    steps = [step for line in chart.lines for step, _ in line.points]
    first, last = min(steps), max(steps)
    return (first, last) if first < last else (first - 1, first + 1)


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    pad = (high - low or abs(high) * 0.2 or 1.0) * 0.06
    return low - pad, high + pad


def _marked(line: Line) -> list[tuple[int, float]]:
    """All of a few points; some of many, each run its own."""
    every = 1 if len(line.points) <= 13 else math.ceil(len(line.points) / 6)
    return [point for place, point in enumerate(line.points) if (place + line.run) % every == 0]


def _ticks(low: float, high: float, most: int, *, whole: bool) -> list[tuple[float, str]]:
    """At most about `most` round values from `low` to `high`, with their labels."""
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(digit * power for digit in (1, 2, 5, 10) if digit * power * most >= (high - low) * 0.999999)
    step = max(step, 1.0) if whole else step
    values = [number * step for number in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]
    decimals = max(0, math.ceil(-math.log10(step) - 1e-9))
    plain = decimals <= 5 and max(map(abs, values), default=0) < 1e6
    return [(value, f"{value:.{decimals}f}" if plain else f"{value:.1e}") for value in values]


def _use(kind: str, run: int, x: str, y: str) -> str:
    target = f"mark-{run % len(_MARKS)}" if kind == "mark" else "star"
    return f'<use class="{kind} run-{run % _COLOURS}" href="#{target}" x="{x}" y="{y}"/>'


def _short(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


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
