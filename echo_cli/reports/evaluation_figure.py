"""The picture of a held-out evaluation: bits per byte beside the baselines, env-CE by group, calibration or a curve."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from echo_cli.evaluation.records import (
    CSV_COLUMNS,
    HEADLINE,
    HELDOUT,
    INITIAL,
    POLICY,
    Comparison,
    Evaluation,
    Measured,
    ModelEvaluation,
    PolicyReport,
    csv_rows,
    model_title,
    pool_title,
)
from echo_cli.reports.figure import COLOURS, INK, MARKERS, Plotted, picture_stem, write_picture
from echo_cli.statistics import Estimate
from echo_cli.text import escape_unprintable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.gridspec import SubplotSpec

_HEIGHT = 9.2  # inches
_MOST_COMMANDS = 8
_TITLE: dict[str, Any] = {"fontsize": 13, "fontweight": "bold"}
_UNITS = {"env_ce": ("env-CE", "nats/token"), "env_bits_per_byte": ("bits per byte", "bits/byte")}
_WHISKER: dict[str, Any] = {"elinewidth": 1.2, "capsize": 2.5}
_REFERENCE = "#888888"
# Below the panel, where it hides no points.
_LEGEND: dict[str, Any] = {"fontsize": 10, "loc": "upper left", "bbox_to_anchor": (-0.02, -0.15), "ncols": 2}


def plot_evaluation(found: Evaluation, run: Path, output: Path | None = None) -> Plotted:
    """Draw an evaluation into the folder of its `run`, or to `output`, a file name or folder.

    Raises:
        EchoError: a place or kind of file that cannot be written.
    """
    pair = (found.before, found.after[-1])
    titles = (model_title(INITIAL, 0), model_title(POLICY, found.step))
    bars = [*pair[0].measured, *pair[1].measured, *found.baselines]
    draw = partial(_draw, f"run {found.run}: held-out evaluation", bars, pair, titles, found)
    stem = picture_stem(output, run, "heldout_evaluation")
    return write_picture(stem, draw, CSV_COLUMNS, csv_rows(found), height=_HEIGHT)


def plot_comparison(found: Comparison, folder: Path, output: Path | None = None) -> Plotted:
    """Draw a comparison of two runs into `folder`, or to `output`. Errors as in `plot_evaluation`."""
    bars = [*found.reports[0].measured, *found.reports[1].measured]
    titles = (_short(found.labels[0], 28), _short(found.labels[1], 28))
    draw = partial(_draw, "held-out comparison", bars, found.reports, titles, None)
    stem = picture_stem(output, folder, "heldout_comparison")
    return write_picture(stem, draw, CSV_COLUMNS, csv_rows(found), height=_HEIGHT)


def plot_models(found: ModelEvaluation, output: Path) -> Plotted:
    """Draw models without a run to `output`, a file name or folder. Errors as in `plot_evaluation`."""
    return write_picture(
        picture_stem(output, Path(), "heldout_models"),
        partial(_draw_models, found),
        CSV_COLUMNS,
        csv_rows(found),
        height=_HEIGHT,
    )


def _draw_models(found: ModelEvaluation, figure: Figure) -> None:
    """Bits per byte of all, env-CE of the models whose tokens are those of the first, by command, and calibration."""
    grid = figure.add_gridspec(2, 2)
    pool = next(iter(found.novel_pairs))
    reports = [model.report for model in found.models]
    titles = [_short(model.label, 28) for model in found.models]
    pairs = "every pair" if found.fit_pool is None else "novel pairs"
    comparable = [entry for model in found.models if model.same_tokens for entry in model.report.measured]
    _bars(figure.add_subplot(grid[0, 0]), found.measured, pairs)
    _bars(figure.add_subplot(grid[0, 1]), comparable, f"{pairs}, one tokenizer", "env_ce")
    measure = "env_ce" if found.same_tokens else "env_bits_per_byte"
    _commands(figure.add_subplot(grid[1, 0]), reports, titles, pool, measure)
    _reliability(figure.add_subplot(grid[1, 1]), reports, titles, pool)
    figure.suptitle(_short(f"held-out evaluation of {', '.join(titles)}", 80), x=0.012, ha="left", **_TITLE)


def _draw(
    title: str,
    bars: Sequence[Measured],
    pair: tuple[PolicyReport, PolicyReport],
    titles: tuple[str, str],
    evaluation: Evaluation | None,
    figure: Figure,
) -> None:
    grid = figure.add_gridspec(2, 2)
    _bars(figure.add_subplot(grid[0, 0]), bars)
    _commands(figure.add_subplot(grid[0, 1]), pair, titles)
    _positions(figure.add_subplot(grid[1, 0]), pair, titles)
    if evaluation is not None and len(evaluation.steps) > 1:
        _curve(figure, grid[1, 1], evaluation)
    else:
        _reliability(figure.add_subplot(grid[1, 1]), pair, titles)
    figure.suptitle(_short(title, 80), x=0.012, ha="left", **_TITLE)


def _bars(
    axes: Axes, measured: Sequence[Measured], pairs: str = "novel pairs", measure: str = "env_bits_per_byte"
) -> None:
    entries = {(e.pool, e.model): e for e in measured if e.group == HEADLINE}
    pools = list(dict.fromkeys(pool for pool, _ in entries))
    models = {model: entry.step for (_, model), entry in entries.items()}
    height = 0.8 / max(len(pools), 1)
    for number, pool in enumerate(pools):
        found = [(row, entries[pool, model]) for row, model in enumerate(models) if (pool, model) in entries]
        estimates = [entry.measures.estimates[measure] for _, entry in found]
        axes.barh(
            [row - 0.4 + height * (number + 0.5) for row, _ in found],
            [estimate.value for estimate in estimates],
            height * 0.92,
            xerr=_errors(estimates),
            color=COLOURS[number % len(COLOURS)],
            ecolor=INK,
            error_kw=_WHISKER,
            label=_short(pool_title(pool), 20),
        )
    axes.set_yticks(range(len(models)), [_short(model_title(model, step), 24) for model, step in models.items()])
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    name, unit = _UNITS[measure]
    axes.set_title(f"{name}, {pairs}")
    axes.set_xlabel(f"{unit}, lower is better")
    if not entries:
        _nothing(axes)
    elif len(pools) > 1:
        axes.legend(**_LEGEND)


def _commands(
    axes: Axes,
    reports: Sequence[PolicyReport],
    titles: Sequence[str],
    pool: str = HELDOUT,
    measure: str = "env_ce",
) -> None:
    keys = list(_group(reports[0], "command", pool))[:_MOST_COMMANDS]
    size = "tokens" if measure == "env_ce" else "bytes"
    rows: dict[str, str] = {}
    for number, (report, title) in enumerate(zip(reports, titles, strict=True)):
        found = _group(report, "command", pool)
        rows |= {key: f"{_short(escape_unprintable(key), 14)} ({getattr(found[key].measures, size)})" for key in keys}
        estimates = [found[key].measures.estimates[measure] for key in keys]
        axes.errorbar(
            [estimate.value for estimate in estimates],
            [row + 0.44 / len(reports) * (number - (len(reports) - 1) / 2) for row in range(len(keys))],
            xerr=_errors(estimates),
            linestyle="none",
            **_look(number, title),
        )
    axes.set_yticks(range(len(keys)), [rows[key] for key in keys])
    axes.set_ylim(max(len(keys), 1) - 0.5, -0.5)
    axes.set_xlim(left=0)
    name, unit = _UNITS[measure]
    axes.set_title(f"{_short(pool_title(pool), 20)} {name} by command ({size})")
    axes.set_xlabel(unit)
    _legend_or_nothing(axes, bool(keys))


def _positions(axes: Axes, pair: Sequence[PolicyReport], titles: Sequence[str]) -> None:
    keys = list(_group(pair[0], "position"))
    for number, (report, title) in enumerate(zip(pair, titles, strict=True)):
        estimates = [_group(report, "position")[key].measures.estimates["env_ce"] for key in keys]
        axes.errorbar(
            [place + 0.08 * (number - 0.5) for place in range(len(keys))],
            [estimate.value for estimate in estimates],
            yerr=_errors(estimates),
            **_look(number, title),
        )
    axes.set_xticks(range(len(keys)), keys)
    axes.set_ylim(bottom=0)
    axes.set_title("held-out env-CE by position in the output")
    axes.set_xlabel("tokens of the output before this one")
    axes.set_ylabel("nats/token")
    _legend_or_nothing(axes, bool(keys))


def _reliability(axes: Axes, reports: Sequence[PolicyReport], titles: Sequence[str], pool: str = HELDOUT) -> None:
    axes.plot([0, 1], [0, 1], color="#BBBBBB", linewidth=1, linestyle=(0, (4, 2)), zorder=1)
    drawn = False
    for number, (report, title) in enumerate(zip(reports, titles, strict=True)):
        bins = next((entry.bins for entry in report.reliability if entry.pool == pool), [])
        if bins:
            confidence, accuracy, tokens = zip(*bins, strict=True)
            look = _look(number, title)
            axes.plot(confidence, accuracy, color=look["color"], linewidth=1.2, zorder=2)
            most = max(tokens)
            axes.scatter(
                *(confidence, accuracy, [12 + 90 * count / most for count in tokens]),
                **{"color": look["color"], "marker": look["marker"], "label": title, "zorder": 3},
            )
            drawn = True
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    axes.set_title(f"calibration on {_short(pool_title(pool), 20)} (area: tokens)")
    axes.set_xlabel("confidence in the most probable token")
    axes.set_ylabel("how often it is right")
    _legend_or_nothing(axes, drawn)


def _curve(figure: Figure, cell: SubplotSpec, found: Evaluation) -> None:
    """env-CE of every pool over the steps and, where tasks were played, pass@1 below it."""
    from matplotlib.ticker import MaxNLocator

    reports = [(0, found.before), *zip(found.steps, found.after, strict=True)]
    if found.steps[0] == 0:
        del reports[0]  # the checkpoint of step 0 is the start
    ks = sorted({entry.k for entry in found.passed})
    inner = cell.subgridspec(2 if ks else 1, 1)
    upper = figure.add_subplot(inner[0, 0])
    panels: list[tuple[Axes, str, int | None]] = [(upper, "env-CE, nats/token", None)]
    if ks:
        panels.append((figure.add_subplot(inner[1, 0], sharex=upper), f"pass@{ks[0]}", ks[0]))
        upper.tick_params(labelbottom=False)
    for axes, unit, k in panels:
        for number, pool in enumerate(found.novel_pairs):
            points = [(step, _of_report(report, pool, k)) for step, report in reports]
            measured = [(step, estimate) for step, estimate in points if estimate is not None]
            if measured:
                steps, estimates = zip(*measured, strict=True)
                axes.errorbar(
                    steps,
                    [estimate.value for estimate in estimates],
                    yerr=_errors(estimates),
                    color=COLOURS[number % len(COLOURS)],
                    marker=MARKERS[number % len(MARKERS)],
                    label=_short(pool_title(pool), 20),
                    **_WHISKER,
                )
        axes.set_ylabel(unit)
        axes.set_ylim(bottom=0)
    lowest = panels[-1][0]
    lowest.set_xlabel("step")
    lowest.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    upper.set_title("over the checkpoints, novel pairs")
    below = -0.15 * len(panels)  # in heights of the lowest axes
    lowest.legend(*upper.get_legend_handles_labels(), **{**_LEGEND, "bbox_to_anchor": (-0.02, below)})


def _of_report(report: PolicyReport, pool: str, k: int | None) -> Estimate | None:
    """A pool's env-CE, or with `k` its pass@k."""
    if k is not None:
        return next((entry.estimate for entry in report.passed if (entry.pool, entry.k) == (pool, k)), None)
    found = (e.measures.estimates["env_ce"] for e in report.measured if (e.pool, e.group) == (pool, HEADLINE))
    return next(found, None)


