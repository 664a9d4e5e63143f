"""Figure of a sweep along its arms: final held-out env-CE and pass@1 over the seeds, as PNG, SVG and CSV."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from echo_cli.reports.figure import (
    COLOURS,
    INK,
    PAIR_HEIGHT,
    POINT_COLUMNS,
    Plotted,
    write_in_the_middle,
    write_picture,
)
from echo_cli.sweeps.arms import column_of, row_label
from echo_cli.sweeps.results import ArmResult, CellResult, Figures, Measure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Title, unit, name of the measure at the last step, name of the measure before training.
_PANELS = (
    ("held-out env-CE at the last step", "env-CE, nats/token", "env_ce_last", "env_ce_start_last"),
    ("held-out pass@1 at the last step", "fraction solved", "pass_at_1_last", "pass_at_1_before"),
)
# Widths, in units of the distance between neighbouring λ.
_WIDTH, _BESIDE, _ACROSS = 0.2, 0.14, 0.32
# With more than `_SOME` λ, tick labels are small; with more than `_MANY`, they have no room for the verdicts.
_SOME, _MANY = 4, 6
_TICK = 12
"""Length of a line of an arm's name, characters."""


def plot_lambda_axis(results: Sequence[ArmResult], cells: Sequence[CellResult], folder: Path) -> Plotted:
    """Draw lambda_axis.*: per arm, its seeds as dots, their mean with interval, and the mean before training.

    The λ are evenly spaced in ascending order, not to scale: 0 and 1e-3 are as far apart as 1 and 10. Named arms follow
    in their order.

    Raises:
        EchoError: the folder is not writable.
    """
    ordered = sorted(results, key=lambda result: (result.arm.named, 0 if result.arm.named else result.coeff))
    dots = [[cell.figures for cell in cells if cell.arm == result.arm] for result in ordered]
    draw = partial(_draw, ordered, dots)
    return write_picture(folder / "lambda_axis", draw, POINT_COLUMNS, _points(cells), height=PAIR_HEIGHT)


def _points(cells: Sequence[CellResult]) -> Iterator[tuple[str, int, str, float]]:
    for cell in cells:
        for _, _, last, before in _PANELS:
            for name in (before, last):
                if (value := cell.figures[name]) is not None:
                    step = 0 if name == before or cell.summary is None else cell.summary["steps"]
                    yield cell.name, step, name, value


def _draw(results: Sequence[ArmResult], dots: Sequence[Sequence[Figures]], figure: Figure) -> None:
    column = column_of(result.arm for result in results)
    panels: Sequence[Axes] = list(figure.subplots(1, len(_PANELS)))
    for axes, colour, (title, unit, last, before) in zip(panels, COLOURS, _PANELS, strict=False):
        for position, (result, seeds) in enumerate(zip(results, dots, strict=True)):
            values = [value for of in seeds if (value := of[last]) is not None]
            _draw_lambda(axes, position, values, result.measures[last], result.measures[before], colour)
        axes.set_title(title)
        axes.set_ylabel(unit)
        axes.set_xlabel("λ (not to scale)" if column == "λ" else column)
        ticks = [_tick(result, column, judged=len(results) <= _MANY) for result in results]
        axes.set_xticks(range(len(results)), ticks, fontsize=11 if len(results) <= _SOME else 8)
        axes.set_xlim(-0.5, len(results) - 0.5)
        axes.grid(visible=False, axis="x")
        if all(result.measures[last] is None for result in results):
            met = last == "env_ce_last" and any(result.measures["env_ce_seen_last"] for result in results)
            write_in_the_middle(axes, "every held-out pair was executed in training" if met else "not measured")
        elif unit == "fraction solved":  # an interval may reach beyond [0, 1]
            low, high = axes.get_ylim()
            axes.set_ylim(max(low, -0.03), min(high, 1.03))
    handles: dict[str, Any] = {}
    for axes in panels:
        drawn, labels = axes.get_legend_handles_labels()
        handles = dict(zip(labels, drawn, strict=True)) | handles
    figure.legend(list(handles.values()), list(handles), loc="outside lower left", ncols=3)


def _draw_lambda(
    axes: Axes, position: int, values: Sequence[float], end: Measure | None, start: Measure | None, colour: str
) -> None:
    """Draw one λ: the seeds left of `position`, their mean right of it, the mean before training across both."""
    if values:
        gap = _WIDTH / max(1, len(values) - 1)
        at = [position - _WIDTH / 2 - _BESIDE + gap * index for index in range(len(values))]
        seeds: dict[str, Any] = {"color": colour, "alpha": 0.5, "markersize": 6, "markeredgewidth": 0}
        axes.plot(at if len(at) > 1 else [position - _BESIDE], values, "o", **seeds, label="one seed")
    if start is not None:
        ends = (position - _ACROSS, position + _ACROSS)
        axes.plot(ends, [start.estimate.value] * 2, color=INK, linewidth=1.2, dashes=(4, 2), label="before training")
    if end is not None:
        value, low, high = end.estimate.value, end.estimate.low, end.estimate.high
        errors = None if low is None or high is None else [[value - low], [high - value]]
        mean: dict[str, Any] = {
            "color": colour,
            "fmt": "D",
            "markersize": 8,
            "markeredgecolor": "white",
            "capsize": 4,
            "linewidth": 1.8,
        }
        axes.errorbar([position + _BESIDE], [value], yerr=errors, **mean, label="mean, 95 % interval")


def _tick(result: ArmResult, column: str, *, judged: bool) -> str:
    finished = f"{result.statuses.count('finished')}/{len(result.statuses)} runs"
    label = textwrap.wrap(row_label(result.arm, column), _TICK)
    return "\n".join([*label, *([result.verdict.name] if judged else []), finished])
