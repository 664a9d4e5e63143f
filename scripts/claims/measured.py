"""Arms with the records of their runs: the records that are kept, completed by the runs that are done."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from claims.arms import Arm, Place
from claims.records import Record, Records, read_records, rounded, rounded_points, write_records
from claims.runs import Placed, Study, fingerprint_of, has_ended, planned, read, solved_by_task, train_arms
from echo_cli.reports.run_figure import SWEEP_METRICS
from echo_cli.runs.curves import read_curve
from echo_cli.runs.directory import open_run
from echo_cli.text import counted
from echo_cli.training.collapse import alarms


@dataclass(frozen=True)
class Measured:
    """An arm with the records of its runs by place."""

    arm: Arm
    records: Mapping[Place, Record]

    @property
    def machines(self) -> list[int]:
        return sorted({place.machine for place in self.records})


def collect(placed: Placed, study: Study, path: Path, *, training: bool = True) -> dict[str, Measured]:
    """Complete the records of a study, and return them by arm.

    The records of `path` stay, except those of another config or learning rate than today's, which are named on stderr.
    With `training`, the runs of `placed` that have no record are trained. The records of those that are finished are
    written also if another fails or a signal stops the training.

    Raises:
        EchoError: a record is damaged, or a run directory is of another config.
        SystemExit: as `train`.
    """
    records = without_stale(read_records(path), study)
    try:
        if training:
            train_arms(placed, study, records)
    finally:
        records = measure(placed, study, records)
        if records or path.exists():
            write_records(path, records.values())
    by_arm = {name: {key[1]: found for key, found in records.items() if key[0] == name} for name in study.arms}
    return {name: Measured(study.arms[name], of) for name, of in by_arm.items() if of}


def without_stale(records: Sequence[Record], study: Study) -> dict[tuple[str, Place], Record]:
    """Return the records whose arm has the config and the learning rate of today, and name the others on stderr."""
    kept = {}
    stale: Counter[str] = Counter()
    for record in records:
        arm = study.arms.get(record.arm)
        if arm is not None and record.config == fingerprint_of(arm, record.place, study):
            kept[record.arm, record.place] = record
        else:
            stale[record.arm] += 1
    for name, count in stale.items():
        reason = "its config or learning rate has changed" if name in study.arms else "there is no such arm"
        print(f"dropped {counted(count, 'record')} of {name}: {reason}", file=sys.stderr)
    return kept


def record_of(arm: Arm, place: Place, study: Study) -> Record:
    """Return the record of a run that is done."""
    cell = planned(arm, place, study)
    result, config = read(cell), cell.config
    curve = read_curve(cell.path, cell.name, SWEEP_METRICS)
    kept = result.figures.keys() if study.figures is None else study.figures
    return Record(
        arm.name,
        place.machine,
        place.seed,
        config.optim.lr,
        fingerprint_of(arm, place, study),
        rounded({name: result.figures.get(name) for name in kept}),
        {metric: rounded_points(points) for metric, points in curve.series.items()},
        tuple(alarm.signal for alarm in alarms(result.rows, config.collapse, config.rollout)),
        rounded(solved_by_task(cell, open_run(cell.path))) if study.by_task else None,
    )


def measure(placed: Placed, study: Study, records: Records) -> dict[tuple[str, Place], Record]:
    """Return `records`, and those of the other runs of `placed` whose run directories are done."""
    others = [(arm, place) for arm, places in placed for place in places if (arm.name, place) not in records]
    done = [(arm, place) for arm, place in others if has_ended(arm, place, study)]
    return {**records, **{(arm.name, place): record_of(arm, place, study) for arm, place in done}}
