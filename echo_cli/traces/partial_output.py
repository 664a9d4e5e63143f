"""A command's output file that survives an interruption: the same command continues it.

Until it is complete, the file is `OUT.partial`, and `OUT.partial.json` says of which job it is, how much of the file
counts, and the job's state at that point. They are written to disk in this order, so a kill, Ctrl-C or a power cut
loses at most what came after.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from pydantic import TypeAdapter, ValidationError

from echo_cli.errors import EchoError
from echo_cli.files import fsync, os_errors
from echo_cli.symlinks import folder_of, make_folder
from echo_cli.text import escape_unprintable

Job = Mapping[str, Any]
"""What an output depends on, as JSON, by what an error calls it."""

_BEGIN_ANEW = "begin anew with --overwrite"


@dataclass(frozen=True)
class _Saved:
    """Content of `OUT.partial.json`."""

    job: dict[str, Any]
    written: int = 0
    """Number of bytes of `OUT.partial` that count."""
    state: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PartialOutput:
    """An output file that is not complete."""

    file: BinaryIO
    state: dict[str, Any]
    """State at the end of `file`, from an earlier call of the same job; empty if the job begins."""
    _job: Job
    _folder: int
    _name: str
    """Name of the file with the state, in the folder of the descriptor `_folder`."""

    def save(self, state: dict[str, Any]) -> None:
        """Let the job continue from here with `state`, a JSON object, if this process ends."""
        self.file.flush()
        os.fsync(self.file.fileno())
        saved = _Saved(dict(self._job), self.file.tell(), state)
        with _opened(f"{self._name}.new", self._folder, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, "wb") as file:
            file.write(json.dumps(asdict(saved)).encode())
            file.flush()
            os.fsync(file.fileno())
        os.replace(f"{self._name}.new", self._name, src_dir_fd=self._folder, dst_dir_fd=self._folder)


def partial_path(output: Path) -> Path:
    """Return the path of an output file that is not complete."""
    return output.with_name(f"{output.name}.partial")


@contextmanager
def partial_output(output: Path, job: Job, *, overwrite: bool) -> Iterator[PartialOutput]:
    """Yield a file that becomes `output` when the body ends, at the place where an earlier call of the job ended.

    If the body raises an error of exit code 2, which the same command would meet again, nothing is left.

    Args:
        job: what the output depends on.
        overwrite: whether to replace an existing `output`, and to begin anew where the earlier call was of another job.

    Raises:
        EchoError: `output` exists or another job was interrupted, and `overwrite` is false; `output` is a folder, or
            another process writes it; the disk is full (exit code 1) or the folder is not writable.
    """
    if output.is_dir():
        raise EchoError(f"{escape_unprintable(output)} is a folder", "--output requires the name of a file")
    if output.exists() and not overwrite:
        raise EchoError(
            f"{escape_unprintable(output)} already exists", "replace it with --overwrite, or choose another --output"
        )
    with os_errors(output):
        make_folder(output.parent, mode=0o700)
        with folder_of(output) as (folder, name):
            unfinished = partial_path(Path(name)).name
            with _opened(unfinished, folder, os.O_RDWR | os.O_CREAT, "r+b") as file:
                _lock(file, output)
                saved = _saved(f"{unfinished}.json", folder, file, output, job, overwrite=overwrite)
                file.truncate(saved.written)
                file.seek(saved.written)
                try:
                    yield PartialOutput(file, saved.state, job, folder, f"{unfinished}.json")
                    file.flush()
                    os.fsync(file.fileno())
                except EchoError as error:
                    if error.exit_code == 2:
                        _delete(folder, unfinished, f"{unfinished}.json")
                    raise
                _rename(unfinished, name, folder, replace=overwrite)
            _delete(folder, f"{unfinished}.json")
            fsync(Path("."), folder=folder)


def _saved(name: str, folder: int, file: BinaryIO, output: Path, job: Job, *, overwrite: bool) -> _Saved:
    """Return where an earlier call of the job ended, or the beginning if there was none."""
    beginning, shown = _Saved(dict(job)), escape_unprintable(partial_path(output))
    try:
        with _opened(name, folder, os.O_RDONLY, "rb") as written:
            saved = TypeAdapter(_Saved).validate_json(written.read(), strict=True)
    except FileNotFoundError:
        return beginning
    except ValidationError as error:
        if overwrite:
            return beginning
        raise EchoError(f"{shown} cannot be continued: {shown}.json is damaged", _BEGIN_ANEW) from error
    different = next((what for what in job if saved.job.get(what) != job[what]), None)
    if different is None and saved.written <= os.fstat(file.fileno()).st_size:
        return saved
    if overwrite:
        return beginning
    if different is None:
        raise EchoError(f"{shown} cannot be continued: it is shorter than it was", _BEGIN_ANEW)
    raise EchoError(
        f"{shown} is of an interrupted command with other {different}",
        f"repeat that command to continue it, or {_BEGIN_ANEW}",
    )


@contextmanager
def _opened(name: str, folder: int, flags: int, mode: str) -> Iterator[BinaryIO]:
    descriptor = os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666, dir_fd=folder)
    with open(descriptor, mode) as file:
        if os.fstat(descriptor).st_uid != os.geteuid():
            raise EchoError(f"{escape_unprintable(name)} belongs to another user", "choose another --output")
        yield file  # type: ignore[misc]  # a binary file, as `mode` says


def _lock(file: BinaryIO, output: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        name = escape_unprintable(output)
        raise EchoError(
            f"{name} is being written by another process", "wait until it ends, or choose another --output"
        ) from error


def _rename(unfinished: str, name: str, folder: int, *, replace: bool) -> None:
    if not replace:
        os.link(unfinished, name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
        os.unlink(unfinished, dir_fd=folder)
        return
    os.replace(unfinished, name, src_dir_fd=folder, dst_dir_fd=folder)


def _delete(folder: int, *names: str) -> None:
    for name in names:
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=folder)
