"""Figures of runs: env-CE and tasks solved by step, as PNG and SVG, with the points as CSV.

Text from a run (its name, a label) is data: it is shown verbatim, without markup and control characters.
"""

from __future__ import annotations

import os.path
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from echo_cli.errors import EchoError
from echo_cli.reports.figure import (
    COLOURS,
    INK,
    MARKERS,
    PAIR_HEIGHT,
    POINT_COLUMNS,
    Plotted,
    picture_stem,
    write_in_the_middle,
    write_picture,
)
from echo_cli.reports.reference import METRIC, reference_of
from echo_cli.runs.curves import Band, Curve, Points, band, environment_names, read_curve
from echo_cli.runs.directory import open_run
from echo_cli.text import escape_unprintable, without_middle

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class _Series:
    metric: str
    label: str
    style: dict[str, Any]
    marked: bool = False
    """Whether each point has a marker; for series of few points."""


@dataclass(frozen=True)
class _Panel:
    name: str
    """Name of the main series' measure."""
    title: str
    sweep_title: str
    unit: str
    sweep_unit: str
    held_out: _Series
    """Main series of the panel."""
    around: tuple[_Series, ...]
    fallback: _Series | None = None
    """Series at the steps at which the main series has no value because no pair is novel."""
    limits: tuple[float, float] | None = None
    nothing: str = "no held-out evaluation yet"

    @property
    def series(self) -> tuple[_Series, ...]:
        return (self.held_out, *([self.fallback] if self.fallback else []), *self.around)

    @property
    def measured(self) -> tuple[_Series, ...]:
        """Series of held-out measures, one of which an evaluated step has."""
        return (self.held_out, *([self.fallback] if self.fallback else []))


_THICK: dict[str, Any] = {"linewidth": 2.2, "markersize": 6, "markeredgecolor": "white", "markeredgewidth": 0.8}
_THIN: dict[str, Any] = {"linewidth": 1.0, "alpha": 0.55}
_DASHED: dict[str, Any] = {"linewidth": 1.5, "linestyle": (0, (4, 2))}
_DOTTED: dict[str, Any] = {"linewidth": 1.6, "linestyle": (0, (1, 2)), "markersize": 4}
_REFERENCE: dict[str, Any] = {"linewidth": 1.0, "color": INK, "alpha": 0.8, "zorder": 1}
_STAR: dict[str, Any] = {
    "marker": "*",
    "markersize": 16,
    "markeredgecolor": "black",
    "markeredgewidth": 0.8,
    "linestyle": "none",
    "zorder": 5,
}
_PANELS = (
    _Panel(
        name="held-out env-CE",
        title="held-out env-CE, nats/token (novel pairs)",
        sweep_title="held-out env-CE, nats/token (novel pairs)",
        unit="env-CE, nats/token",
        sweep_unit="env-CE, nats/token",
        held_out=_Series("heldout/env_ce", "held-out", {**_THICK, "zorder": 4}, marked=True),
        around=(
            _Series("heldout/env_ce_shown", "  lines shown", {**_DOTTED, "zorder": 3}, marked=True),
            _Series("heldout/env_ce_unshown", "  a line unshown", {**_DASHED, "markersize": 4}, marked=True),
            _Series("ood/env_ce", "OOD worlds", {**_DASHED, "zorder": 3}),
            _Series("train/env_ce", "train", {**_THIN, "zorder": 2}),
        ),
        fallback=_Series("heldout/env_ce_seen", "seen pairs, as none is novel", {**_DOTTED, "zorder": 4}, marked=True),
    ),
    _Panel(
        name="held-out pass@1",
        title="held-out pass@1, and rewards",
        sweep_title="tasks solved: held-out pass@1",
        unit="fraction solved, mean reward",
        sweep_unit="fraction solved",
        held_out=_Series("heldout/pass_at_1", "held-out pass@1", {**_THICK, "zorder": 4}, marked=True),
        around=(
            _Series("heldout/mean_reward", "held-out mean reward", {**_DASHED, "zorder": 3}),
            _Series("train/reward", "train reward", {**_THIN, "zorder": 2}),
        ),
        limits=(-0.03, 1.03),
        nothing="no held-out tasks played",
    ),
)

SWEEP_METRICS = tuple(series.metric for panel in _PANELS for series in panel.measured)
"""Metrics of a sweep's figure."""

_LEGEND_ROW = 0.24  # inches
_NAME_LENGTH = 40
_BEST = "best step"
_GRPO = "GRPO, λ = 0"


