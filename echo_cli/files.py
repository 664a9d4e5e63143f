"""Files that survive a kill, a full disk and a power cut: replaced whole or grown at the end, and one-line errors.

A kill can cut the last line of a JSONL file and nothing else: readers leave such a line out.
"""

from __future__ import annotations

import csv
import errno
import fcntl
import hashlib
import io
import json
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from echo_cli.errors import EchoError
from echo_cli.text import escape_unprintable

Row = dict[str, Any]
"""A JSON object."""

TEMPORARY = ".tmp-"
"""What the names of unfinished files and folders begin with."""

_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NOT_WRITABLE = {
    *{errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR},
    *{errno.EEXIST, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG},
}


def append_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append `rows` as lines of strict JSON (NaN and infinities as null), all of them or none; not fsynced.

    Raises:
        EchoError: the disk is full (exit code 1; what was there before is intact) or the file is not writable.
    """
    data = memoryview("".join(f"{_json(row)}\n" for row in rows).encode())
    with os_errors(path), path.open("ab", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            while data:
                data = data[file.write(data) :]
        except OSError:
            if os.fstat(file.fileno()).st_size > size:
                file.truncate(size)  # half a row would spoil the line that is appended after it
            raise


def read_jsonl(path: Path) -> Iterator[Row]:
    """The objects of a JSONL file. A last line without its newline that does not parse was cut, and is left out.

    Raises:
        EchoError: another line is not a JSON object; names the file and the line.
    """
    return (row for _, row, _ in _lines(path))


def truncate_jsonl(path: Path, after_step: int, step_of: Callable[[Row], int]) -> None:
    """Drop the rows whose step is above `after_step`, and a cut last line; the other lines keep their bytes.

    Raises:
        EchoError: a line is not a JSON object with a step, or the file cannot be rewritten.
    """
    kept = []
    for number, row, line in _lines(path):
        try:
            step = step_of(row)
        except (KeyError, TypeError, ValueError) as error:
            raise EchoError(f"{escape_unprintable(path)}:{number}: the row has no step", "remove that line") from error
        if step <= after_step:
            kept.append(line)
    write_atomic(path, b"".join(kept))


def read_json(path: Path) -> Row:
    """The object of a JSON file.

    Raises:
        EchoError: it is not a JSON object.
    """
    return _parse(path.read_bytes(), escape_unprintable(path))


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a strict JSON object (NaN and infinities as null), indented. Errors as in `write_atomic`."""
    write_atomic(path, f"{_json(value, indent=2)}\n".encode())


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a table with a line of column names; None is an empty cell. Errors as in `write_atomic`."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([columns, *rows])
    write_atomic(path, text.getvalue().encode())


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` to `path`, replaced whole or left as it was.

    Raises:
        EchoError: the disk is full (exit code 1) or the folder is not writable.
    """
    with atomic_file(path) as file:
        file.write(data)


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the name `path` once the body is through; where that raises, what was there stays.

    Raises:
        EchoError: the disk is full (exit code 1) or the folder is not writable.
    """
    temporary = path.with_name(f"{TEMPORARY}{path.name}-{os.getpid()}")
    with os_errors(path):
        try:
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            delete(temporary)
            raise
        fsync(path.parent)


@contextmanager
def output_file(path: Path | None, *, overwrite: bool) -> Iterator[BinaryIO]:
    """A file for a command's result: `path`, or None for stdout. What the body wrote is there once it is through.

    A device or a pipe at `path` is written to; it has nothing that could be overwritten, and stays what it is.

    Raises:
        EchoError: `path` is there already and is not to be overwritten; stdout is closed; as in `atomic_file`.
    """
    if path is None and sys.stdout is None:
        raise EchoError("standard output is closed", "give --output a file", exit_code=1)
    if path is None or (path.exists() and not path.is_file() and not path.is_dir()):
        with tempfile.TemporaryFile() as held:
            with os_errors(Path(tempfile.gettempdir())):
                yield held
                held.seek(0)
            if path is None:
                shutil.copyfileobj(held, sys.stdout.buffer)
                sys.stdout.flush()
            else:
                with os_errors(path), path.open("wb") as file:
                    shutil.copyfileobj(held, file)
        return
    if path.is_dir():
        raise EchoError(f"{escape_unprintable(path)} is a folder", "--output takes the name of a file")
    if path.exists() and not overwrite:
        raise EchoError(
            f"{escape_unprintable(path)} is there already", "replace it with --overwrite, or choose another --output"
        )
    with os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path.resolve() if path.is_symlink() else path) as file:  # the link stays one
        yield file


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Hold the `.lock` of a folder. The kernel releases it when the process ends, kill -9 included.

    Raises:
        EchoError: it is held already, by another process or by this one.
    """
    with os_errors(folder):
        file = (folder / ".lock").open("a")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            tip = "wait until it ends, or choose another --run-name"
            raise EchoError(f"{escape_unprintable(folder)} is held by another process", tip) from error
        yield


@contextmanager
def os_errors(path: Path) -> Iterator[None]:
    """Turn an OSError into the one-line error of `path`: exit code 2 where the place is wrong, 1 where it failed.

    Raises:
        EchoError: the body raised an OSError.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or type(error).__name__
        message = f"cannot write {escape_unprintable(path)}: {reason}"
        tip = "what was there before is intact: once the disk is well, run the command again (a run: with --resume)"
        exit_code = 1
        if error.errno in _DISK_FULL:
            message = f"the disk is full: cannot write {escape_unprintable(path)} ({reason})"
            tip = "free some space and run the command again (a run: with --resume); what was there before is intact"
        elif error.errno in _NOT_WRITABLE:
            tip = "choose a place that you can write to: --output-dir (pictures, traces: --output; pool build: OUT)"
            exit_code = 2
        raise EchoError(message, tip, exit_code=exit_code) from error


def check_writable(folder: Path) -> None:
    """See that files can be made in `folder` or, where there is none yet, in the nearest folder above it.

    Raises:
        EchoError: they cannot.
    """
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    with os_errors(there), tempfile.TemporaryFile(dir=there):
        pass


def delete(path: Path) -> None:
    """Remove a file, a link or a whole folder; nothing happens where there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def fsync(path: Path) -> None:
    """Bring a file, or the names in a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _lines(path: Path) -> Iterator[tuple[int, Row, bytes]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                row = _parse(line, f"{escape_unprintable(path)}:{number}")
            except EchoError:
                if not line.endswith(b"\n"):  # only the last line can lack it
                    return
                raise
            yield number, row, line if line.endswith(b"\n") else line + b"\n"


def _parse(text: bytes, where: str) -> Row:
    tip = "the file was changed or damaged after it was written"
    try:
        value = json.loads(text, parse_constant=lambda _: None)
    except (ValueError, RecursionError) as error:  # JSONDecodeError, UnicodeDecodeError, ten thousand brackets
        raise EchoError(f"{where}: not JSON", tip) from error
    if not isinstance(value, dict):
        raise EchoError(f"{where}: not a JSON object", tip)
    return value


def _json(value: Any, indent: int | None = None) -> str:
    return json.dumps(_finite(value), ensure_ascii=False, allow_nan=False, indent=indent)


def _finite(value: Any) -> Any:
    """`value` with null for every NaN and infinity."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    return value
