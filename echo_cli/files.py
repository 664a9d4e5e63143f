"""Writing that survives a kill and a full disk: atomic replacement, which also survives a power cut, and appending.

A kill can cut only the last line of a JSONL file; readers skip a cut line.
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
import secrets
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from echo_cli.errors import EchoError
from echo_cli.symlinks import folder_of, make_folder, opener
from echo_cli.terminal import put
from echo_cli.text import escape_unprintable, foreign_encoding

Row = dict[str, Any]
"""A JSON object."""

TEMPORARY = ".tmp-"
"""Name prefix of unfinished files and folders."""
_KEPT = 50
"""Maximum number of characters of a name that its unfinished version keeps: a file name has at most 255 bytes."""

_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NOT_WRITABLE = {
    *{errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR},
    *{errno.EEXIST, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG},
}


def append_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append `rows` as lines of strict JSON (NaN and infinities as null), all rows or none, without fsync.

    Raises:
        EchoError: the disk is full (exit code 1; the previous content is intact) or the file is not writable.
    """
    data = memoryview("".join(f"{_json(row)}\n" for row in rows).encode())
    with os_errors(path), open(path, "ab", buffering=0, opener=opener) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            while data:
                data = data[file.write(data) :]
        except OSError:
            if os.fstat(file.fileno()).st_size > size:
                file.truncate(size)  # a partial row would corrupt the next line appended
            raise


def read_jsonl(path: Path) -> Iterator[Row]:
    """Iterate over the objects of a JSONL file; skip a cut last line, which has no newline and does not parse.

    Raises:
        EchoError: another line is not a JSON object; the message names the file and the line.
    """
    return (row for _, row, _ in _lines(path))


def truncate_jsonl(path: Path, after_step: int, step_of: Callable[[Row], int]) -> None:
    """Remove the rows whose step is above `after_step`, and a cut last line; the other lines keep their bytes.

    Raises:
        EchoError: a line is not a JSON object with a step, or the file cannot be rewritten.
    """
    kept = []
    for number, row, line in _lines(path):
        try:
            step = step_of(row)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise EchoError(f"{escape_unprintable(path)}:{number}: the row has no step", "remove that line") from error
        if step <= after_step:
            kept.append(line)
    write_atomic(path, b"".join(kept))


def read_json(path: Path) -> Row:
    """Read the object of a JSON file.

    Raises:
        EchoError: the file is not a JSON object.
    """
    return _parse(path.read_bytes(), escape_unprintable(path))


