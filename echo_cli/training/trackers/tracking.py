"""Trackers: TensorBoard, Trackio or Weights & Biases in addition to metrics.jsonl, each in its own process.

A tracker's library starts threads and servers, prints, catches signals, draws random numbers and may hang. In its own
process (`trackers/host.py`) it cannot affect the run: rows are sent over a pipe that never blocks, and a tracker that
fails or hangs only loses its own records.
"""

from __future__ import annotations

import importlib.util
import os
import os.path
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from echo_cli.config.schema import TrackerName
from echo_cli.errors import missing_package
from echo_cli.processes import ChildProcess

Row = Mapping[str, Any]

FINISH_SECONDS = 60.0
"""Seconds that a run waits at its end for all its trackers together."""

_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
_VARIABLES: Mapping[TrackerName, tuple[str, ...]] = {
    "tensorboard": (),
    "trackio": ("TRACKIO_", "HF_", *_PROXIES),
    "wandb": ("WANDB_", "NETRC", *_PROXIES),
}
"""Beginnings of the names of the environment variables that a tracker reads."""

_LEAVE_SECONDS = 2.0  # the same, for a run that must stop at once
_START_SECONDS = 10.0
_TURN_SECONDS = 0.05
_MOST_PENDING = 2**24  # bytes; thousands of rows that a tracker has not read


@dataclass(frozen=True)
class TrackedRun:
    """The description of a run that a tracker receives at its start."""

    tracker: TrackerName
    folder: str
    """Absolute path of the run directory. A tracker keeps its files there, in a folder of its own name."""
    name: str
    group: str | None
    """Name of the sweep whose runs the tracker shows together; None without a sweep."""
    config: dict[str, Any]
    last_step: int | None
    """Step of the last row of metrics.jsonl at the start, 0-based; None if there is none, as in a new run."""


class Tracker(Protocol):
    """A tracker, returned by `open_tracker(run: TrackedRun)` of a module in `trackers/`. Any exception ends it."""

    first_step: int
    """First step to log: the tracker already has all earlier rows, from before a resume, and no later rows."""

    def log(self, step: int, values: Mapping[str, float | str]) -> None:
        """Record a row: finite numbers, and `warnings` as text if there are any."""

    def finish(self, summary: Mapping[str, Any] | None) -> None:
        """Record the content of summary.json (None if the run ended without a summary), and flush all records."""


def check_trackers(names: Sequence[TrackerName] | None) -> None:
    """Check that the trackers' packages are installed, without importing them.

    Raises:
        EchoError: a package is not installed.
    """
    for name in names or ():
        if not _is_installed(name):
            raise missing_package(f"track: {name}", name, name)


def tracker_variables(tracker: TrackerName, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of `environ` that only this tracker gets, with absolute paths of folders and files."""
    own = {name: value for name, value in environ.items() if name.upper().startswith(_VARIABLES[tracker])}
    return {name: os.path.abspath(value) if _is_relative(name, value) else value for name, value in own.items()}


def _is_relative(name: str, value: str) -> bool:
    return (
        name.endswith(("_DIR", "_HOME", "_CACHE", "_FILE", "NETRC"))
        and not value.startswith(("/", "~"))
        and value != ""
    )


def _is_installed(name: str) -> bool:
    # A folder of the same name in the working directory, such as wandb's own, is also importable but has no origin.
    spec = importlib.util.find_spec(name)
    return spec is not None and spec.origin is not None


class Trackers:
    """The working trackers of a run. A tracker that fails causes one warning and is dropped."""

    def __init__(self, warn: Callable[[str], None]) -> None:
        self._warn = warn
        self._running: dict[TrackerName, ChildProcess] = {}
        self._summary: dict[str, Any] | None = None

    def start(self, run: TrackedRun) -> None:
        try:
            # Not in the working directory: wandb would read its settings, such as an address for the API key.
            host = ChildProcess(
                "echo_cli.training.trackers.host", tracker_variables(run.tracker, os.environ), folder="/"
            )
        except OSError as error:
            self._give_up(run.tracker, str(error))
            return
        self._running[run.tracker] = host
        host.send(asdict(run))

    def wait_started(self) -> None:
        """Wait until each tracker's process has its variables: from then on, what is logged outlives this process."""
        for host in self._running.values():
            host.wait_sent(_START_SECONDS)

    def log(self, row: Row) -> None:
        """Send a row of metrics.jsonl to every tracker, without waiting."""
        for name, host in list(self._running.items()):
            host.send({"row": dict(row)})
            host.exchange(0)
            if host.has_ended or host.unsent > _MOST_PENDING:
                self._drop(name, "it does not read its rows")

    def summarize(self, summary: Mapping[str, Any]) -> None:
        """Set the summary to record at the end."""
        self._summary = dict(summary)

    def close(self, wait_s: float) -> None:
        """End the trackers within `wait_s` seconds."""
        deadline = time.monotonic() + wait_s
        try:
            for host in self._running.values():
                host.send({"end": self._summary})
            # In turns, so that one slow tracker does not use up the time of the others.
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
        self._warn(f"warning: {name} failed; the run continues without it: {reason}")


def _failure(host: ChildProcess) -> str | None:
    """Return why a tracker's process has failed; None if it finished."""
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
    """Yield the trackers `names` of the run at `path`; end them with the block.

    Args:
        config: the resolved config, as in config.yaml.
        group, last_step: as in `TrackedRun`.
        warn: called with one line per tracker that fails.
    """
    trackers = Trackers(warn)
    wait_s = _LEAVE_SECONDS
    try:
        for name in names or ():
            trackers.start(TrackedRun(name, str(path.absolute()), path.name, group, config, last_step))
        trackers.wait_started()
        yield trackers
        wait_s = FINISH_SECONDS
    except Exception:
        wait_s = FINISH_SECONDS
        raise
    finally:
        trackers.close(wait_s)
