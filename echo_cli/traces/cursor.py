"""Place in a file of records: an import continues from it, and shows its progress by it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass
class Cursor:
    """Place of the record that is read from a file of one record per line, or from a table.

    A reader of whole documents leaves it at the beginning.
    """

    offset: int = 0
    """Offset of the record's line in the text, bytes; 0 in a table."""
    number: int = 0
    """Number of lines, or rows, before the record."""
    consumed: Callable[[], int] = int
    """Function that returns the number of bytes of the file that have been read; of a compressed file, as on disk."""

    @property
    def place(self) -> tuple[int, int]:
        return self.offset, self.number