def read_text(path: Path, noun: str, tip: str) -> str:
    """Return the text of a file in UTF-8, without a byte order mark.

    Args:
        noun: kind of file, for the error message.
        tip: tip if the file cannot be read.

    Raises:
        EchoError: the file cannot be read or is not UTF-8; the message and the tip name a known encoding.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise EchoError(f"cannot read {noun} {escape_unprintable(path)}: {error}", tip) from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        encoding, remedy = foreign_encoding(data) or (None, "save it as UTF-8: iconv -f LATIN1 -t UTF-8 FILE > NEW")
        line = data.count(b"\n", 0, error.start) + 1
        what = f"it is {encoding}, not UTF-8 text" if encoding else f"line {line} is not UTF-8"
        raise EchoError(f"cannot read {noun} {escape_unprintable(path)}: {what}", remedy) from None


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a strict JSON object (NaN and infinities as null), indented; raise as `write_atomic` does."""
    write_atomic(path, f"{_json(value, indent=2)}\n".encode())


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a table with a header of column names; None is an empty cell. Raise as `write_atomic` does."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([columns, *rows])
    write_atomic(path, text.getvalue().encode())


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` to `path` atomically: the file is replaced whole or not changed.

    Raises:
        EchoError: the disk is full (exit code 1) or the folder is not writable.
    """
    with atomic_file(path) as file:
        file.write(data)


@contextmanager
def atomic_file(path: Path, *, replace: bool = True, follow: bool = False) -> Iterator[BinaryIO]:
    """Yield a file that replaces `path` when the body ends; if the body raises, `path` does not change.

    Args:
        replace: whether to replace an existing file; if not, it is an error.
        follow: whether to replace the target of a link at `path`, not the link.

    Raises:
        EchoError: the disk is full (exit code 1) or the folder is not writable.
    """
    with os_errors(path), folder_of(path, follow=follow) as (folder, name):
        unfinished = _unfinished(name)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        descriptor = os.open(unfinished, flags, 0o666, dir_fd=folder)
        try:
            with open(descriptor, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            if replace:
                os.replace(unfinished, name, src_dir_fd=folder, dst_dir_fd=folder)
            else:
                _rename_to_new(unfinished, name, folder)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(unfinished, dir_fd=folder)
            raise
        fsync(Path("."), folder=folder)


def unfinished_beside(path: Path) -> Path:
    """Return the path of an unfinished file or folder that will be renamed to `path`; nobody can guess its name."""
    return path.with_name(_unfinished(path.name))


def left_beside(path: Path) -> list[Path]:
    """Return what killed processes of this user left beside `path` under names of `unfinished_beside`."""
    begin = f"{TEMPORARY}{path.name[:_KEPT]}-"
    found = [entry for entry in os.scandir(path.parent) if entry.name.startswith(begin)]
    return [Path(entry.path) for entry in found if entry.stat(follow_symlinks=False).st_uid == os.geteuid()]


def _unfinished(name: str) -> str:
    return f"{TEMPORARY}{name[:_KEPT]}-{secrets.token_hex(8)}"


def _rename_to_new(unfinished: str, name: str, folder: int) -> None:
    """Rename a file unless `name` exists."""
    try:
        os.link(unfinished, name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        os.rename(unfinished, name, src_dir_fd=folder, dst_dir_fd=folder)
    else:
        os.unlink(unfinished, dir_fd=folder)


@contextmanager
def output_file(path: Path | None, *, overwrite: bool) -> Iterator[BinaryIO]:
    """Yield a file for a command's result in JSON lines, written to `path` (None: stdout) when the body ends.

    A device or a pipe at `path` is written to, not replaced, whatever `overwrite` is.

    Raises:
        EchoError: `path` exists and `overwrite` is false; `path` is a folder; stdout is closed; or as in `atomic_file`.
    """
    # The command line opens the null device, by number, in place of a closed stdout.
    if path is None and (sys.stdout is None or getattr(sys.stdout, "name", None) == 1):
        raise EchoError("standard output is closed", "name a file with --output", exit_code=1)
    if path is None or (path.exists() and not path.is_file() and not path.is_dir()):
        with tempfile.TemporaryFile() as held:
            with os_errors(Path(tempfile.gettempdir())):
                yield held
                held.seek(0)
            if path is None and sys.stdout.isatty():
                for line in held:  # with JSON escapes in place of characters that a terminal obeys
                    put(json.dumps(json.loads(line)))
            elif path is None:
                shutil.copyfileobj(held, sys.stdout.buffer)
                sys.stdout.flush()
            else:
                with os_errors(path), open(path, "wb", opener=opener) as file:
                    shutil.copyfileobj(held, file)
        return
    if path.is_dir():
        raise EchoError(f"{escape_unprintable(path)} is a folder", "--output requires the name of a file")
    if path.exists() and not overwrite:
        raise EchoError(
            f"{escape_unprintable(path)} already exists", "replace it with --overwrite, or choose another --output"
        )
    with os_errors(path):
        make_folder(path.parent, mode=0o700)
    with atomic_file(path, replace=overwrite, follow=True) as file:
        yield file


@contextmanager
def lock_folder(folder: Path, *, shared: bool = False) -> Iterator[None]:
    """Hold the `.lock` of a folder; the kernel releases it when the process ends, even by kill -9.

    Args:
        shared: whether other processes may hold it as well, if they share it too.

    Raises:
        EchoError: the lock is already held, by another process or by this one.
    """
    with os_errors(folder):
        file = open(folder / ".lock", "a+", opener=opener)  # noqa: SIM115 - held by the block below
    with file:
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError as error:
            tip = "wait until that process ends, or choose another --run-name"
            raise EchoError(f"{escape_unprintable(folder)} is locked by another process", tip) from error
        yield


@contextmanager
def os_errors(path: Path) -> Iterator[None]:
    """Turn an OSError into a one-line error about `path`: exit code 2 if the path is not writable, otherwise 1.

    Raises:
        EchoError: the body raised an OSError.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or type(error).__name__
        message = f"cannot write {escape_unprintable(path)}: {reason}"
        tip = "existing files are intact: once the disk works again, repeat the command (a run: with --resume)"
        exit_code = 1
        if error.errno in _DISK_FULL:
            message = f"the disk is full: cannot write {escape_unprintable(path)} ({reason})"
            tip = "free some space and repeat the command (a run: with --resume); existing files are intact"
        elif error.errno in _NOT_WRITABLE:
            tip = "choose a writable path: --output-dir (figures, traces: --output; pool build: OUT)"
            exit_code = 2
        raise EchoError(message, tip, exit_code=exit_code) from error


def check_writable(folder: Path) -> None:
    """Check that files can be created in `folder` or, if it does not exist, in its nearest existing parent.

    Raises:
        EchoError: no file can be created.
    """
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    with os_errors(there), folder_of(there), tempfile.TemporaryFile(dir=there):
        pass


def delete(path: Path) -> None:
    """Remove a file, a link or a whole folder, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def fsync(path: Path, *, folder: int | None = None) -> None:
    """Flush a file, or the entries of a folder, to disk; a relative path starts at `folder`, a descriptor."""
    descriptor = os.open(path, os.O_RDONLY, dir_fd=folder)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
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
                if not line.endswith(b"\n"):  # only the last line can lack its newline
                    return
                raise
            yield number, row, line if line.endswith(b"\n") else line + b"\n"


def _parse(text: bytes, where: str) -> Row:
    tip = "the file was changed or damaged after it was written"
    try:
        value = json.loads(text, parse_constant=lambda _: None)
    except (ValueError, RecursionError) as error:  # JSONDecodeError, UnicodeDecodeError, deep nesting
        raise EchoError(f"{where}: not JSON", tip) from error
    if not isinstance(value, dict):
        raise EchoError(f"{where}: not a JSON object", tip)
    return value


def _json(value: Any, indent: int | None = None) -> str:
    return json.dumps(_finite(value), ensure_ascii=False, allow_nan=False, indent=indent)


def _finite(value: Any) -> Any:
    """Return `value` with None for every NaN and infinity."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    return value