def _group(report: PolicyReport, group: str, pool: str = HELDOUT) -> dict[str, Measured]:
    """By key; policies that are measured over the same text have the same keys."""
    return {entry.key: entry for entry in report.measured if (entry.pool, entry.group) == (pool, group)}


def _look(number: int, title: str) -> dict[str, Any]:
    colour = COLOURS[(number - 1) % len(COLOURS)] if number else _REFERENCE
    look = {"color": colour, "marker": MARKERS[number % len(MARKERS)], "markersize": 6, "label": title}
    return {**look, "linewidth": 1.6, "zorder": 2 + number, **_WHISKER}


def _errors(estimates: Sequence[Estimate]) -> list[list[float]]:
    """Lengths of the whiskers below and above; none where there is no interval."""
    return [
        [estimate.value - (estimate.value if estimate.low is None else estimate.low) for estimate in estimates],
        [(estimate.value if estimate.high is None else estimate.high) - estimate.value for estimate in estimates],
    ]


def _legend_or_nothing(axes: Axes, something: bool) -> None:
    if something:
        axes.legend(**_LEGEND)
    else:
        _nothing(axes)


def _nothing(axes: Axes) -> None:
    axes.text(0.5, 0.5, "no novel pairs", transform=axes.transAxes, ha="center", fontsize=12)


def _short(text: str, length: int) -> str:
    half = length // 2
    return text if len(text) <= length else f"{text[: half - 1]}…{text[-half:]}"
