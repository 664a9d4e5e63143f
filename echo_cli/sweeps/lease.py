"""Leases in a folder that machines share: the holder renews its lease, and loses it to another process once it cannot.

Generation N of a lease is the file `NAME.N`, created exclusively and never renamed or removed. A process that wants the
lease creates generation N + 1, once N is final or expired, so only one process can follow N. The first line of the
file is a mark that the holder replaces to renew the lease. Generation N has expired if a process sees its mark
unchanged for `seconds` by its own clock: clocks of machines are never compared. The process that writes under the
lease kills itself if it could not renew it in half of that time, so it is gone before the lease expires.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from echo_cli.errors import EchoError
from echo_cli.symlinks import opener
from echo_cli.terminal import put
from echo_cli.text import escape_unprintable

RELEASED = "released"
ENDED = "ended"
FAILED = "failed"
_FINAL = (RELEASED, ENDED, FAILED)

_MARK = 16  # characters
_MOST_BYTES = 8192
_MOST_NOTE = 2000  # characters
_RENEWALS = 8
"""Number of renewals in the time in which a lease expires."""
_FENCE = 0.5
"""Fraction of that time after which a process that could not renew its lease kills itself."""
_JOIN_POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Generation:
    """A generation of a lease, as read from its file; number 0 is that of a lease that nobody has had."""

    number: int = 0
    mark: str = RELEASED
    """Mark, which each renewal changes; empty if its creator died before it wrote one."""
    seconds: float | None = None
    """Time in which it expires; None if the file is incomplete."""
    note: Mapping[str, Any] | None = None
    """Note that the holder left at its end."""

    @property
    def is_final(self) -> bool:
        return self.mark in _FINAL


def latest(folder: Path, name: str, known: int = 0) -> Generation:
    """Return the latest generation of a lease, searched from generation `known` up."""
    found, number = Generation(), max(known, 1)
    while (read := _read(folder / f"{name}.{number}", number)) is not None:
        found, number = read, number + 1
    return found


def refresh(folder: Path) -> None:
    """Make a network file system's client forget which names `folder` lacks, by opening it, which asks the server."""
    os.scandir(folder).close()


