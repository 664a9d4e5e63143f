"""Files to import: plain or compressed, or standard input."""

from __future__ import annotations

import bz2
import gzip
import importlib.util
import io
import lzma
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from io import BufferedReader
from pathlib import Path
from typing import IO, Any, cast

from echo_cli.errors import EchoError, missing_package
from echo_cli.text import escape_unprintable, foreign_encoding
from echo_cli.traces.containers.hub_datasets import dataset_of, is_dataset, size_of
from echo_cli.traces.containers.tables import is_table
from echo_cli.traces.cursor import Cursor

STDIN = Path("-")
"""Name of standard input among the files to import."""

LONGEST_LINE = 128 * 2**20
"""Length of the longest line that is read, bytes."""
TOO_LONG = f"a line longer than {LONGEST_LINE // 2**20} MiB"

_BLOCK = 2**18
"""Size of the parts in which a file is read, bytes."""

_ZSTD_BLOCK = 2**12
"""Size of the parts that are decompressed at once, bytes; such a part of zstd can hold 128 MiB of text."""


@contextmanager
def input_file(path: Path, cursor: Cursor | None = None) -> Iterator[IO[bytes]]:
    """Open a file to import, or standard input for STDIN; gzip, bzip2, xz and zstd are decompressed, whatever the name.

    Args:
        cursor: told how many bytes have been read.

    Raises:
        EchoError: the file is a table or in an encoding that is not read, its compressed data is damaged, or the extra
            `zstd` is needed and not installed.
        OSError: the file cannot be read.
    """
    if path != STDIN and is_table(path):
        raise EchoError(f"{escape_unprintable(path)} is a table, not text", "this format is not read from tables")
    with ExitStack() as stack:
        raw = sys.stdin.buffer if path == STDIN else stack.enter_context(path.open("rb", buffering=_BLOCK))
        if cursor is not None and raw.seekable():
            cursor.consumed = raw.tell
        name = "standard input" if path == STDIN else escape_unprintable(path)
        encoding, tip = foreign_encoding(cast(BufferedReader, raw).peek(8)) or (None, "")
        if encoding is None:
            yield raw
            return
        if encoding not in _OPENERS:
            raise EchoError(f"{name} is {encoding}, not UTF-8 text", tip)
        try:
            yield stack.enter_context(_OPENERS[encoding](raw))
        except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
            raise EchoError(f"cannot read {name}: its {encoding} data is damaged", "copy the file again") from error


def input_stamp(path: Path) -> tuple[int, int]:
    """Return the size of a file, or of a data set in memory, in bytes, and the time of its last change, in ns.

    A data set has its number of rows in place of a time; what cannot be read twice has zeros.

    Raises:
        OSError: the file cannot be read.
    """
    if is_dataset(path):
        dataset = dataset_of(path)
        return size_of(dataset), len(dataset)
    if path == STDIN or not path.is_file():
        return 0, 0
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def first_bytes(path: Path) -> bytes:
    """Return the first 16 bytes of a file, as they are on disk; none of a data set.

    Raises:
        OSError: the file cannot be read.
    """
    if is_dataset(path):
        return b""
    with path.open("rb") as file:
        return file.read(16)


def lines_of(file: IO[bytes], cursor: Cursor | None = None) -> Iterator[tuple[int, bytes | None]]:
    """Yield the number of each line of a file, 1-based, and the line, or None for one longer than `LONGEST_LINE`.

    Args:
        cursor: place to begin at, moved to each line that is read.
    """
    offset, number = (0, 0) if cursor is None else cursor.place
    _skip(file, offset)
    while line := file.readline(LONGEST_LINE):
        if cursor is not None:
            cursor.offset, cursor.number = offset, number
        offset, number = offset + len(line), number + 1
        if len(line) < LONGEST_LINE or line.endswith(b"\n"):
            yield number, line
            continue
        while line and not line.endswith(b"\n"):
            line = file.readline(LONGEST_LINE)
            offset += len(line)
        yield number, None


def _skip(file: IO[bytes], size: int) -> None:
    """Pass over the first bytes of a file that was just opened."""
    if size and file.seekable():
        file.seek(size)
        return
    while size and (block := file.read(min(size, _BLOCK))):
        size -= len(block)


class _ZstdFile(io.RawIOBase):
    """Decompressed text of a zstd file. `zstandard`'s own reader ends without an error where the file is cut."""

    def __init__(self, raw: IO[bytes]) -> None:
        if importlib.util.find_spec("zstandard") is None:
            raise missing_package("a zstd file", "zstandard", "zstd")
        self._blocks = _zstd_blocks(raw)
        self._block = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._block:
            if (block := next(self._blocks, None)) is None:
                return 0
            self._block = memoryview(block)
        size = min(len(buffer), len(self._block))
        buffer[:size] = self._block[:size]
        self._block = self._block[size:]
        return size


def _zstd_blocks(raw: IO[bytes]) -> Iterator[bytes]:
    """Yield the decompressed text of a file's frames.

    Raises:
        EOFError: the data is damaged or cut.
    """
    import zstandard

    data = raw.read(_ZSTD_BLOCK)
    while data:
        frame = zstandard.ZstdDecompressor().decompressobj()
        while not frame.eof:
            if not data and not (data := raw.read(_ZSTD_BLOCK)):
                raise EOFError
            try:
                yield frame.decompress(data)
            except zstandard.ZstdError as error:
                raise EOFError from error
            data = b""
        data = frame.unused_data or raw.read(_ZSTD_BLOCK)


_OPENERS: dict[str, Callable[[Any], Any]] = {
    **{"gzip": gzip.open, "bzip2": bz2.open, "xz": lzma.open},
    "zstd": lambda raw: BufferedReader(_ZstdFile(raw)),
}
