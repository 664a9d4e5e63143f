"""Files to import: plain or compressed, or standard input."""

from __future__ import annotations

import bz2
import gzip
import lzma
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from io import BufferedReader
from pathlib import Path
from typing import IO, Any, cast

from echo_cli.errors import EchoError
from echo_cli.text import escape_unprintable, foreign_encoding

STDIN = Path("-")
"""Name of standard input among the files to import."""

LONGEST_LINE = 128 * 2**20
"""Length of the longest line that is read, bytes."""

_OPENERS: dict[str, Callable[[Any], Any]] = {"gzip": gzip.open, "bzip2": bz2.open, "xz": lzma.open}


@contextmanager
def input_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a file to import, or standard input for STDIN; gzip, bzip2 and xz are decompressed, whatever the name.

    Raises:
        EchoError: the file is in an encoding that is not read, or its compressed data is damaged.
        OSError: the file cannot be read.
    """
    with ExitStack() as stack:
        raw = sys.stdin.buffer if path == STDIN else stack.enter_context(path.open("rb"))
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


def first_bytes(path: Path) -> bytes:
    """Return the first 16 bytes of a file, as they are on disk.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        return file.read(16)


def lines_of(file: IO[bytes]) -> Iterator[bytes | None]:
    """Yield the lines of a file; None in place of a line longer than `LONGEST_LINE`, which is skipped."""
    while line := file.readline(LONGEST_LINE):
        if len(line) < LONGEST_LINE or line.endswith(b"\n"):
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = file.readline(LONGEST_LINE)
        yield None