class Lease:
    """A generation of a lease that this process holds, or renews for the process that took it."""

    def __init__(self, path: Path, descriptor: int, seconds: float) -> None:
        self._path, self._descriptor, self.seconds = path, descriptor, seconds
        self._mark = ""
        self._renewed = _clock()
        self._is_joined = False

    @property
    def path(self) -> Path:
        return self._path

    @classmethod
    def take(cls, folder: Path, name: str, number: int, seconds: float) -> Lease | None:
        """Create generation `number`, and return None if another process has created it.

        Raises:
            OSError: the folder cannot be written.
        """
        path = folder / f"{name}.{number}"
        try:
            descriptor = opener(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC)
        except FileExistsError:
            return None
        lease = cls(path, descriptor, seconds)
        lease._mark = secrets.token_hex(_MARK // 2)
        holder = {"seconds": seconds, "host": socket.gethostname(), "pid": os.getpid()}
        lease._write(f"{lease._mark}\n{json.dumps(holder)}\n")
        return lease

    def renew(self) -> None:
        """Replace the mark.

        Raises:
            OSError: the file cannot be written.
        """
        began, mark = _clock(), secrets.token_hex(_MARK // 2)
        self._write(mark)
        self._mark, self._renewed = mark, began

    def keep(self) -> bool:
        """Renew the lease until a child has taken over its renewal; return False if the lease may have expired.

        Raises:
            OSError: the file cannot be read or written.
        """
        if not self._is_joined:
            self._is_joined = self._read_mark() != self._mark
        if not self._is_joined:
            if self.silent_s() > _FENCE * self.seconds:
                return False
            self.renew()
        return True

    def silent_s(self) -> float:
        """Return the number of seconds since this process last renewed the lease, sleep of the machine included."""
        return _clock() - self._renewed

    def is_lost(self) -> bool:
        """Return whether another process has the next generation, or this one is final."""
        name, _, number = self._path.name.rpartition(".")
        refresh(self._path.parent)
        return self._read_mark() in _FINAL or latest(self._path.parent, name, int(number)).number > int(number)

    def end(self, mark: str, note: Mapping[str, Any] | None = None) -> None:
        """Make the lease final, with a mark and a note for later holders.

        Raises:
            OSError: the file cannot be written.
        """
        if note is not None:
            short = {key: value[:_MOST_NOTE] if isinstance(value, str) else value for key, value in note.items()}
            self._write(f"{json.dumps(short)}\n", os.fstat(self._descriptor).st_size)
        self._write(mark.ljust(_MARK))
        self.leave()

    def leave(self) -> None:
        """Stop renewing the lease, which then expires unless another process renews it."""
        os.close(self._descriptor)

    def _was_renewed_after(self, mark: str) -> bool:
        """Wait until another process renews the lease, and return False if it expires instead.

        A renewal by this process alone could revive a lease that another process has just found expired.
        """
        deadline = _clock() + self.seconds
        looked = _clock()
        while self._read_mark() == mark:
            if looked > deadline:
                return False
            self._renewed = looked  # it is renewed later than this look, which saw the old mark
            time.sleep(_JOIN_POLL_SECONDS)
            looked = _clock()
        return True

    def _write(self, text: str, offset: int = 0) -> None:
        os.pwrite(self._descriptor, text.encode(), offset)
        os.fsync(self._descriptor)  # a network file system would keep it on this machine

    def _read_mark(self) -> str:
        read = _read(self._path, 0)  # opened again, which makes a network file system look at the server
        return "" if read is None else read.mark


@contextmanager
def renewed(lease: Lease) -> Iterator[None]:
    """Renew a lease in a thread while the block runs; a failed renewal is tried again."""
    with _renewing(lease, fenced=False):
        yield


@contextmanager
def joined_lease(path: Path) -> Iterator[None]:
    """Take over the renewal of a lease that the parent has taken and renews, and die rather than outlive the lease.

    While the block runs, SIGALRM kills this process if the lease was not renewed in time: also if it was stopped, or
    its file system hangs, as the signal comes before its next instruction.

    Raises:
        EchoError: nobody renews the lease, or another process has it.
    """
    lost = EchoError(
        f"this run was given to another process: {escape_unprintable(path)} was not renewed in time",
        "repeat the sweep's command: it continues runs that nobody has",
        exit_code=1,
    )
    first = _read(path, 0)
    if first is None or first.seconds is None:
        raise lost
    lease = Lease(path, opener(path, os.O_RDWR | os.O_CLOEXEC), first.seconds)
    if not lease._was_renewed_after(first.mark) or lease.is_lost():
        raise lost
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    _arm(lease)
    lease.renew()
    try:
        with _renewing(lease, fenced=True):
            yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        lease.leave()


def _arm(lease: Lease) -> None:
    signal.setitimer(signal.ITIMER_REAL, max(_FENCE * lease.seconds - lease.silent_s(), 0.001))


@contextmanager
def _renewing(lease: Lease, *, fenced: bool) -> Iterator[None]:
    ended = threading.Event()

    def work() -> None:
        while not ended.wait(lease.seconds / _RENEWALS):
            try:
                if fenced and (lease.silent_s() > _FENCE * lease.seconds or lease.is_lost()):
                    put(f"error: {lease.path} is lost to another process: this one ends at once", err=True)
                    os.kill(os.getpid(), signal.SIGALRM)
                lease.renew()
            except OSError:  # tried again, until the alarm ends this process
                continue
            if fenced:
                _arm(lease)

    thread = threading.Thread(target=work, name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _clock() -> float:
    """Return seconds of a clock that, on Linux, goes on while the machine sleeps."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def _read(path: Path, number: int) -> Generation | None:
    try:
        with open(path, "rb", opener=opener) as file:
            lines = file.read(_MOST_BYTES).decode(errors="replace").split("\n")
    except FileNotFoundError:
        return None
    header, note = (_object(line) for line in (*lines[1:3], "", "")[:2])
    seconds = header.get("seconds")
    valid = isinstance(seconds, (int, float)) and 0 < seconds < float("inf")
    return Generation(number, lines[0].strip(), seconds if valid else None, note or None)


def _object(line: str) -> dict[str, Any]:
    """Return the object of a line, empty if it is not there, or not whole yet."""
    try:
        value = json.loads(line)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
