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

Summary = Mapping[str, Any]

COLUMNS = (
    ("lambda", ("lambda",)),
    ("env_ce_before", ("heldout", "before", "env_ce")),
    ("env_ce_best", ("heldout", "best", "env_ce")),
    ("best_step", ("heldout", "best", "step")),
    ("env_ce_last", ("heldout", "last", "env_ce")),
    ("ood_env_ce_last", ("ood", "last", "env_ce")),
    ("pass_at_1_before", ("heldout", "before", "pass_at_1")),
    ("pass_at_1_last", ("heldout", "last", "pass_at_1")),
    ("portable_lambda", ("portable_lambda",)),
    ("seconds", ("seconds",)),
)


@dataclass(frozen=True)
class Cell:
    """One run of a sweep."""

    coeff: float
    config: Config
    path: Path


def parse_words(words: Sequence[str]) -> tuple[list[float], list[str]]:
    """λ values and `key.path=value` overrides, told apart by the `=`; a value given twice counts once.

    Raises:
        EchoError: no value, or a word that is neither.
    """
    overrides = [word for word in words if "=" in word]
    coeffs: list[float] = []
    for word in words:
        if "=" in word:
            continue
        try:
            coeff = float(word)
        except ValueError:
            raise EchoError(f"'{word}' is not a λ value", "give numbers: echo-cli sweep-lambda 0 0.005 0.05") from None
        if not 0 <= coeff < float("inf"):
            raise EchoError(f"λ is {word}", "λ is 0 or more; 0 is plain GRPO")
        if coeff not in coeffs:
            coeffs.append(coeff)
    if not coeffs:
        raise EchoError("no λ values", "give at least one: echo-cli sweep-lambda 0 0.005 0.05")
    return coeffs, overrides


def cells(coeffs: Sequence[float], config_of: Callable[[float], Config], folder: Path, seed: int) -> list[Cell]:
    """The runs of a sweep, a folder each below `folder`."""
    return [Cell(coeff, config_of(coeff), folder / f"lambda-{coeff:g}-seed{seed}") for coeff in coeffs]


def finished_summary(cell: Cell) -> Summary | None:
    """The summary of a cell that is done, or None if it must be trained or resumed."""
    if not is_run(cell.path):
        return None
    summary = open_run(cell.path).read_summary()
    if summary is None or summary["status"] != "finished" or summary["steps"] != cell.config.steps:
        return None
    return summary


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


def _lookup(summary: Any, path: Sequence[str]) -> Any:
    for key in path:
        summary = None if summary is None else summary.get(key)
    return summary
