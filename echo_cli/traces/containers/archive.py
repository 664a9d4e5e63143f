"""Zip archives among the files to import: the names of their members, and one member's bytes at a time."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from echo_cli.errors import EchoError
from echo_cli.text import escape_unprintable

_ZIP = b"PK\x03\x04"
_ZSTANDARD = 93
"""Number of the compression method, which zipfile reads from Python 3.14 on."""
_HEADER = struct.Struct("<26xHH")
"""Local file header: the lengths of the name and of the extra field that follow it."""


def is_archive(start: bytes) -> bool:
    """Return whether a file that begins with these bytes is a zip archive."""
    return start.startswith(_ZIP)


@contextmanager
def open_archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open a zip archive.

    Raises:
        EchoError: the archive is damaged.
        OSError: the file cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (zipfile.BadZipFile, zlib.error, EOFError, struct.error, RuntimeError) as error:
        name = escape_unprintable(path)
        raise EchoError(f"cannot read {name}: its zip data is damaged", "copy the file again") from error


def names_of(path: Path) -> list[str]:
    """Return the names of an archive's members, in order; none if the archive is damaged.

    Raises:
        OSError: the file cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except zipfile.BadZipFile:
        return []


def member_bytes(archive: zipfile.ZipFile, name: str) -> bytes:
    """Return a member of an archive, decompressed.

    Raises:
        EchoError: the member is compressed with zstd, and the package zstandard is not installed.
        zipfile.BadZipFile: the archive is damaged.
    """
    info = archive.getinfo(name)
    if info.compress_type != _ZSTANDARD:
        return archive.read(info)
    try:
        import zstandard
    except ImportError as error:
        named = escape_unprintable(archive.filename or "the archive")
        raise EchoError(f"{named} is compressed with zstd", "install echo-cli[zstd]") from error
    with Path(archive.filename or "").open("rb") as file:
        file.seek(info.header_offset)
        file.seek(sum(_HEADER.unpack(file.read(_HEADER.size))), 1)
        try:
            with zstandard.ZstdDecompressor().stream_reader(file.read(info.compress_size)) as reader:
                data = reader.read()
        except zstandard.ZstdError as error:
            raise zipfile.BadZipFile(str(error)) from error
    if zlib.crc32(data) != info.CRC:
        raise zipfile.BadZipFile(f"{name} is damaged")
    return data
