"""The files of a sweep: sweep.json, sweep.csv with a line a λ, cells.csv with a line a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from echo_cli.config.schema import Config
from echo_cli.files import write_csv, write_json
from echo_cli.sweeps.results import DIFFERENCES, FIGURES, CellResult, LambdaResult
from echo_cli.sweeps.verdict import RULE

_MEASURES = (*FIGURES, *(f"{name}_difference" for name in DIFFERENCES))
_ROW = ("lambda", "verdict", "reason", "runs", "finished", "diverged", "collapsed", "failed")
_CELL = ("name", "lambda", "seed", "status", "error")
_STATISTICS = ("value", "low", "high", "spread", "seeds")


def sweep_object(config: Config, cells: Sequence[CellResult], results: Sequence[LambdaResult]) -> dict[str, Any]:
    """Return the object of sweep.json: settings, a row per λ, every cell, the verdicts' rule and what the names mean.

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
                "figures": dict(cell.figures),
                "summary": cell.summary,
            }
            for cell in cells
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
    write_csv(
        folder / "sweep.csv",
        (*_ROW, *(name if statistic == "value" else f"{name}_{statistic}" for name, statistic in statistics)),
        [
            [*(row[name] for name in _ROW), *((row[name] or {}).get(statistic) for name, statistic in statistics)]
            for row in sweep["rows"]
        ],
    )
    write_csv(
        folder / "cells.csv",
        (*_CELL, *FIGURES),
        [[*(cell[name] for name in _CELL), *(cell["figures"][name] for name in FIGURES)] for cell in sweep["cells"]],
    )
