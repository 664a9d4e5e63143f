"""Train once per λ from the same start and seed, and lay the results side by side."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from echo_cli.config import Config
from echo_cli.error import EchoError
from echo_cli.run import is_run, open_run
from echo_cli.storage import write_atomic, write_json
from echo_cli.summary import is_finished

Summary = Mapping[str, Any]

COLUMNS = (
    ("lambda", ("lambda",)),
    ("env_ce_before", ("heldout", "before", "env_ce")),
    ("env_ce_start_best", ("heldout", "best", "env_ce_start")),
    ("env_ce_best", ("heldout", "best", "env_ce")),
    ("best_step", ("heldout", "best", "step")),
    ("env_ce_last", ("heldout", "last", "env_ce")),
    ("ood_env_ce_last", ("ood", "last", "env_ce")),
    ("pass_at_1_before", ("heldout", "before", "pass_at_1")),
    ("pass_at_1_last", ("heldout", "last", "pass_at_1")),
    ("portable_lambda", ("portable_lambda",)),
    ("seconds", ("seconds",)),
    ("status", ("status",)),
)


@dataclass(frozen=True)
class Cell:
    """One run of a sweep."""

    coeff: float
    config: Config
    path: Path

    @property
    def label(self) -> str:
        """The cell's λ, as tables and pictures name it."""
        return f"λ = {_shown(self.coeff)}"


def parse_words(words: Sequence[str]) -> tuple[list[float], list[str]]:
    """λ values and `key.path=value` overrides, told apart by the `=`; a value given twice counts once.

    Raises:
        EchoError: no value, or a word that is neither.
    """
    overrides = [word for word in words if "=" in word]
    coeffs: list[float] = []
    for word in words:
        if "=" not in word and (coeff := parse_coeff(word)) not in coeffs:
            coeffs.append(coeff)
    if not coeffs:
        raise EchoError("no λ values", "give at least one: echo-cli sweep-lambda 0 0.005 0.05")
    return coeffs, overrides


def parse_coeff(word: str) -> float:
    """A λ value from the command line.

    Raises:
        EchoError: it is not a number, not finite or negative.
    """
    try:
        coeff = float(word)
    except ValueError:
        raise EchoError(f"'{word}' is not a λ value", "give a number, such as 0.05") from None
    if not 0 <= coeff < float("inf"):
        raise EchoError(f"λ is {word}", "λ is a finite number, 0 or more; 0 is plain GRPO")
    return coeff + 0.0  # -0 is 0


def cells(coeffs: Sequence[float], config_of: Callable[[float], Config], folder: Path, seed: int) -> list[Cell]:
    """The runs of a sweep, a folder each below `folder`."""
    return [Cell(coeff, config_of(coeff), folder / f"lambda-{_shown(coeff)}-seed{seed}") for coeff in coeffs]


def finished_summary(cell: Cell) -> Summary | None:
    """The summary of a cell that is done, or None if it must be trained or resumed."""
    if not is_run(cell.path):
        return None
    summary = open_run(cell.path).read_summary()
    return summary if is_finished(summary, cell.config.steps) else None


def run_sweep(
    planned: Sequence[Cell],
    train_cell: Callable[[Cell, bool], Summary],
    *,
    overwrite: bool,
    should_stop: Callable[[], bool],
) -> list[Summary] | None:
    """Train the cells that are not finished, one after the other; a diverged or collapsed one does not end the sweep.

    Args:
        train_cell: trains or (True) resumes a cell and returns its summary.

    Returns:
        A summary for each cell, or None if the sweep was stopped.

    Raises:
        EchoError: as `train_cell`, divergence and collapse apart; or, before any training, a cell's folder has another
            config's run.
    """
    from echo_cli.session import check_same_config  # loads torch

    resumed = [is_run(cell.path) and not overwrite for cell in planned]
    for cell, resume in zip(planned, resumed, strict=True):
        if resume:
            check_same_config(open_run(cell.path), cell.config)
    summaries: list[Summary] = []
    for cell, resume in zip(planned, resumed, strict=True):
        if should_stop():
            return None
        summary = finished_summary(cell) if resume else None
        if summary is None:
            try:
                summary = train_cell(cell, resume)
            except EchoError as error:
                summary = open_run(cell.path).read_summary() if error.exit_code == 3 else None
                if summary is None:
                    raise
        if summary["status"] == "stopped":
            return None
        summaries.append(summary)
    return summaries


def table(summaries: Sequence[Summary]) -> list[dict[str, Any]]:
    """One row a λ, with the columns of `COLUMNS`."""
    return [{name: _lookup(summary, path) for name, path in COLUMNS} for summary in summaries]


def write_sweep(folder: Path, summaries: Sequence[Summary]) -> None:
    """Write sweep.json and sweep.csv."""
    rows = table(summaries)
    write_json(folder / "sweep.json", {"rows": rows, "summaries": list(summaries)})
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=[name for name, _ in COLUMNS])
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(folder / "sweep.csv", text.getvalue().encode())


def _shown(coeff: float) -> str:
    return f"{coeff:.12g}"


def _lookup(summary: Any, path: Sequence[str]) -> Any:
    for key in path:
        summary = None if summary is None else summary.get(key)
    return summary
