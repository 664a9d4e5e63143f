"""The run directory: create, refuse, resume; metrics, observations, trajectories, checkpoints, summary.

Readers never change a run. A writer holds `RunDirectory.lock`, which also clears what a killed writer left:

    run = create_run(path, config_yaml=…, environment=environment_record(…))
    with run.lock():
        run.append_metrics(row)                                # a step
        run.save_checkpoint(step, write, meta)                 # now and then

    run = open_run(path)                                       # --resume
    with run.lock():
        folder, meta = run.load_checkpoint()                   # verified
        run.rewind(meta["step"])                               # and from there as above
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from types import MappingProxyType
from typing import Any

from echo_cli.config.loader import load_config
from echo_cli.config.schema import Config
from echo_cli.errors import EchoError
from echo_cli.files import (
    TEMPORARY,
    Row,
    append_jsonl,
    delete,
    fsync,
    lock_folder,
    os_errors,
    read_json,
    read_jsonl,
    truncate_jsonl,
    write_atomic,
    write_json,
)
from echo_cli.runs.checkpoints import Checkpoints
from echo_cli.text import escape_unprintable

_FORMAT = "echo-cli run 1"
# What --overwrite deletes. Anything else that a person has put into the folder stays.
_LOGS = ("metrics.jsonl", "observations.jsonl", "trajectories.jsonl")
_POOLS = "pool_*.jsonl"
_PICTURES = ("heldout_env_ce.*", "heldout_evaluation.*")
_TRACKED = ("tensorboard", "trackio", "wandb")
_OWN = ("config.yaml", *_LOGS, _POOLS, "checkpoints", "summary.json", *_PICTURES, *_TRACKED)


@dataclass(frozen=True)
class RunDirectory:
    """The folder of one run. Made by `create_run` and `open_run`."""

    path: Path

    @property
    def config_path(self) -> Path:
        return self.path / "config.yaml"

    @property
    def metrics_path(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def observations_path(self) -> Path:
        return self.path / "observations.jsonl"

    @property
    def trajectories_path(self) -> Path:
        return self.path / "trajectories.jsonl"

    @property
    def pool_paths(self) -> dict[str, Path]:
        """By name, the trajectories of the frozen pools that were played for this run alone."""
        return {path.stem.removeprefix("pool_"): path for path in sorted(self.path.glob(_POOLS))}

    @property
    def summary_path(self) -> Path:
        return self.path / "summary.json"

    @property
    def checkpoints(self) -> Checkpoints:
        return Checkpoints(self.path / "checkpoints")

    def read_config(self, overrides: Sequence[str] = ()) -> Config:
        """Return the run's config with `KEY.PATH=VALUE` overrides on top. Errors as in `load_config`."""
        return load_config(self.config_path, overrides)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run for writing; released when the process ends, kill -9 included.

        Raises:
            EchoError: it is held already.
        """
        with lock_folder(self.path):
            self.checkpoints.recover()
            yield

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Append a step's metrics. JSON has no NaN and no infinity: they are written as null.

        Raises:
            EchoError: the disk is full (exit code 1; the rows before are intact) or the file is not writable.
        """
        append_jsonl(self.metrics_path, [row])

    def append_trajectories(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Append `Trajectory.to_json` objects, each with its `step` in `meta`. Errors as in `append_metrics`."""
        append_jsonl(self.trajectories_path, records)

    def append_observations(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append what training observed for the first time, `ObservationLog.add`, before the metrics of that step.

        Errors as in `append_metrics`.
        """
        append_jsonl(self.observations_path, rows)

    def read_observations(self, until_step: int | None = None) -> list[Row]:
        """The rows of observations.jsonl, in order of first occurrence; up to and with `until_step` if it is given.

        Each has `step`, `command`, `output` (as the policy met it) and `exit_code`.

        Raises:
            EchoError: an earlier version of echo-cli made the run, without this file, or a line is no such row.
        """
        path = self.observations_path
        if not path.is_file():
            raise EchoError(
                f"{escape_unprintable(self.path)} has no observations.jsonl: an earlier version of echo-cli made "
                "this run",
                "train it again, with --overwrite or another --run-name",
            )
        rows = list(read_jsonl(path))
        for number, row in enumerate(rows, start=1):
            if not _is_observation(row):
                raise EchoError(
                    f"{escape_unprintable(path)}:{number}: not an observation", "the file was changed or damaged"
                )
        return [row for row in rows if until_step is None or row["step"] <= until_step]

    def read_metrics(self) -> list[Row]:
        """The rows of metrics.jsonl, oldest first; a last line that a kill has cut is left out.

        Raises:
            EchoError: there is no such file, or another line is not a JSON object; names the file and the line.
        """
        if not self.metrics_path.is_file():
            raise EchoError(
                f"{escape_unprintable(self.path)} has no metrics.jsonl", "name a run directory, one that `train` made"
            )
        return list(read_jsonl(self.metrics_path))

    def rewind(self, step: int) -> None:
        """Make the run what it was right after `step`, so that resuming writes what an uninterrupted run would have.

        Drops log rows and checkpoints after `step`, a cut last line and the summary. Load the checkpoint of `step`
        first: that verifies it.

        Raises:
            EchoError: a log has a line that is not a row, or cannot be rewritten.
        """
        with os_errors(self.summary_path):
            delete(self.summary_path)
        # Before the logs: killed in between, the next resume starts at `step` again and finishes the cut.
        self.checkpoints.drop_after(step)
        truncate_jsonl(self.metrics_path, step, lambda row: int(row["step"]))
        if step < 0:  # nothing has been trained; a run that an earlier version began may lack the file
            write_atomic(self.observations_path, b"")
        else:
            truncate_jsonl(self.observations_path, step, lambda row: int(row["step"]))
        if self.trajectories_path.exists():
            truncate_jsonl(self.trajectories_path, step, lambda row: int(row["meta"]["step"]))

    def save_checkpoint(self, step: int, write: Callable[[Path], None], meta: Mapping[str, Any]) -> Path:
        """Save the state after `step` (see `Checkpoints.save`), and `step` with `meta`.

        The logs are fsynced first: a checkpoint never knows of a step that the metrics have lost.
        """
        for log in (self.path / name for name in _LOGS):
            if log.exists():
                with os_errors(log):
                    fsync(log)
        return self.checkpoints.save(step, write, {**meta, "step": step})

    def load_checkpoint(self, which: str | int = "latest") -> tuple[Path, Row]:
        """The folder and the meta (with `step`) of a verified checkpoint; see `Checkpoints.load`."""
        return self.checkpoints.load(which)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write summary.json.

        Raises:
            EchoError: it cannot be written.
        """
        write_json(self.summary_path, summary)

    def read_summary(self) -> Row | None:
        """The summary; None for a run that has none yet.

        Raises:
            EchoError: the file is not a JSON object.
        """
        return read_json(self.summary_path) if self.summary_path.is_file() else None


def check_writable(path: Path, *, resume: bool, overwrite: bool) -> None:
    """Refuse what `create_run`, or `RunDirectory.lock` with `resume`, would refuse now: before anything is started.

    Raises:
        EchoError: the folder is used, is not a run (with `overwrite`), or is held by another process.
    """
    if not resume:
        with os_errors(path):
            _check_free(path, overwrite)
    if is_run(path):
        with lock_folder(path):
            pass


def create_run(
    path: Path,
    *,
    config_yaml: str,
    environment: Mapping[str, Any],
    pools: Mapping[str, Iterable[Mapping[str, Any]]] = MappingProxyType({}),
    overwrite: bool = False,
) -> RunDirectory:
    """Make a run directory with environment.json, empty metrics.jsonl and observations.jsonl, and config.yaml.

    With `overwrite` an earlier run is deleted first: the files of a run, and nothing else in its folder.

    Args:
        pools: `Trajectory.to_json` objects of the frozen pools that could not be played again.

    Raises:
        EchoError: the folder is used, is not a run (with `overwrite`), is held by another process or not writable
            (exit code 2), or the disk is full (exit code 1).
    """
    with os_errors(path):
        _check_free(path, overwrite)
        path.mkdir(parents=True, exist_ok=True)
    with lock_folder(path):
        _check_free(path, overwrite)  # again: another process may have been faster
        with os_errors(path):
            for pattern in (*_OWN, f"{TEMPORARY}*"):
                for entry in path.glob(pattern):
                    delete(entry)
        # First, and never deleted: a run is recognised by it, also one that was killed while it was made.
        write_json(path / "environment.json", {"format": _FORMAT, **environment})
        for name, records in pools.items():
            append_jsonl(path / _POOLS.replace("*", name), records)
        write_atomic(path / "observations.jsonl", b"")
        write_atomic(path / "metrics.jsonl", b"")
        write_atomic(path / "config.yaml", config_yaml.encode())
    return RunDirectory(path)


def open_run(path: Path, tip: str = "name a run directory, one that `train` made") -> RunDirectory:
    """An existing run, for reading or resuming; `tip` is for a name that is like no run's beside it.

    Raises:
        EchoError: there is nothing at `path`, or it is not a run.
    """
    if is_run(path):
        return RunDirectory(path)
    siblings = [entry.name for entry in path.parent.iterdir() if is_run(entry)] if path.parent.is_dir() else []
    close = difflib.get_close_matches(path.name, siblings, n=1)
    what = "is not a run: it has no config.yaml with a metrics.jsonl" if path.exists() else "does not exist"
    raise EchoError(
        f"{escape_unprintable(path)} {what}",
        f"did you mean {escape_unprintable(path.parent / close[0])}?" if close else tip,
    )


def is_half_made(path: Path) -> bool:
    """Whether `path` is what `create_run` leaves when it is killed: not a run yet, and with nothing in it to lose."""
    written = {name for name in _names(path) if not _is_scaffold(name)}
    if not written:
        return bool(_names(path))
    empty = {"metrics.jsonl", "observations.jsonl"}
    written = {name for name in written if not fnmatch(name, _POOLS)}
    if not written <= {"environment.json", *empty} or not _is_ours(path):
        return False
    return all((path / name).stat().st_size == 0 for name in written & empty)


def is_run(path: Path) -> bool:
    """Whether `path` is a folder with what every run has: config.yaml and metrics.jsonl."""
    return (path / "config.yaml").is_file() and (path / "metrics.jsonl").is_file()


def _check_free(path: Path, overwrite: bool) -> None:
    """Refuse a folder with anything in it, except a half-made run, and (with `overwrite`) a run."""
    if path.exists() and not path.is_dir():
        raise EchoError(f"{escape_unprintable(path)} is not a folder", "choose another --run-name or --output-dir")
    names = _names(path)
    if not names or is_half_made(path):
        return
    if not _is_ours(path):
        raise EchoError(
            f"{escape_unprintable(path)} is in use and not a run", "choose another --run-name or --output-dir"
        )
    if not overwrite:
        raise EchoError(
            f"{escape_unprintable(path)} holds a run already",
            "continue it with --resume, replace it with --overwrite, or choose another --run-name",
        )


def _names(path: Path) -> set[str]:
    return {entry.name for entry in path.iterdir()} if path.is_dir() else set()


def _is_scaffold(name: str) -> bool:
    return name == ".lock" or name.startswith(TEMPORARY)


def _is_ours(path: Path) -> bool:
    record = path / "environment.json"
    return record.is_file() and read_json(record).get("format") == _FORMAT


def _is_observation(row: Row) -> bool:
    texts = isinstance(row.get("command"), str) and isinstance(row.get("output"), str)
    return texts and isinstance(row.get("step"), int) and isinstance(row.get("exit_code", ""), int | None)
