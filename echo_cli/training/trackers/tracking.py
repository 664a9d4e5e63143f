"""Trackers: TensorBoard, Trackio or Weights & Biases beside metrics.jsonl, each in a process of its own.

A tracker's library starts threads and servers, prints, catches signals, draws random numbers and may hang. In a process
of its own (`trackers/host.py`) it does none of that to the run: rows go to it over a pipe that never blocks, and one
that fails or hangs costs its own records alone.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from echo_cli.child_process import ChildProcess
from echo_cli.config.schema import TrackerName
from echo_cli.errors import EchoError

Row = Mapping[str, Any]

FINISH_SECONDS = 60.0
"""How long the end of a run waits for its trackers, all of them together."""

_LEAVE_SECONDS = 2.0  # the same, for a run that is told to stop now
_TURN_SECONDS = 0.05
_MOST_PENDING = 2**24  # bytes; thousands of rows that a tracker has not taken


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker is told at its start."""

    tracker: TrackerName
    folder: str
    """The run directory, absolute. A tracker keeps its files in the folder of its own name there."""
    name: str
    group: str | None
    """What the run is shown together with: the sweep it belongs to."""
    config: dict[str, Any]
    last_step: int | None
    """The last row of metrics.jsonl, which a resumed run goes on from; None where it begins."""


class Tracker(Protocol):
    """What `open_tracker(run: TrackedRun) -> Tracker` of a module in `trackers/` gives. Any exception ends it."""

    first_step: int
    """Rows before this step it holds already, from before the run was resumed; it holds none from there on."""

    def log(self, step: int, values: Mapping[str, float | str]) -> None:
        """Record a row: finite numbers, and `warnings` as text where there are some."""

    def finish(self, summary: Mapping[str, Any] | None) -> None:
        """Record the object of summary.json, None for a run that broke off without one, and write everything out."""


def check_trackers(names: Sequence[TrackerName] | None) -> None:
    """See that the packages are there, without importing them.

    Raises:
        EchoError: one is not installed.
    """
    for name in names or ():
        if not _is_installed(name):
            raise EchoError(f"track: {name} needs {name}, which is not installed", f"pip install 'echo-cli[{name}]'")


def _is_installed(name: str) -> bool:
    # A folder of that name where we are, such as wandb's own, can be imported too, and has no origin.
    spec = importlib.util.find_spec(name)
    return spec is not None and spec.origin is not None


class Trackers:
    """The trackers of a run that still work. What fails is warned of once, and left out."""

    def __init__(self, warn: Callable[[str], None]) -> None:
        self._warn = warn
        self._running: dict[TrackerName, ChildProcess] = {}
        self._summary: dict[str, Any] | None = None

    def start(self, run: TrackedRun) -> None:
        try:
            host = ChildProcess("echo_cli.training.trackers.host")
        except OSError as error:
            self._give_up(run.tracker, str(error))
            return
        self._running[run.tracker] = host
        host.send(asdict(run))

    def log(self, row: Row) -> None:
        """Give a row of metrics.jsonl to every tracker; never waits for one."""
        for name, host in list(self._running.items()):
            host.send({"row": dict(row)})
            host.exchange(0)
            if host.has_ended or host.unsent > _MOST_PENDING:
                self._drop(name, "it takes no more rows")

    def summarize(self, summary: Mapping[str, Any]) -> None:
        """Have the summary recorded at the end."""
        self._summary = dict(summary)

    def close(self, wait_s: float) -> None:
        """End the trackers within `wait_s` seconds."""
        deadline = time.monotonic() + wait_s
        try:
            for host in self._running.values():
                host.send({"end": self._summary})
            # In turns: none is judged by how long another took.
            while waiting := [host for host in self._running.values() if not host.has_ended]:
                if (left := deadline - time.monotonic()) <= 0:
                    break
                for host in waiting:
                    host.exchange(min(left, _TURN_SECONDS))
            for name in list(self._running):
                self._drop(name, f"it did not finish within {wait_s:g} s")
        finally:
            for host in self._running.values():
                host.kill()

    def _drop(self, name: TrackerName, otherwise: str) -> None:
        host = self._running[name]
        reason = _failure(host) if host.has_ended else otherwise
        del self._running[name]
        host.kill()
        if reason is not None:
            self._give_up(name, reason)

    def _give_up(self, name: TrackerName, reason: str) -> None:
        self._warn(f"warning: {name} failed, and the run goes on without it: {reason}")


def _failure(host: ChildProcess) -> str | None:
    """Return why a tracker's process has ended; None if it had finished."""
    last = host.receive() or {}
    if last.get("done"):
        return None
    code = host.exit_code()
    return str(last.get("error") or f"its process ended with {f'signal {-code}' if code < 0 else f'exit code {code}'}")


@contextmanager
def tracking(
    path: Path,
    names: Sequence[TrackerName] | None,
    config: dict[str, Any],
    *,
    group: str | None,
    last_step: int | None,
    warn: Callable[[str], None],
) -> Iterator[Trackers]:
    """The trackers `names` of the run at `path`, for as long as the block runs.

    Args:
        config: the resolved config, as in config.yaml.
        group, last_step: as in `TrackedRun`.
        warn: called with one line for each tracker that fails.
    """
    trackers = Trackers(warn)
    wait_s = _LEAVE_SECONDS
    try:
        for name in names or ():
            trackers.start(TrackedRun(name, str(path.absolute()), path.name, group, config, last_step))
        yield trackers
        wait_s = FINISH_SECONDS
    except Exception:
        wait_s = FINISH_SECONDS
        raise
    finally:
        trackers.close(wait_s)
