"""Claims on the cells of a sweep by processes on machines that share its folder, and the settings they agree on."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

from echo_cli.config.schema import Config, flat_config, free_keys
from echo_cli.errors import EchoError
from echo_cli.files import os_errors, read_json, write_json
from echo_cli.sweeps.arms import Arm, read_arms, record_arms
from echo_cli.sweeps.lease import ENDED, FAILED, RELEASED, Generation, Lease, latest, refresh, renewed
from echo_cli.sweeps.plan import BROKEN, Cell
from echo_cli.sweeps.runner import CellStatus, Status, ended_status
from echo_cli.symlinks import make_folder
from echo_cli.text import escape_unprintable

_LEAST_LOOK_SECONDS, _LOOKS = 2.0, 20
"""Seconds between two looks at the claims of others: a fraction of a lease's time, but at most so many."""

_TURN_POLL_SECONDS = 0.1

ELSEWHERE = CellStatus("elsewhere")


def claims_folder(folder: Path) -> Path:
    """Return the folder with the claims of the sweep in `folder`."""
    return folder / "cells" / "claims"


class Watch:
    """What this process has seen of leases, to tell by its own clock which of them are renewed and which expire."""

    def __init__(self, folder: Path, seconds: float) -> None:
        self._folder, self._seconds = folder, seconds
        self._seen: dict[str, tuple[Generation, float]] = {}
        self._looked: dict[str, float] = {}
        self._renewed: dict[str, float] = {}

    def look(self, name: str) -> Generation:
        """Read and remember the latest generation of a lease."""
        before = self._seen.get(name)
        began = time.monotonic()
        now = latest(self._folder, name, 0 if before is None else before[0].number)
        if before is None or (before[0].number, before[0].mark) != (now.number, now.mark):
            self._seen[name] = now, time.monotonic()
            if before is not None:
                self._renewed[name] = self._looked[name]  # later than the look that saw the old mark
        self._looked[name] = began
        return now

    def is_expired(self, name: str) -> bool:
        """Return whether the lease, as last looked at, has had the same mark for all of its time."""
        seen, since = self._seen[name]
        return time.monotonic() - since > (seen.seconds or self._seconds)

    def is_renewed_since(self, name: str, began: float) -> bool:
        """Return whether the lease was renewed between two looks later than `began`, of the monotonic clock."""
        return self._renewed.get(name, -1.0) > began


