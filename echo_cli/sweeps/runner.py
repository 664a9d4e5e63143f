"""Runner of a sweep's cells, each in its own process, several at a time; a failed cell does not affect the others."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from echo_cli.files import delete, os_errors, write_atomic
from echo_cli.processes import ChildProcess
from echo_cli.runs.directory import is_run, open_run
from echo_cli.sweeps.plan import BROKEN, Cell, ended_summary
from echo_cli.symlinks import make_folder, opener
from echo_cli.text import escape_unprintable

Status = Literal[
    "waiting",
    "running",
    "stopping",
    "finished",
    "diverged",
    "collapsed",
    "no_gradient",
    "failed",
    "stopped",
    "elsewhere",
]
"""Status of a cell; `elsewhere`: another process of the sweep has it."""

_POLL_SECONDS = 0.2
_LOG_TAIL = 65536  # bytes; long enough to contain the error line


@dataclass(frozen=True)
class CellStatus:
    """Progress or outcome of a cell."""

    status: Status
    error: str | None = None
    """Last error line of a cell that failed, or whose training broke down."""


def log_path(cell: Cell) -> Path:
    """Return the path of the log with the stderr of a cell's process.

    The log is next to the run, not in it: the process creates the run's folder itself, and may fail to.
    """
    return _beside(cell, ".log")


def ended_status(cell: Cell) -> CellStatus | None:
    """Return the outcome of a cell that is done, or None if it must be trained or resumed."""
    summary = ended_summary(cell)
    if summary is None:
        return None
    return CellStatus(summary["status"], _logged_error(cell) if summary["status"] in BROKEN else None)


class Queue(Protocol):
    """The cells that a process of the sweep is to train."""

    def take(self) -> Cell | None:
        """Return a cell to start now; None if there is none at the moment."""

    def has_more(self) -> bool:
        """Return whether a cell may still come, asked while none is running."""

    def lease_of(self, cell: Cell) -> Path | None:
        """Return the lease that the process of a taken cell must renew; None if there is none."""

    def keeps(self, cell: Cell) -> bool:
        """Return whether a running cell may go on, asked several times per second."""

    def end(self, cell: Cell, outcome: CellStatus, *, is_gone: bool) -> CellStatus:
        """Give up a cell that has ended, and return its outcome; `is_gone`: no process of it can be left."""

    def news(self) -> Mapping[str, CellStatus]:
        """Return the statuses of cells of other processes, by name."""


class LocalQueue:
    """The queue of a process that has all cells for itself, in the order given."""

    def __init__(self, cells: Sequence[Cell]) -> None:
        self._waiting = list(cells)

    def take(self) -> Cell | None:
        return self._waiting.pop(0) if self._waiting else None

    def has_more(self) -> bool:
        return bool(self._waiting)

    def lease_of(self, cell: Cell) -> Path | None:
        return None

    def keeps(self, cell: Cell) -> bool:
        return True

    def end(self, cell: Cell, outcome: CellStatus, *, is_gone: bool) -> CellStatus:
        return outcome

    def news(self) -> Mapping[str, CellStatus]:
        return {}


@dataclass(frozen=True)
class _Running:
    cell: Cell
    process: ChildProcess
    stale: tuple[int, int] | None
    """Stamp of the summary that a run before it left."""
    is_launched: bool

    def exit_code(self, queue: Queue) -> int | None:
        """Return the exit code of the process once it has ended, or was killed for its lease; None while it runs."""
        self.process.exchange(0)
        code = self.process.poll()
        if code is None and not queue.keeps(self.cell):
            self.process.stop(0)
            return -signal.SIGALRM
        if code is not None:
            self.process.kill()
        return code

    def outcome(self, code: int, asked: bool) -> CellStatus:
        """Return the outcome of the ended process; a launcher reports no exit codes of its processes."""
        if code == -signal.SIGALRM:  # it could not renew its lease
            return CellStatus("elsewhere")
        cell, broke = self.cell, code == 3
        if self.is_launched:
            broke = code != 0 and _summary_stamp(cell) not in (None, self.stale)
        summary = open_run(cell.path).read_summary() if is_run(cell.path) else None
        status = None if summary is None else summary.get("status")
        if code == 0 and ended_summary(cell) is not None:
            return CellStatus("finished")
        if broke and status in BROKEN:
            return CellStatus(status, _last_error(cell, code))
        return CellStatus("stopped") if asked else CellStatus("failed", _last_error(cell, code))

    def is_gone(self, code: int) -> bool:
        """Return whether no process of the cell is left: a launcher that was killed may leave its processes behind."""
        return code >= 0 or not self.is_launched


def run_cells(
    cells: Sequence[Cell],
    *,
    jobs: int,
    overwrite: bool,
    should_stop: Callable[[], bool],
    show: Callable[[Mapping[str, CellStatus]], None],
    launcher: Sequence[str] = (),
    queue: Queue | None = None,
) -> dict[str, CellStatus]:
    """Train the cells that are not done, at most `jobs` at once, in the order given.

    Once `should_stop()` is true, no cell is started, and running cells are asked to finish their step and save.
    Unfinished cells are then `stopped` if they were running, else `waiting`. An exception, such as the SystemExit of a
    second Ctrl-C, kills the processes. A process whose parent is killed detects this, saves and stops
    (`train --parent`).

    Args:
        show: function called several times per second with the outcomes so far, by cell name.
        launcher: words of the command that starts each cell, to which those of `train` are added; none: this Python.
        queue: queue of the cells that are not done; None: this process has all of them for itself.

    Raises:
        EchoError: the sweep's folder cannot be written.
    """
    outcomes = {cell.name: CellStatus("waiting") for cell in cells}
    if not overwrite:
        outcomes |= {cell.name: ended for cell in cells if (ended := ended_status(cell)) is not None}
    queue = queue or LocalQueue([cell for cell in cells if outcomes[cell.name].status == "waiting"])
    running: list[_Running] = []
    asked = False
    try:
        while running or (not asked and queue.has_more()):
            if should_stop() and not asked:
                asked = True
                for each in running:
                    each.process.terminate()
                    outcomes[each.cell.name] = CellStatus("stopping")
            while not asked and len(running) < jobs and (cell := queue.take()) is not None:
                running.append(_start(cell, overwrite, launcher, queue.lease_of(cell)))
                outcomes[cell.name] = CellStatus("running")
            outcomes |= queue.news()
            show(outcomes)
            time.sleep(_POLL_SECONDS)
            for each in list(running):
                code = each.exit_code(queue)
                if code is not None:
                    running.remove(each)
                    outcome = each.outcome(code, asked)
                    outcomes[each.cell.name] = queue.end(each.cell, outcome, is_gone=each.is_gone(code))
        show(outcomes)
    finally:
        for each in running:
            each.process.stop(0)
            queue.end(each.cell, CellStatus("stopped"), is_gone=each.is_gone(-signal.SIGKILL))
    return outcomes


def _start(cell: Cell, overwrite: bool, launcher: Sequence[str] = (), lease: Path | None = None) -> _Running:
    """Start the process of a cell, which trains with all variables of this one.

    Ctrl-C reaches only the sweep, which asks each process to stop once.
    """
    config, log = _beside(cell, ".yaml"), log_path(cell)
    with os_errors(log.parent):
        make_folder(log.parent)
        delete(log)
    write_atomic(config, cell.config.to_yaml().encode())
    words = ["train", "--config", str(config), "--output-dir", str(cell.path.parent), "--run-name", cell.name]
    words += ["--json", "--group", cell.path.parent.name]
    grants = cell.config.environment.grants
    words += [] if grants.import_from is None else ["--import-from", grants.import_from]
    words += ["--allow-plain-http"] if grants.plain_http else []
    model = cell.config.model  # a file has no say in these
    words += ["--trust-remote-code"] if model.trust_remote_code else []
    words += ["--fetch-model"] if model.fetch == "all" else []
    words += [] if lease is None else ["--lease", str(lease)]
    if is_run(cell.path):
        words.append("--overwrite" if overwrite else "--resume")
    parent = str(os.getpid())
    module = "echo_cli.sweeps.launcher" if launcher else "echo_cli"
    words = [parent, *launcher, *words, "--parent", "0"] if launcher else [*words, "--parent", parent]
    with os_errors(log), open(log, "xb", opener=opener) as stderr:
        process = ChildProcess(module, os.environ, words=words, stderr=stderr)
    return _Running(cell, process, _summary_stamp(cell), bool(launcher))


def _summary_stamp(cell: Cell) -> tuple[int, int] | None:
    """Return what changes when the summary of a cell's run is written again; None if there is none."""
    try:
        stat = open_run(cell.path).summary_path.stat() if is_run(cell.path) else None
    except FileNotFoundError:
        return None
    return None if stat is None else (stat.st_ino, stat.st_mtime_ns)


def _last_error(cell: Cell, code: int) -> str:
    """Return the error line of the cell's log, or its last line; or the signal or exit code that ended the process."""
    if code < 0:
        hint = ", possibly out of memory" if code == -signal.SIGKILL else ""
        return f"killed by {signal.Signals(-code).name}{hint}"
    return _logged_error(cell) or f"exit code {code}"


def _logged_error(cell: Cell) -> str | None:
    if not log_path(cell).is_file():
        return None
    with log_path(cell).open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _LOG_TAIL))
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return escape_unprintable((errors or lines)[-1]) if lines else None


def _beside(cell: Cell, ending: str) -> Path:
    return cell.path.parent / "cells" / f"{cell.name}{ending}"
