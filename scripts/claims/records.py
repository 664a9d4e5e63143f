"""Records of runs: what the figures and the pictures need of each, one line of JSON a run.

Run directories are large and stay on the machine that made them; the file of records is small and is kept with the
figures, so that a study grows over machines and days.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from claims.arms import Place
from echo_cli.errors import EchoError
from echo_cli.files import os_errors, read_text, write_atomic
from echo_cli.runs.curves import Curve, Points
from echo_cli.symlinks import make_folder
from echo_cli.text import escape_unprintable

DIGITS = 5
"""Number of significant digits of a record's values."""


@dataclass(frozen=True)
class Record:
    """A run that is finished, or whose training broke down."""

    arm: str
    machine: int
    seed: int
    lr: float
    config: str
    """Fingerprint of the run's config and of the weights that it started from."""
    figures: Mapping[str, float]
    """Figures by name; a run without a figure has no entry."""
    curves: Mapping[str, Points]
    """Points (step, value) of the evaluations, by metric."""
    alarms: tuple[str, ...]
    """Signals of collapse of which the detector warned."""
    solved: Mapping[str, float] | None = None
    """Fraction of the rollouts that solve a held-out task at the last step, by task."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    @property
    def place(self) -> Place:
        return Place(self.machine, self.seed)

    @property
    def curve(self) -> Curve:
        return Curve(f"{self.arm}, machine {self.machine}, seed {self.seed}", None, dict(self.curves), None)


Records = Mapping[tuple[str, Place], Record]
"""Records by the name of the arm and the place."""

_JSON: TypeAdapter[Record] = TypeAdapter(Record)


def rounded(values: Mapping[str, float | None]) -> dict[str, float]:
    """Return the values that are not None, to `DIGITS` significant digits."""
    return {name: float(f"{value:.{DIGITS}g}") for name, value in values.items() if value is not None}


def rounded_points(points: Points) -> Points:
    """Return points with values to `DIGITS` significant digits."""
    return [(step, float(f"{value:.{DIGITS}g}")) for step, value in points]


def read_records(path: Path) -> list[Record]:
    """Return the records of a file; none if it does not exist.

    Raises:
        EchoError: a line is no record; the message has the file and the line.
    """
    if not path.exists():
        return []
    lines = read_text(path, "records", "restore the file").encode().splitlines()
    return [_parse(line, f"{escape_unprintable(path)}:{number}") for number, line in enumerate(lines, start=1)]


def _parse(line: bytes, where: str) -> Record:
    try:
        return _JSON.validate_json(line)
    except ValidationError as error:
        first: Any = error.errors(include_url=False, include_context=False, include_input=False)[0]
        key = ".".join(map(str, first["loc"]))
        raise EchoError(
            f"{where}: not a record of a run: {key}{': ' if key else ''}{escape_unprintable(first['msg'])}",
            "restore the file, or delete this line: its run is then trained again",
        ) from None


def write_records(path: Path, records: Iterable[Record]) -> None:
    """Write records, sorted by arm, machine and seed.

    Raises:
        EchoError: as `write_atomic`.
    """
    in_order = sorted(records, key=lambda record: (record.arm, record.machine, record.seed))
    with os_errors(path):
        make_folder(path.parent)
    write_atomic(path, b"".join(_JSON.dump_json(record, exclude_none=True) + b"\n" for record in in_order))