def plot_run(runs: Sequence[Path], output: Path | None = None) -> Plotted:
    """Draw one run, or several overlaid: env-CE on the left, train reward and pass@1 on the right.

    A run in several environments is drawn as all of them together, and each, overlaid.

    Args:
        output: a file name (.png, .svg or .csv; all three are written) or a folder. Default: heldout_env_ce.* in the
            run directory; for several runs, comparison.* in their common folder.

    Raises:
        EchoError: no runs, a folder without metrics, runs in different folders without `output`, or a path that is
            not writable.
    """
    paths = list(dict.fromkeys(Path(os.path.abspath(run)) for run in runs))
    if not paths:
        raise EchoError("no run to plot", "name one or more run directories")
    for run in runs:
        open_run(run)  # names the path as it was given
    metrics = [series.metric for panel in _PANELS for series in panel.series]
    curves = [read_curve(path, name, metrics) for path, name in zip(paths, run_names(paths), strict=True)]
    if len(curves) == 1:
        curves += [read_curve(paths[0], name, metrics, name) for name in environment_names(paths[0])]
    if output is None and len({path.parent for path in paths}) > 1:
        raise EchoError("the runs are in different folders", "set the path of the picture with --output")
    stem = (
        picture_stem(output, runs[0], "heldout_env_ce")
        if len(paths) == 1
        else picture_stem(output, runs[0].parent, "comparison")
    )
    points = (
        (curve.name, step, metric, value)
        for curve in curves
        for metric in metrics
        for step, value in curve.series[metric]
    )
    reference = reference_of(open_run(runs[0])) if len(curves) == 1 else []
    return write_picture(stem, partial(_draw_runs, curves, reference), POINT_COLUMNS, points, height=PAIR_HEIGHT)


def plot_sweep(groups: Sequence[tuple[str, Sequence[Path]]], output: Path) -> Plotted:
    """Draw the held-out measures of a sweep: per label, the mean over its runs and a band from min to max.

    A step is drawn only if all evaluated runs of the label have a value there, so that a run that ends early does not
    bias the mean; if steps are omitted, the legend says so.

    Args:
        groups: (label, runs) pairs, such as "λ = 0.05" with one run per seed; groups with the same label are merged.
        output: as in `plot_run`; the files in a folder are comparison.*.

    Raises:
        EchoError: no groups, a group without runs, a folder without metrics, or a path that is not writable.
    """
    curves = [(label, [read_curve(path, path.name, SWEEP_METRICS) for path in runs]) for label, runs in groups]
    return plot_curves(curves, output)


def plot_curves(groups: Sequence[tuple[str, Sequence[Curve]]], output: Path) -> Plotted:
    """Draw the figure of `plot_sweep` from curves that have the `SWEEP_METRICS`.

    Raises:
        EchoError: no groups, a group without curves, or a path that is not writable.
    """
    curves_of: dict[str, list[Curve]] = {}
    for label, curves in groups:
        curves_of.setdefault(escape_unprintable(label), []).extend(curves)
    if not curves_of or not all(curves_of.values()):
        raise EchoError("no run to plot", "name at least one run for every label of the sweep")
    bands = [{metric: band(curves, metric) for metric in SWEEP_METRICS} for curves in curves_of.values()]
    points = (
        (label, step, f"{metric}/{statistic}", value)
        for label, by_metric in zip(curves_of, bands, strict=True)
        for metric, of in by_metric.items()
        for statistic, values in (("mean", of.mean), ("min", of.low), ("max", of.high))
        for step, value in zip(of.steps, values, strict=True)
    )
    draw = partial(_draw_sweep, list(curves_of), bands, [len(curves) for curves in curves_of.values()])
    return write_picture(picture_stem(output, output, "comparison"), draw, POINT_COLUMNS, points, height=PAIR_HEIGHT)


def _draw_runs(curves: Sequence[Curve], reference: Points, figure: Figure) -> None:
    alone = len(curves) == 1
    measures = {curve.selected_by for curve in curves}
    chosen = f"{_BEST}\nby {measures.pop()}" if len(measures) == 1 else f"{_BEST}, chosen\non validation"
    for axes, panel in _axes(figure):
        for index, curve in enumerate(curves):
            for series in panel.series:
                points = curve.series[series.metric]
                # With rewards of 0 and 1, the held-out mean reward is pass@1.
                if points and (series is panel.held_out or points != curve.series[panel.held_out.metric]):
                    look = _look(index, marked=series.marked or len(points) == 1)
                    axes.plot(*zip(*points, strict=True), **look, **series.style, label=series.label)
            if reference and panel.held_out.metric == METRIC:
                axes.plot(*zip(*reference, strict=True), **_REFERENCE, label=_GRPO)
            if star := _best_point(curve, panel.held_out.metric):
                # The star's value is in the legend, where it hides no point.
                best = f"{_BEST} {star[0]},\nby {curve.selected_by}:\n{panel.name} {star[1]:.3f}" if alone else chosen
                axes.plot([star[0]], [star[1]], **{**_look(index), **_STAR}, label=best)
        _finish(axes, panel, any(curve.series[of.metric] for curve in curves for of in panel.measured))
        handles, labels = axes.get_legend_handles_labels()
        drawn = dict(zip(labels, handles, strict=True))
        # The best point comes last, after the series in the panel's order.
        order = [label for label in (*(series.label for series in panel.series), _GRPO) if label in drawn]
        order += [label for label in drawn if label.startswith(_BEST)]
        # The legend is below the panel, where it hides no points.
        axes.legend(
            [drawn[label] if alone else _in_ink(drawn[label]) for label in order],
            order,
            loc="upper left",
            bbox_to_anchor=(-0.02, -0.15),
            ncols=2,
        )
    if alone:
        figure.suptitle(_title(curves[0]), x=0.012, ha="left", fontsize=13, fontweight="bold")
    else:
        _figure_legend(figure, [_title(curve) + _best(curve) for curve in curves])


