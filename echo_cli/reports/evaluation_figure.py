"""Figure of a held-out evaluation: bits per byte with the baselines, env-CE by group, calibration or a curve."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from echo_cli.evaluation.records import CSV_COLUMNS, Evaluation, ModelReport, csv_rows, pool_title
from echo_cli.reports.figure import (
    COLOURS,
    INK,
    MARKERS,
    Plotted,
    write_in_the_middle,
    write_picture,
)
from echo_cli.statistics import Estimate
from echo_cli.text import escape_unprintable, without_middle

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
_NO_PAIRS = "no novel pairs"
# The legend is below the panel, so that it covers no points.
_LEGEND: dict[str, Any] = {"fontsize": 10, "loc": "upper left", "bbox_to_anchor": (-0.02, -0.15), "ncols": 2}


def plot_evaluation(found: Evaluation, stem: Path) -> Plotted:
    """Draw an evaluation and write it as PNG, SVG and CSV.

    Args:
        stem: path of the files without extension.

    Raises:
        EchoError: the files cannot be written.
    """
    return write_picture(stem, partial(_draw, found), CSV_COLUMNS, csv_rows(found), height=_HEIGHT)


def _draw(found: Evaluation, figure: Figure) -> None:
    """Draw four panels.

    1. Bits per byte.
    2. By command, env-CE, or bits per byte if the models' tokens differ.
    3. For runs, env-CE by position; for models, env-CE of the models that have the first model's tokens.
    4. Calibration, or a curve over several checkpoints.
    """
    grid = figure.add_gridspec(2, 2)
    pools, policies = list(found.novel_pairs), found.shown
    titles = [without_middle(policy.title, 28) for policy in policies]
    measure = "env_ce" if found.same_tokens else "env_bits_per_byte"
    pairs = "all pairs" if found.kind == "models" and found.fit_pool is None else "novel pairs"
    models = [*policies, *found.baselines]
    _bars(figure.add_subplot(grid[0, 0]), models, pools, pairs, "env_bits_per_byte")
    if found.kind == "models":
        comparable = [policy for policy in policies if policy.same_tokens]
        _bars(figure.add_subplot(grid[0, 1]), comparable, pools, f"{pairs}, one tokenizer", "env_ce")
        _commands(figure.add_subplot(grid[1, 0]), policies, titles, pools[0], measure)
        title = f"held-out evaluation of {', '.join(titles)}"
    else:
        _commands(figure.add_subplot(grid[0, 1]), policies, titles, pools[0], measure)
        _positions(figure.add_subplot(grid[1, 0]), policies, titles, pools[0])
        title = "held-out comparison"
        if found.kind == "run":
            title = f"run {escape_unprintable(policies[0].run)}: held-out evaluation"
    if found.is_curve:
        _curve(figure, grid[1, 1], found)
    else:
        _reliability(figure.add_subplot(grid[1, 1]), policies, titles, pools[0])
    figure.suptitle(without_middle(title, 80), x=0.012, ha="left", **_TITLE)


def _bars(axes: Axes, models: Sequence[ModelReport], pools: Sequence[str], pairs: str, measure: str) -> None:
    models = [model for model in models if any(model.headline(pool) for pool in pools)]
    pools = [pool for pool in pools if any(model.headline(pool) for model in models)]
    height = 0.8 / max(len(pools), 1)
    for number, pool in enumerate(pools):
        found = [(row, each) for row, model in enumerate(models) if (each := model.estimate(pool, measure))]
        estimates = [each for _, each in found]
        axes.barh(
            [row - 0.4 + height * (number + 0.5) for row, _ in found],
            [estimate.value for estimate in estimates],
            height * 0.92,
            xerr=_errors(estimates),
            color=COLOURS[number % len(COLOURS)],
            ecolor=INK,
            error_kw=_WHISKER,
            label=without_middle(pool_title(pool), 20),
        )
    axes.set_yticks(range(len(models)), [without_middle(model.title, 24) for model in models])
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    name, unit = _UNITS[measure]
    axes.set_title(f"{name}, {pairs}")
    axes.set_xlabel(f"{unit}, lower is better")
    if not models:
        write_in_the_middle(axes, _NO_PAIRS)
    elif len(pools) > 1:
        axes.legend(**_LEGEND)


def _commands(axes: Axes, policies: Sequence[ModelReport], titles: Sequence[str], pool: str, measure: str) -> None:
    keys = list(policies[0].group(pool, "command"))[:_MOST_COMMANDS]
    size = "tokens" if measure == "env_ce" else "bytes"
    rows: dict[str, str] = {}
    for number, (policy, title) in enumerate(zip(policies, titles, strict=True)):
        found = policy.group(pool, "command")
        rows |= {key: f"{without_middle(escape_unprintable(key), 14)} ({getattr(found[key], size)})" for key in keys}
        estimates = [found[key].estimates[measure] for key in keys]
        axes.errorbar(
            [estimate.value for estimate in estimates],
            [row + 0.44 / len(policies) * (number - (len(policies) - 1) / 2) for row in range(len(keys))],
            xerr=_errors(estimates),
            linestyle="none",
            **_look(number, title),
        )
    axes.set_yticks(range(len(keys)), [rows[key] for key in keys])
    axes.set_ylim(max(len(keys), 1) - 0.5, -0.5)
    axes.set_xlim(left=0)
    name, unit = _UNITS[measure]
    axes.set_title(f"{without_middle(pool_title(pool), 20)} {name} by command ({size})")
    axes.set_xlabel(unit)
    _legend_or_nothing(axes, bool(keys))


def _positions(axes: Axes, policies: Sequence[ModelReport], titles: Sequence[str], pool: str) -> None:
    keys = list(policies[0].group(pool, "position"))
    for number, (policy, title) in enumerate(zip(policies, titles, strict=True)):
        estimates = [policy.group(pool, "position")[key].estimates["env_ce"] for key in keys]
        axes.errorbar(
            [place + 0.08 * (number - 0.5) for place in range(len(keys))],
            [estimate.value for estimate in estimates],
            yerr=_errors(estimates),
            **_look(number, title),
        )
    axes.set_xticks(range(len(keys)), keys)
    axes.set_ylim(bottom=0)
    axes.set_title(f"{pool_title(pool)} env-CE by position in the output")
    axes.set_xlabel("preceding tokens of the output")
    axes.set_ylabel("nats/token")
    _legend_or_nothing(axes, bool(keys))


def _reliability(axes: Axes, policies: Sequence[ModelReport], titles: Sequence[str], pool: str) -> None:
    axes.plot([0, 1], [0, 1], color="#BBBBBB", linewidth=1, linestyle=(0, (4, 2)), zorder=1)
    drawn = False
    for number, (policy, title) in enumerate(zip(policies, titles, strict=True)):
        if bins := policy.reliability.get(pool):
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
    axes.set_title(f"calibration on {without_middle(pool_title(pool), 20)} (area: tokens)")
    axes.set_xlabel("confidence in the most probable token")
    axes.set_ylabel("accuracy")
    _legend_or_nothing(axes, drawn)


def _curve(figure: Figure, cell: SubplotSpec, found: Evaluation) -> None:
    """Draw env-CE of every pool over the steps and, below it, pass@k with the lowest k if tasks were played."""
    from matplotlib.ticker import MaxNLocator

    start, *checkpoints = found.policies
    policies = checkpoints if checkpoints[0].step == start.step else found.policies  # both step 0
    inner = cell.subgridspec(2 if found.ks else 1, 1)
    upper = figure.add_subplot(inner[0, 0])
    panels: list[tuple[Axes, str, int | None]] = [(upper, "env-CE, nats/token", None)]
    if found.ks:
        lowest_k = found.ks[0]
        panels.append((figure.add_subplot(inner[1, 0], sharex=upper), f"pass@{lowest_k}", lowest_k))
        upper.tick_params(labelbottom=False)
    for axes, unit, k in panels:
        for number, pool in enumerate(found.novel_pairs):
            points = [(of.step, of.estimate(pool, "env_ce") if k is None else of.pass_at(pool, k)) for of in policies]
            measured = [(step, estimate) for step, estimate in points if estimate is not None]
            if measured:
                steps, estimates = zip(*measured, strict=True)
                axes.errorbar(
                    steps,
                    [estimate.value for estimate in estimates],
                    yerr=_errors(estimates),
                    color=COLOURS[number % len(COLOURS)],
                    marker=MARKERS[number % len(MARKERS)],
                    label=without_middle(pool_title(pool), 20),
                    **_WHISKER,
                )
        axes.set_ylabel(unit)
        axes.set_ylim(bottom=0)
    lowest = panels[-1][0]
    lowest.set_xlabel("step")
    lowest.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    upper.set_title("by checkpoint, novel pairs")
    below = -0.15 * len(panels)  # in heights of the lowest axes
    lowest.legend(*upper.get_legend_handles_labels(), **{**_LEGEND, "bbox_to_anchor": (-0.02, below)})


def _look(number: int, title: str) -> dict[str, Any]:
    colour = COLOURS[(number - 1) % len(COLOURS)] if number else _REFERENCE
    look = {"color": colour, "marker": MARKERS[number % len(MARKERS)], "markersize": 6, "label": title}
    return {**look, "linewidth": 1.6, "zorder": 2 + number, **_WHISKER}


def _errors(estimates: Sequence[Estimate]) -> list[list[float]]:
    """Return the lengths of the whiskers below and above; 0 without an interval."""
    return [
        [estimate.value - (estimate.value if estimate.low is None else estimate.low) for estimate in estimates],
        [(estimate.value if estimate.high is None else estimate.high) - estimate.value for estimate in estimates],
    ]


def _legend_or_nothing(axes: Axes, something: bool) -> None:
    if something:
        axes.legend(**_LEGEND)
    else:
        write_in_the_middle(axes, _NO_PAIRS)