class ClaimQueue:
    """The cells of a sweep that this process may train: those that no other process has or has trained.

    A cell that failed is not tried again, except by a process that was started after that.

    Args:
        cells: cells that are not done.
        folder: folder of the sweep.
        seconds: time in which a claim of this process expires.

    Raises:
        EchoError: the folder cannot be written.
    """

    def __init__(self, cells: Sequence[Cell], folder: Path, seconds: float) -> None:
        self._folder, self._seconds = claims_folder(folder), seconds
        self._waiting = list(cells)
        self._held: dict[str, Lease] = {}
        self._news: dict[str, CellStatus] = {}
        self._next_look = 0.0
        self._idle_since: float | None = None
        self.own: set[str] = set()
        """Names of the cells that this process has started."""
        with os_errors(self._folder):
            make_folder(self._folder)
            self._watch = Watch(self._folder, seconds)
            found = {cell.name: self._watch.look(cell.name) for cell in cells}
        self._old = {name: seen.number if seen.is_final else seen.number - 1 for name, seen in found.items()}

    def take(self) -> Cell | None:
        """Claim the first cell that nobody has, and return it; None if there is none now."""
        if time.monotonic() < self._next_look:
            return None
        with os_errors(self._folder):
            refresh(self._folder)
            for cell in list(self._waiting):
                free = self._free(cell)
                if free is not None and self._claim(cell, free.number + 1):
                    self._idle_since = None
                    return cell
        self._next_look = time.monotonic() + min(_LEAST_LOOK_SECONDS, self._seconds / _LOOKS)
        return None

    def has_more(self) -> bool:
        """Return whether a cell may still come, asked while this process trains none.

        None comes if every other cell is done, or has been seen renewed since this process ran out of work.
        """
        if self._idle_since is None:
            self._idle_since, self._next_look = time.monotonic(), 0.0
        began = self._idle_since
        return any(not self._watch.is_renewed_since(cell.name, began) for cell in self._waiting)

    def lease_of(self, cell: Cell) -> Path:
        """Return the path of the claim of a cell that this process has taken."""
        return self._held[cell.name].path

    def keeps(self, cell: Cell) -> bool:
        """Renew the claim of a running cell until its process does; return False if the cell must be killed."""
        with os_errors(self._folder):
            return self._held[cell.name].keep()

    def end(self, cell: Cell, outcome: CellStatus, *, is_gone: bool) -> CellStatus:
        """Give up the claim of a cell whose process has ended, and return its outcome, or that others have it.

        Args:
            is_gone: whether no process of the cell can be left. Otherwise its claim is left to expire.
        """
        lease = self._held.pop(cell.name)
        with os_errors(self._folder):
            is_lost = lease.is_lost()
            if is_lost or outcome == ELSEWHERE:
                self._waiting.append(cell)
                outcome = ELSEWHERE
            if is_lost or not is_gone:
                lease.leave()
            else:
                marks = {"failed": FAILED, "stopped": RELEASED, "elsewhere": RELEASED}
                lease.end(marks.get(outcome.status, ENDED), asdict(outcome))
        return outcome

    def news(self) -> Mapping[str, CellStatus]:
        """Return the statuses of the cells that others have or have trained, by name, as far as they are known."""
        return self._news

    def _free(self, cell: Cell) -> Generation | None:
        """Return the claim after which this process may take the next one, or None if the cell is not free."""
        seen = self._watch.look(cell.name)
        if seen.mark in (ENDED, FAILED) and seen.number > self._old[cell.name]:
            self._done(cell, _status(seen))
            return None
        is_free = seen.is_final or self._watch.is_expired(cell.name)
        self._news.pop(cell.name, None)
        if not is_free:
            self._news[cell.name] = ELSEWHERE
        return seen if is_free else None

    def _claim(self, cell: Cell, number: int) -> bool:
        """Claim a free cell by claim `number`; return False if another process was faster, or has trained it."""
        # A later look would find the claim of a faster process, and take the one after that.
        lease = Lease.take(self._folder, cell.name, number, self._seconds)
        if lease is None:
            return False
        for folder in (cell.path.parent, cell.path):
            if folder.is_dir():
                refresh(folder)
        # Looked up under the claim: its last holder may have died, or left, after the run had ended.
        ended = ended_status(cell)
        if ended is not None:
            lease.end(ENDED, asdict(ended))
            self._done(cell, ended)
            return False
        self._waiting.remove(cell)
        self._held[cell.name] = lease
        self.own.add(cell.name)
        return True

    def _done(self, cell: Cell, status: CellStatus) -> None:
        self._waiting.remove(cell)
        self._news[cell.name] = status


def _status(seen: Generation) -> CellStatus:
    """Return the outcome that the holder of a claim has noted."""
    note = seen.note or {}
    status, error = note.get("status"), note.get("error")
    is_known = seen.mark == ENDED and status in ("finished", *BROKEN)
    return CellStatus(cast(Status, status) if is_known else "failed", error if isinstance(error, str) else None)


@contextmanager
def turn(folder: Path, name: str, seconds: float) -> Iterator[Turn]:
    """Wait until no other process has the lease `name` of a sweep's folder, and hold it while the block runs.

    Raises:
        EchoError: the folder cannot be written.
    """
    claims = claims_folder(folder)
    with os_errors(claims):
        make_folder(claims)
        watch, lease = Watch(claims, seconds), None
        while lease is None:
            refresh(claims)
            before = watch.look(name)
            if before.is_final or watch.is_expired(name):
                lease = Lease.take(claims, name, before.number + 1, seconds)
            else:
                time.sleep(_TURN_POLL_SECONDS)
    own, is_done = Turn(before), False
    try:
        with renewed(lease):
            yield own
        is_done = True
    finally:
        with os_errors(claims):
            lease.end(ENDED if is_done else RELEASED, own.note)


