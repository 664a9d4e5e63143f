"""Values of other types in a run's JSON files: each reader takes them or names the file in one line."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from echo_cli.cli.display.results import print_run
from echo_cli.config.schema import Config
from echo_cli.errors import EchoError
from echo_cli.reports.content import plain_columns
from echo_cli.reports.run_content import _alarms, _base, _facts, _total
from echo_cli.runs.curves import read_curve
from echo_cli.runs.directory import RunDirectory
from echo_cli.runs.provenance import again_tip, read_record
from echo_cli.runs.summary import summarize_run
from echo_cli.sweeps.arms import lambda_arm
from echo_cli.sweeps.results import CellResult, results_of, with_figures
from echo_cli.sweeps.runner import CellStatus
from echo_cli.training.resume import keep_threads

REFERENCE = Path(__file__).parents[2] / "outputs" / "toy-reference"
GONE = object()
ODD: tuple[Any, ...] = (GONE, "x", -1, 1e300, [], {}, [1], True, 10**30, "\x1b[31m\n", {"a": []}, None)
FILES = ("summary.json", "environment.json", "metrics.jsonl")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for name in ("config.yaml", *FILES):
        shutil.copy(REFERENCE / name, tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", FILES)
def test_a_value_of_another_type_is_taken_or_is_one_line(
    run: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path, refused = run / name, 0
    lines = path.read_text().splitlines() if name.endswith("l") else [path.read_text()]
    value = json.loads(lines[-1])
    if "warnings" in value:
        value["warnings"] = [{"signal": "entropy", "reason": "low", "step": 1}]
    cases = [(place, ODD[(number + turn) % len(ODD)]) for number, place in enumerate(_places(value)) for turn in (0, 5)]
    for place, odd in cases:
        path.write_text("\n".join([*lines[-3:-1], json.dumps(_changed(value, place, odd))]) + "\n")
        try:
            _read(run)
        except EchoError as error:
            refused += 1
            assert name in error.message and error.tip, (place, odd)
            assert f"{error.message}{error.tip}".isprintable()
    assert 0 < refused < len(cases)


def _read(run: Path) -> None:
    """Do everything that commands do with the three files, apart from drawing."""
    directory, config = RunDirectory(run), Config()
    rows, summary, record = directory.read_metrics(), directory.read_summary(), read_record(run)
    assert summary is not None
    for metric in ("heldout/env_ce", "heldout/env_ce_seen", "train/reward"):
        read_curve(run, "run", [metric])
    summarize_run(rows, status="x", seconds=0.0, seed=0, coeff=0.0, evaluation=config.evaluation, versions={})
    assert all(isinstance(line, str) for line in _alarms(rows, config))
    _total(rows, "train/env_tokens")
    plain_columns(summary)
    _facts(summary, record)
    _base(record)
    again_tip(run, "trained")
    keep_threads(directory, config)
    ended = CellStatus("finished")
    cells = [CellResult("c", lambda_arm(coeff), coeff, 0, ended, summary, rows) for coeff in (0.0, 1.0)]
    results_of(with_figures(cells))
    print_run(summary, "run")


def _places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if place:
        yield place
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in inside:
        yield from _places(inner, (*place, key))


def _changed(value: Any, place: tuple[Any, ...], odd: Any) -> Any:
    changed = copy.deepcopy(value)
    inner = changed
    for key in place[:-1]:
        inner = inner[key]
    if odd is GONE:
        del inner[place[-1]]
    else:
        inner[place[-1]] = odd
    return changed
