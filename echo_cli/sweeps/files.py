"""Files of a sweep: sweep.json, sweep.csv with a row per arm, and cells.csv with a row per run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from echo_cli.config.schema import Config
from echo_cli.files import write_csv, write_json
from echo_cli.sweeps.arms import baseline_of
from echo_cli.sweeps.plan import BROKEN
from echo_cli.sweeps.results import (
    ArmResult,
    CellResult,
    cells_in,
    criteria_of,
    differences_of,
    environments_of,
    figures_of,
    pairs_of,
    results_of,
)
from echo_cli.sweeps.verdict import RULE

_ROW = ("arm", "lambda", "verdict", "reason", "tasks", "tasks_reason", "runs", "finished", *BROKEN, "failed")
_CELL = ("name", "arm", "lambda", "seed", "status", "error")
_STATISTICS = ("value", "low", "high", "spread", "seeds")


def sweep_object(
    configs: Sequence[Config], cells: Sequence[CellResult], results: Sequence[ArmResult]
) -> dict[str, Any]:
    """Return the object of sweep.json: settings, a row per arm, every pair of arms, every cell, and explanations.

    Args:
        configs: configs of the cells; their location, λ and seed are omitted, and the keys that differ.
    """
    arms, criteria = [result.arm for result in results], criteria_of(cells)
    baseline = baseline_of(arms)
    settings = _shared([yaml.safe_load(config.to_yaml()) for config in configs])
    for key in ("output_dir", "run_name", "seed"):
        settings.pop(key, None)
    if not all(arm.named for arm in arms):
        settings["objective"].pop("world_model_coeff", None)
    to = f"to {'λ = 0' if baseline is None else baseline.title}"
    return {
        "rows": [result.to_json() for result in results],
        "baseline": None if baseline is None else baseline.label,
        "arms": {arm.label: list(arm.words) for arm in arms if arm.named},
        "pairs": [pair.to_json() for pair in pairs_of(cells)],
        **_of_each(cells),
        "cells": [
            {
                "name": cell.name,
                "arm": cell.arm.label,
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
        "figures": figures_of(criteria)
        | {f"{name}_difference": f"{to}: {text}" for name, text in differences_of(criteria).items()},
        "config": settings,
    }


def _of_each(cells: Sequence[CellResult]) -> dict[str, Any]:
    """Return the rows of each of several environments, by name under `environments`; nothing for cells in one."""
    names = environments_of(cells)
    each = {name: [result.to_json() for result in results_of(cells_in(cells, name))] for name in names}
    return {"environments": each} if names else {}


def _shared(values: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the keys at which all nested mappings have the same value."""
    shared: dict[str, Any] = {}
    for key in values[0]:
        found: list[Any] = [each.get(key) for each in values]
        if all(isinstance(each, dict) for each in found):
            shared[key] = _shared(found)
        elif all(each == found[0] for each in found):
            shared[key] = found[0]
    return shared


def write_tables(folder: Path, sweep: Mapping[str, Any]) -> None:
    """Write sweep.json, sweep.csv and cells.csv.

    Raises:
        EchoError: the disk is full (exit code 1) or the folder is not writable.
    """
    write_json(folder / "sweep.json", sweep)
    statistics = [(measure, statistic) for measure in sweep["figures"] for statistic in _STATISTICS]
    write_csv(
        folder / "sweep.csv",
        (*_ROW, *(name if statistic == "value" else f"{name}_{statistic}" for name, statistic in statistics)),
        [
            [*(row[name] for name in _ROW), *((row[name] or {}).get(statistic) for name, statistic in statistics)]
            for row in sweep["rows"]
        ],
    )
    figures = list(dict.fromkeys(name for cell in sweep["cells"] for name in cell["figures"]))
    write_csv(
        folder / "cells.csv",
        (*_CELL, *figures),
        [[*(cell[name] for name in _CELL), *(cell["figures"][name] for name in figures)] for cell in sweep["cells"]],
    )
