"""Run directory: creation, locking and resuming; metrics, observations, trajectories, checkpoints, summary.

Readers never change a run. A writer holds `RunDirectory.lock`, which also cleans up after a killed writer:

    run = create_run(path, config_yaml=…, environment=environment_record(…))
    with run.lock():
        run.append_metrics(row)                                # every step
        run.save_checkpoint(step, write, meta)                 # some steps

    run = open_run(path)                                       # --resume
    with run.lock():
        folder, meta = run.load_checkpoint()                   # verified
        run.rewind(meta["step"])                               # then as above
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
from echo_cli.runs.checkpoints import Checkpoints, check_meta
from echo_cli.runs.origin import CONFIG, MARK, write_config
from echo_cli.runs.summary import checked_rows, checked_summary
from echo_cli.symlinks import make_folder
from echo_cli.text import escape_unprintable

_FORMAT = "echo-cli run 1"
# Files that --overwrite deletes; other files in the folder are kept.
_LOGS = ("metrics.jsonl", "observations.jsonl", "trajectories.jsonl", "rollouts.jsonl")
_POOLS = "pool_*.jsonl"
_PICTURES = ("heldout_env_ce.*", "heldout_evaluation.*")
_TRACKED = ("tensorboard", "trackio", "wandb")
_OWN = (CONFIG, MARK, *_LOGS, _POOLS, "checkpoints", "summary.json", *_PICTURES, *_TRACKED)


@dataclass(frozen=True)
class RunDirectory:
    """The folder of a run, returned by `create_run` and `open_run`."""

    path: Path

    @property
    def config_path(self) -> Path:
        return self.path / CONFIG

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
    def rollouts_path(self) -> Path:
        return self.path / "rollouts.jsonl"

    @property
    def pool_paths(self) -> dict[str, Path]:
        """Trajectory files, by pool name, of the frozen pools that were played for this run alone."""
        return {path.stem.removeprefix("pool_"): path for path in sorted(self.path.glob(_POOLS))}

    @property
    def summary_path(self) -> Path:
        return self.path / "summary.json"

    @property
    def checkpoints(self) -> Checkpoints:
        return Checkpoints(self.path / "checkpoints")

    def read_config(self, overrides: Sequence[str] = (), text: str | None = None) -> Config:
        """Return the run's config, or `text` in its place, with overrides applied. Errors as in `load_config`."""
        return load_config(self.config_path, overrides, text=text)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the run for writing; the lock is released when the process ends, including after kill -9.

        Raises:
            EchoError: the run is already locked.
        """
        with lock_folder(self.path):
            self.checkpoints.recover()
            yield

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Append a step's metrics. NaN and infinity are written as null, because JSON has neither.

        Raises:
            EchoError: the disk is full (exit code 1; earlier rows are intact) or the file is not writable.
        """
        append_jsonl(self.metrics_path, [row])

    def append_trajectories(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Append rollouts of an evaluation: `Trajectory.to_json` objects, each with its `step` in `meta`.

        Errors as in `append_metrics`.
        """
        append_jsonl(self.trajectories_path, records)

    def append_rollouts(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Append rollouts of a training step before its metrics; records and errors as in `append_trajectories`."""
        append_jsonl(self.rollouts_path, records)

    def append_observations(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append the rows of new observations from `ObservationLog.add`, before the metrics of the same step.

        Errors as in `append_metrics`.
        """
        append_jsonl(self.observations_path, rows)

    def read_observations(self, until_step: int | None = None) -> list[Row]:
        """Return the rows of observations.jsonl in order of first occurrence, up to and including `until_step`.

        A row has `step`, `command`, `output` (as shown to the policy) and `exit_code`.

        Raises:
            EchoError: the file does not exist (an earlier version of echo-cli created the run), or a line is not an
                observation.
        """
        path = self.observations_path
        if not path.is_file():
            raise EchoError(
                f"{escape_unprintable(self.path)} has no observations.jsonl: an earlier version of echo-cli created "
                "the run",
                "train it again with --overwrite or another --run-name",
            )
        rows = list(read_jsonl(path))
        for number, row in enumerate(rows, start=1):
            if not _is_observation(row):
                raise EchoError(
                    f"{escape_unprintable(path)}:{number}: not an observation", "the file was changed or damaged"
                )
        return [row for row in rows if until_step is None or row["step"] <= until_step]

    def read_metrics(self) -> list[Row]:
        """Return the rows of metrics.jsonl, oldest first, without an incomplete last line, which a kill may leave.

        Raises:
            EchoError: the file does not exist, another line is not a JSON object, or as in `checked_rows`.
        """
        if not self.metrics_path.is_file():
            raise _no_run(self.path, _RUN_TIP)
        return checked_rows(read_jsonl(self.metrics_path), self.metrics_path)

    def rewind(self, step: int) -> None:
        """Restore the run's files to their state after `step`, so that a resumed run equals an uninterrupted one.

        Deletes log rows and checkpoints after `step`, an incomplete last line, and the summary. Load the checkpoint of
        `step` first to verify it.

        Raises:
            EchoError: a log has a line that is not a row, or cannot be rewritten.
        """
        with os_errors(self.summary_path):
            delete(self.summary_path)
        # Before the logs: if the process is killed in between, the next resume starts at `step` again and truncates.
        self.checkpoints.drop_after(step)
        truncate_jsonl(self.metrics_path, step, lambda row: int(row["step"]))
        if step < 0:  # nothing has been trained; a run created by an earlier version may lack the file
            write_atomic(self.observations_path, b"")
        else:
            truncate_jsonl(self.observations_path, step, lambda row: int(row["step"]))
        for path in filter(Path.exists, (self.trajectories_path, self.rollouts_path)):
            truncate_jsonl(path, step, lambda row: int(row["meta"]["step"]))

    def save_checkpoint(self, step: int, write: Callable[[Path], None], meta: Mapping[str, Any]) -> Path:
        """Save the state after `step` (see `Checkpoints.save`), with `step` added to `meta`.

        The logs are fsynced first, so that no checkpoint is ahead of the metrics on disk.
        """
        for log in (self.path / name for name in _LOGS):
            if log.exists():
                with os_errors(log):
                    fsync(log)
        return self.checkpoints.save(step, write, {**meta, "step": step})

    def load_checkpoint(self, which: str | int = "latest") -> tuple[Path, Row]:
        """Return the folder and the meta (with `step`) of a verified checkpoint; see `Checkpoints.load`."""
        folder, meta = self.checkpoints.load(which)
        return folder, check_meta(folder, meta)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write summary.json.

        Raises:
            EchoError: the file cannot be written.
        """
        write_json(self.summary_path, summary)

    def read_summary(self) -> Row | None:
        """Return the summary, or None if the run has none.

        Raises:
            EchoError: the file is not a JSON object, or as in `checked_summary`.
        """
        path = self.summary_path
        return checked_summary(read_json(path), path) if path.is_file() else None


def check_writable(path: Path, *, resume: bool, overwrite: bool) -> None:
    """Check, before anything is started, that `create_run`, or with `resume` `RunDirectory.lock`, will succeed.

    Raises:
        EchoError: the folder is not empty (with `overwrite`: and not a run), or is locked by another process.
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
    """Create a run directory with environment.json, empty metrics.jsonl and observations.jsonl, and config.yaml.

    With `overwrite`, the files of an existing run are deleted first; other files in the folder are kept.

    Args:
        pools: `Trajectory.to_json` objects, by pool name, of the frozen pools that cannot be played again.

    Raises:
        EchoError: the folder is not empty (with `overwrite`: and not a run), is locked by another process or not
            writable (exit code 2), or the disk is full (exit code 1).
    """
    with os_errors(path):
        _check_free(path, overwrite)
        make_folder(path, mode=0o700)
    with lock_folder(path):
        _check_free(path, overwrite)  # again: another process may have created a run meanwhile
        with os_errors(path):
            for pattern in (*_OWN, f"{TEMPORARY}*"):
                for entry in path.glob(pattern):
                    delete(entry)
        # Written first and never deleted: it identifies a run, even if the process is killed while creating it.
        write_json(path / "environment.json", {"format": _FORMAT, **environment})
        for name, records in pools.items():
            append_jsonl(path / _POOLS.replace("*", name), records)
        write_atomic(path / "observations.jsonl", b"")
        write_atomic(path / "metrics.jsonl", b"")
        write_config(path, config_yaml)
    return RunDirectory(path)


_RUN_TIP = "give a run directory created by `train`"


def open_run(path: Path, tip: str = _RUN_TIP) -> RunDirectory:
    """Open an existing run for reading or resuming.

    Args:
        tip: tip of the error if there is no run that `path` may stand for.

    Raises:
        EchoError: `path` does not exist or is not a run.
    """
    if is_run(path):
        return RunDirectory(path)
    raise _no_run(path, tip)


def _no_run(path: Path, tip: str) -> EchoError:
    """Return the error for a path that is not a run; its tip names what the path may stand for, else is `tip`."""
    inside, beside = _runs_in(path), _runs_in(path.parent)
    close = (path.parent / name for name in difflib.get_close_matches(path.name, beside, n=1))
    elsewhere = (path.parent, *close, Path("outputs") / path.name)
    if (path / "sweep.json").is_file():
        report = f"its report is {path / 'report.html'}, and " if (path / "report.html").is_file() else ""
        tip = f"it is a sweep: {report}its runs are {_listed(path, inside)}"
    elif inside:
        tip = f"runs there: {_listed(path, inside)}"
    elif meant := next(filter(is_run, elsewhere), None):
        tip = f"did you mean {meant}?"
    elif beside:
        tip = f"runs there: {_listed(path.parent, beside)}"
    what = "is not a run: it lacks config.yaml or metrics.jsonl" if path.exists() else "does not exist"
    return EchoError(f"{escape_unprintable(path)} {what}", escape_unprintable(tip))


def _runs_in(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if is_run(entry)) if folder.is_dir() else []


def _listed(folder: Path, names: Sequence[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(str(folder / name) for name in names[:most])}{more}"


def is_half_made(path: Path) -> bool:
    """Return whether `path` is a remnant of a killed `create_run`: not a run, and without data to lose."""
    written = {name for name in _names(path) if name != ".lock" and not name.startswith(TEMPORARY)}
    if not written:
        return bool(_names(path))
    empty = {"metrics.jsonl", "observations.jsonl"}
    written = {name for name in written if not fnmatch(name, _POOLS)}
    if not written <= {"environment.json", MARK, *empty} or not _is_ours(path):
        return False
    return all((path / name).stat().st_size == 0 for name in written & empty)


def is_run(path: Path) -> bool:
    """Return whether `path` is a run, which is a folder with config.yaml and metrics.jsonl."""
    return (path / "config.yaml").is_file() and (path / "metrics.jsonl").is_file()


def _check_free(path: Path, overwrite: bool) -> None:
    """Reject a folder that is not empty, except a half-made run and, with `overwrite`, a run."""
    if path.exists() and not path.is_dir():
        raise EchoError(f"{escape_unprintable(path)} is not a folder", "choose another --run-name or --output-dir")
    names = _names(path)
    if not names or is_half_made(path):
        return
    if not _is_ours(path):
        raise EchoError(
            f"{escape_unprintable(path)} is not empty and not a run", "choose another --run-name or --output-dir"
        )
    if not overwrite:
        raise EchoError(
            f"{escape_unprintable(path)} already contains a run",
            "continue it with --resume, replace it with --overwrite, or choose another --run-name",
        )


def _names(path: Path) -> set[str]:
    return {entry.name for entry in path.iterdir()} if path.is_dir() else set()


def _is_ours(path: Path) -> bool:
    record = path / "environment.json"
    return record.is_file() and read_json(record).get("format") == _FORMAT


def _is_observation(row: Row) -> bool:
    texts = isinstance(row.get("command"), str) and isinstance(row.get("output"), str)
    return texts and isinstance(row.get("step"), int) and isinstance(row.get("exit_code", ""), int | None)
