"""Trackers: TensorBoard, Trackio or Weights & Biases beside metrics.jsonl, each in a process of its own.

A tracker's library starts threads and servers, prints, catches signals, draws random numbers and may hang. In a process
of its own (`trackers/host.py`) it does none of that to the run: rows go to it over a pipe that never blocks, and one
that fails or hangs costs its own records alone.
"""

from __future__ import annotations

import importlib.util
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

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
        self._running: list[_Process] = []
        self._summary: dict[str, Any] | None = None

    def start(self, run: TrackedRun) -> None:
        try:
            process = _Process(run)
        except OSError as error:
            self._give_up(run.tracker, str(error))
            return
        self._running.append(process)

    def log(self, row: Row) -> None:
        """Give a row of metrics.jsonl to every tracker; never waits for one."""
        for process in list(self._running):
            process.send({"row": dict(row)})
            process.exchange(0)
            if process.has_ended or process.is_stuck:
                self._drop(process, "it takes no more rows")

    def summarize(self, summary: Mapping[str, Any]) -> None:
        """Have the summary recorded at the end."""
        self._summary = dict(summary)

    def close(self, wait_s: float) -> None:
        """End the trackers, and whatever they have started, within `wait_s` seconds."""
        deadline = time.monotonic() + wait_s
        try:
            for process in self._running:
                process.send({"end": self._summary})
            # In turns: none is judged by how long another took.
            while waiting := [process for process in self._running if not process.has_ended]:
                if (left := deadline - time.monotonic()) <= 0:
                    break
                for process in waiting:
                    process.exchange(min(left, _TURN_SECONDS))
            for process in list(self._running):
                self._drop(process, f"it did not finish within {wait_s:g} s")
        finally:
            for process in self._running:
                process.kill()

    def _drop(self, process: _Process, otherwise: str) -> None:
        reason = process.failure() if process.has_ended else otherwise
        self._running.remove(process)
        process.kill()
        if reason is not None:
            self._give_up(process.name, reason)

    def _give_up(self, name: str, reason: str) -> None:
        self._warn(f"warning: {name} failed, and the run goes on without it: {reason}")


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


class _Process:
    """The process of one tracker, and our ends of its pipes."""

    def __init__(self, run: TrackedRun) -> None:
        """Raises OSError: it cannot be started."""
        self.name = run.tracker
        self._process = subprocess.Popen(
            [sys.executable, "-m", "echo_cli.training.trackers.host"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            start_new_session=True,  # the terminal's Ctrl-C is for the run, and a prompt finds no terminal to be on
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._to, self._from = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._to, False)
        self._pending = bytearray()
        self._said = bytearray()
        self.has_ended = False
        self.send(asdict(run))

    @property
    def is_stuck(self) -> bool:
        return len(self._pending) > _MOST_PENDING

    def send(self, message: Mapping[str, Any]) -> None:
        """Have `exchange` write a line."""
        self._pending += json.dumps(message).encode() + b"\n"

    def exchange(self, wait_s: float) -> None:
        """Write and read what the pipes take and have, waiting up to `wait_s` seconds for either."""
        if self.has_ended:
            return
        poll = select.poll()
        poll.register(self._from, select.POLLIN)
        if self._pending:
            poll.register(self._to, select.POLLOUT)
        for descriptor, _ in poll.poll(wait_s * 1000):
            if descriptor == self._from:
                said = os.read(self._from, 2**16)
                self._said += said
                self.has_ended = not said
                continue
            try:
                del self._pending[: os.write(self._to, self._pending)]
            except BrokenPipeError:
                self._pending.clear()  # it has ended; what it has said tells why

    def failure(self) -> str | None:
        """Why it has ended; None where it had finished. Waits for its end, which `has_ended` has announced."""
        last = json.loads(self._said.splitlines()[-1]) if self._said else {}
        if last.get("done"):
            return None
        code = self._process.wait()
        return str(
            last.get("error") or f"its process ended with {f'signal {-code}' if code < 0 else f'exit code {code}'}"
        )

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
