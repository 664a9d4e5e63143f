"""The files of a sweep: sweep.json, sweep.csv with a line a λ, cells.csv with a line a run."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from echo_cli.config.schema import Config
from echo_cli.files import write_atomic, write_json
from echo_cli.sweeps.results import DIFFERENCES, FIGURES, CellResult, Figures, LambdaResult
from echo_cli.sweeps.verdict import RULE

_MEASURES = (*FIGURES, *(f"{name}_difference" for name in DIFFERENCES))
_STATISTICS = ("value", "low", "high", "spread", "seeds")


def sweep_object(
    config: Config, cells: Sequence[CellResult], figures: Sequence[Figures], results: Sequence[LambdaResult]
) -> dict[str, Any]:
    """The object of sweep.json: what was run, a row per λ, every cell, the verdicts' rule and what the names mean.

    Args:
        config: that of any cell; where it lies, its λ and its seed are left out.
    """
    settings = config.model_dump(mode="json", exclude={"output_dir", "run_name", "seed"})
    del settings["objective"]["world_model_coeff"]
    return {
        "rows": [result.to_json() for result in results],
        "cells": [
            {
                "name": cell.name,
                "lambda": cell.coeff,
                "seed": cell.seed,
                "status": cell.outcome.status,
                "error": cell.outcome.error,
                "figures": dict(values),
                "summary": cell.summary,
            }
            for cell, values in zip(cells, figures, strict=True)
        ],
        "rule": list(RULE),
        "figures": {**FIGURES, **{f"{name}_difference": f"to λ = 0: {text}" for name, text in DIFFERENCES.items()}},
        "config": settings,
    }


def write_tables(folder: Path, sweep: Mapping[str, Any]) -> None:
    """Write sweep.json, sweep.csv and cells.csv.

    Raises:
        EchoError: the disk is full (exit code 1) or the folder is not writable.
    """
    write_json(folder / "sweep.json", sweep)
    statistics = [(measure, statistic) for measure in _MEASURES for statistic in _STATISTICS]
    first = ("lambda", "verdict", "reason", "runs", "finished", "diverged", "collapsed", "failed")
    header = (*first, *(_column(*pair) for pair in statistics))
    rows = [
        {name: row[name] for name in first}
        | {_column(measure, statistic): (row[measure] or {}).get(statistic) for measure, statistic in statistics}
        for row in sweep["rows"]
    ]
    _write_csv(folder / "sweep.csv", header, rows)
    about = ("name", "lambda", "seed", "status", "error")
    cells = [{name: cell[name] for name in about} | cell["figures"] for cell in sweep["cells"]]
    _write_csv(folder / "cells.csv", (*about, *FIGURES), cells)


def _column(measure: str, statistic: str) -> str:
    return measure if statistic == "value" else f"{measure}_{statistic}"


def _write_csv(path: Path, header: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=header, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(path, text.getvalue().encode())