def _draw_sweep(labels: Sequence[str], bands: Sequence[dict[str, Band]], runs: Sequence[int], figure: Figure) -> None:
    for axes, panel in _axes(figure):
        for index, by_metric in enumerate(bands):
            for series in panel.measured:
                of = by_metric[series.metric]
                if of.steps:
                    axes.fill_between(of.steps, of.low, of.high, color=_look(index)["color"], alpha=0.15, linewidth=0)
                    axes.plot(of.steps, of.mean, **_look(index), **series.style)
        drawn = [series for series in panel.measured if any(by_metric[series.metric].steps for by_metric in bands)]
        _finish(axes, panel, bool(drawn))
        axes.set_ylabel(panel.sweep_unit)
        axes.set_title(panel.sweep_title + (" · dotted: seen pairs" if panel.fallback in drawn else ""))
    headlines = [[by_metric[panel.held_out.metric] for panel in _PANELS] for by_metric in bands]
    _figure_legend(figure, [_band_title(*entry) for entry in zip(labels, headlines, runs, strict=True)])


def _axes(figure: Figure) -> list[tuple[Axes, _Panel]]:
    return list(zip(figure.subplots(1, len(_PANELS)), _PANELS, strict=True))


def _finish(axes: Axes, panel: _Panel, has_held_out: bool) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_title(panel.title)
    axes.set_xlabel("step")
    axes.set_ylabel(panel.unit)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    if panel.limits is not None and _are_within(panel.limits, axes):
        axes.set_ylim(*panel.limits)
    if not has_held_out:
        write_in_the_middle(axes, panel.nothing)


def _are_within(limits: tuple[float, float], axes: Axes) -> bool:
    """Return whether all points are within `limits`; rewards need not be between 0 and 1."""
    low, high = limits
    return all(low <= value <= high for line in axes.get_lines() for value in np.asarray(line.get_ydata(), float))


def _look(index: int, *, marked: bool = True) -> dict[str, Any]:
    marker = MARKERS[index % len(MARKERS)] if marked else "None"
    return {"color": COLOURS[index % len(COLOURS)], "marker": marker}


def _in_ink(handle: Any) -> Any:
    """Return a legend handle for a line style, in ink, since the style is the same for runs of all colours."""
    from matplotlib.lines import Line2D

    same = Line2D([], [])
    same.update_from(handle)
    same.set(color=INK, marker="*" if handle.get_marker() == "*" else "None")
    return same


def _figure_legend(figure: Figure, labels: Sequence[str]) -> None:
    """Add a legend below the panels, one line per run or label."""
    from matplotlib.lines import Line2D

    figure.set_figheight(PAIR_HEIGHT + _LEGEND_ROW * len(labels))
    handles = [Line2D([], [], **_look(index), **_THICK) for index in range(len(labels))]
    figure.legend(handles, labels, loc="outside lower left", ncols=1, borderaxespad=0.2)


def _title(curve: Curve) -> str:
    # The name needs a prefix: matplotlib omits labels that begin with an underscore from legends.
    name = without_middle(curve.name, _NAME_LENGTH)
    return f"run {name}" if curve.coefficient is None else f"λ = {curve.coefficient:g}: {name}"


def _best(curve: Curve) -> str:
    star = _best_point(curve, "heldout/env_ce")
    return "" if star is None else f" ({_BEST} {star[0]}: held-out env-CE {star[1]:.3f} nats/token)"


def _best_point(curve: Curve, metric: str) -> tuple[int, float] | None:
    """Return the point of `metric` at the step chosen on the validation split."""
    return next((point for point in curve.series[metric] if point[0] == curve.best_step), None)


def _band_title(label: str, bands: Sequence[Band], runs: int) -> str:
    seeds = "1 run" if runs == 1 else f"mean and min–max of {runs} runs"
    # A measure that no run has is missing for every label; its panel says so.
    missing = runs - min((of.runs for of in bands if of.runs), default=0)
    notes = [f"{missing} without evaluation"] if missing else []
    notes += ["at the steps common to all"] if any(of.uneven for of in bands) else []
    return f"{' ' if label.startswith('_') else ''}{without_middle(label, _NAME_LENGTH)} ({'; '.join([seeds, *notes])})"


def run_names(paths: Sequence[Path]) -> list[str]:
    """Return the runs' names, or, if two are equal, their paths below the common folder."""
    names = [escape_unprintable(path.name) for path in paths]
    if len(set(names)) == len(names):
        return names
    shared = os.path.commonpath(paths)
    return [escape_unprintable(path.relative_to(shared)) for path in paths]
