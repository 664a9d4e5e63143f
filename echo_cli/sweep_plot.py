"""A sweep along its λ axis: where held-out env-CE and pass@1 ended, over the seeds, as PNG, SVG and CSV."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from echo_cli.plot import COLOURS, INK, Plotted, Point, write_figure
from echo_cli.sweep import shown_coeff
from echo_cli.sweep_result import CellResult, Figures, LambdaResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The title, the unit, the figure at the end and the one before training.
_PANELS = (
    ("held-out env-CE at the last step", "env-CE, nats/token", "env_ce_last", "env_ce_start_last"),
    ("held-out pass@1 at the last step", "fraction solved", "pass_at_1_last", "pass_at_1_before"),
)
_JITTER = 0.24  # of the distance between two λ, over all seeds
_BESIDE = 0.2


def plot_lambda_axis(
    results: Sequence[LambdaResult], cells: Sequence[CellResult], figures: Sequence[Figures], folder: Path
) -> Plotted:
    """Draw lambda_axis.*: for every λ its seeds as dots, their mean with interval, and the mean before training.

    The λ stand side by side in rising order, not to scale: 0 and 1e-3 are as far apart as 1 and 10.

    Raises:
        EchoError: the folder cannot be written.
    """
    ordered = sorted(results, key=lambda result: result.coeff)
    dots = [
        [values for cell, values in zip(cells, figures, strict=True) if cell.coeff == result.coeff]
        for result in ordered
    ]
    return write_figure(folder / "lambda_axis", partial(_draw, ordered, dots), _points(cells, figures))


def _points(cells: Sequence[CellResult], figures: Sequence[Figures]) -> Iterator[Point]:
    for cell, values in zip(cells, figures, strict=True):
        for _, _, last, before in _PANELS:
            for name in (before, last):
                if (value := values[name]) is not None:
                    step = 0 if name == before or cell.summary is None else cell.summary["steps"]
                    yield cell.name, step, name, value


def _draw(results: Sequence[LambdaResult], dots: Sequence[Sequence[Figures]], figure: Figure) -> None:
    panels: Sequence[Axes] = list(figure.subplots(1, len(_PANELS)))
    for number, (axes, (title, unit, last, before)) in enumerate(zip(panels, _PANELS, strict=True)):
        for position, (result, seeds) in enumerate(zip(results, dots, strict=True)):
            values = [value for of in seeds if (value := of[last]) is not None]
            offsets = [
                _JITTER * (index / (len(values) - 1) - 0.5) if len(values) > 1 else 0 for index in range(len(values))
            ]
            axes.plot(
                [position + offset for offset in offsets], values, "o", color=COLOURS[number], alpha=0.45, markersize=5,
                markeredgewidth=0, label="one seed" if position == 0 else None,
            )  # fmt: skip
            if (start := result.measures[before]) is not None:
                axes.plot([position], [start.estimate.value], "_", color=INK, markersize=26, label="before training")
            if (end := result.measures[last]) is not None:
                value, low, high = end.estimate.value, end.estimate.low, end.estimate.high
                errors = None if low is None or high is None else [[value - low], [high - value]]
                axes.errorbar(
                    [position + _BESIDE], [value], yerr=errors, fmt="D", color=COLOURS[number], markersize=7,
                    capsize=4, linewidth=1.8, markeredgecolor="white", label="mean, 95 % interval",
                )  # fmt: skip
        axes.set_title(title)
        axes.set_ylabel(unit)
        axes.set_xlabel("λ (not to scale)")
        axes.set_xticks(range(len(results)), [_tick(result) for result in results])
        axes.set_xlim(-0.5, len(results) - 0.5)
        axes.grid(visible=False, axis="x")
        if all(result.measures[last] is None for result in results):
            axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", fontsize=12)
    handles, labels = panels[0].get_legend_handles_labels()
    drawn = dict(zip(labels, handles, strict=True))
    figure.legend(list(drawn.values()), list(drawn), loc="outside lower left", ncols=3)


def _tick(result: LambdaResult) -> str:
    finished = result.statuses.count("finished")
    return f"{shown_coeff(result.coeff)}\n{result.verdict.name}\n{finished} of {len(result.statuses)}"
