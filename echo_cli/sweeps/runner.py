"""Runner of a sweep's cells, each in its own process, several at a time; a failed cell does not affect the others."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from echo_cli.files import delete, os_errors, write_atomic
from echo_cli.processes import ChildProcess
from echo_cli.runs.directory import is_run, open_run
from echo_cli.sweeps.plan import BROKEN, Cell, ended_summary
from echo_cli.symlinks import make_folder, opener
from echo_cli.text import escape_unprintable

Status = Literal[
    "waiting", "running", "stopping", "finished", "diverged", "collapsed", "no_gradient", "failed", "stopped"
]

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


def run_cells(
    cells: Sequence[Cell],
    *,
    jobs: int,
    overwrite: bool,
    should_stop: Callable[[], bool],
    show: Callable[[Mapping[str, CellStatus]], None],
) -> dict[str, CellStatus]:
    """Train the cells that are not done, at most `jobs` at once, in the order given.

    Once `should_stop()` is true, no cell is started, and running cells are asked to finish their step and save.
    Unfinished cells are then `stopped` if they were running, else `waiting`. An exception, such as the SystemExit of a
    second Ctrl-C, kills the processes. A process whose parent is killed detects this, saves and stops
    (`train --parent`).

    Args:
        show: function called several times per second with the outcomes so far, by cell name.

    Raises:
        EchoError: the sweep's folder cannot be written.
    """
    outcomes = {cell.name: CellStatus("waiting") for cell in cells}
    waiting: list[Cell] = []
    for cell in cells:
        ended = None if overwrite else ended_status(cell)
        if ended is None:
            waiting.append(cell)
        else:
            outcomes[cell.name] = ended
    running: list[tuple[Cell, ChildProcess]] = []
    asked = False
    try:
        while running or (waiting and not asked):
            if should_stop() and not asked:
                asked = True
                for cell, process in running:
                    process.terminate()
                    outcomes[cell.name] = CellStatus("stopping")
            while waiting and not asked and len(running) < jobs:
                cell = waiting.pop(0)
                running.append((cell, _start(cell, overwrite)))
                outcomes[cell.name] = CellStatus("running")
            show(outcomes)
            time.sleep(_POLL_SECONDS)
            for cell, process in list(running):
                process.exchange(0)
                if (code := process.poll()) is not None:
                    process.kill()
                    running.remove((cell, process))
                    outcomes[cell.name] = _outcome(cell, code, asked)
        show(outcomes)
    finally:
        for _, process in running:
            process.stop(0)
    return outcomes


def _start(cell: Cell, overwrite: bool) -> ChildProcess:
    """Start the process of a cell, which trains with all variables of this one.

    Ctrl-C reaches only the sweep, which asks each process to stop once.
    """
    config, log = _beside(cell, ".yaml"), log_path(cell)
    with os_errors(log.parent):
        make_folder(log.parent)
        delete(log)
    write_atomic(config, cell.config.to_yaml().encode())
    words = ["train", "--config", str(config), "--output-dir", str(cell.path.parent), "--run-name", cell.name]
    words += ["--json", "--parent", str(os.getpid()), "--group", cell.path.parent.name]
    grants = cell.config.environment.grants
    words += [] if grants.import_from is None else ["--import-from", grants.import_from]
    words += ["--allow-plain-http"] if grants.plain_http else []
    model = cell.config.model  # a file has no say in these
    words += ["--trust-remote-code"] if model.trust_remote_code else []
    words += ["--fetch-model"] if model.fetch == "all" else []
    if is_run(cell.path):
        words.append("--overwrite" if overwrite else "--resume")
    with os_errors(log), open(log, "xb", opener=opener) as stderr:
        return ChildProcess("echo_cli", os.environ, words=words, stderr=stderr)


def _outcome(cell: Cell, code: int, asked: bool) -> CellStatus:
    summary = open_run(cell.path).read_summary() if is_run(cell.path) else None
    status = None if summary is None else summary.get("status")
    if code == 0 and ended_summary(cell) is not None:
        return CellStatus("finished")
    if code == 3 and status in BROKEN:
        return CellStatus(status, _last_error(cell, code))
    return CellStatus("stopped") if asked else CellStatus("failed", _last_error(cell, code))


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