@dataclass
class Turn:
    """A turn of this process at work that one process of a sweep does at a time."""

    before: Generation
    """The turn before it."""
    note: Mapping[str, str] | None = None
    """Note for the turns after it."""


_TABLES = "tables"


def last_tables(folder: Path) -> int:
    """Return the number of the last finished turn at writing the tables of the sweep in `folder`, to begin with 0."""
    last = latest(claims_folder(folder), _TABLES)
    return last.number if last.is_final else last.number - 1


@contextmanager
def tables_turn(folder: Path, cells: Sequence[Cell], seconds: float, old: int) -> Iterator[bool]:
    """Wait for a turn at writing the tables, and yield whether no process has written those of `cells` since `old`.

    Args:
        old: `last_tables` before this process has looked at the cells.

    Raises:
        EchoError: the folder cannot be written.
    """
    names = sha256("\n".join(sorted(cell.name for cell in cells)).encode()).hexdigest()
    with turn(folder, _TABLES, seconds) as ours:
        ours.note = {"cells": names}
        before = ours.before
        yield not (before.number > old and before.mark == ENDED and before.note == ours.note)


_OF_CELLS = {"seed", "output_dir", "run_name"}
_TIP = "give every process the same settings, or another --run-name; if none is running, delete {}"


def agree(folder: Path, cells: Sequence[Cell], config_of: Callable[[Sequence[str]], Config], seconds: float) -> None:
    """Record the settings of the sweep in `folder`, and check that they are those of the processes before this one.

    The keys that are free on resume may differ, but the numbers of steps and of threads may not.

    Args:
        config_of: function that returns the sweep's config with the overrides of an arm.
        seconds: time in which the lease of the record expires.

    Raises:
        EchoError: another process trains with other settings, or the folder cannot be written.
    """
    path = claims_folder(folder) / "settings.json"
    arms = {cell.arm: None for cell in cells}
    with turn(folder, "settings", seconds):
        if path.is_file():
            recorded = read_json(path)
            words, was = recorded.get("words"), recorded.get("config")
            if not isinstance(words, list) or not isinstance(was, dict):
                raise EchoError(f"{escape_unprintable(path)} is damaged", "give the sweep another --run-name")
            threads = {"threads": cells[0].config.threads}
            _check_same(folder, was, _settings(config_of(words).model_copy(update=threads)))
        else:
            first = cells[0]
            write_json(path, {"words": list(first.arm.words), "config": _settings(first.config)})
        _check_arms(folder, arms)
        record_arms(folder, list(arms))


def _settings(config: Config) -> dict[str, Any]:
    values = json.loads(config.model_dump_json())
    return {key: value for key, value in values.items() if key not in _OF_CELLS}


def _check_same(folder: Path, recorded: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    was, now = flat_config(dict(recorded)), flat_config(dict(config))
    free = free_keys() - {"steps", "threads"}
    for key in sorted(was.keys() | now.keys()):
        parts = key.split(".")
        if was.get(key) != now.get(key) and free.isdisjoint(".".join(parts[: i + 1]) for i in range(len(parts))):
            raise EchoError(
                f"another process claims the runs of {escape_unprintable(folder)} with a different config: "
                f"{key} was {was.get(key)}, now {now.get(key)}",
                _TIP.format(escape_unprintable(claims_folder(folder))),
            )


def _check_arms(folder: Path, arms: Mapping[Arm, object]) -> None:
    recorded = read_arms(folder)
    for arm in arms:
        if arm.named and recorded.get(arm.label, arm) != arm:
            raise EchoError(
                f"arm {arm.label} of {escape_unprintable(folder)} has the overrides "
                f"{' '.join(recorded[arm.label].words) or '(none)'}",
                _TIP.format(escape_unprintable(claims_folder(folder))),
            )
