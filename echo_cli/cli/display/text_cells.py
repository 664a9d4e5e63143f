"""Text as the cells of a terminal, row by row: what each character shows and how wide that is.

The text is data: control characters are shown as their code points, tabs as spaces.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rich.cells import cell_len

from echo_cli.cli.display.tables import printable

_TAB = 8


@dataclass(frozen=True, slots=True)
class Cell:
    """A character: its index in the text, what is shown of it, and in how many columns; nothing in one of a newline."""

    index: int
    shown: str
    width: int


def rows_of(text: str, width: int) -> Iterator[list[Cell]]:
    """The rows that `text` fills, at most `width` columns each, a newline at the end of its row beyond them.

    A character that is wider than that has a row of its own. Text that ends with a newline has no empty row after it;
    text that is empty has one.
    """
    row: list[Cell] = []
    column = line_column = 0  # in the row, and in the line that it is a part of
    for index, character in enumerate(text):
        if character == "\n":
            yield [*row, Cell(index, "", 1)]
            row, column, line_column = [], 0, 0
            continue
        shown = " " * (_TAB - line_column % _TAB) if character == "\t" else printable(character)
        size = cell_len(shown)
        if row and column + size > width:
            yield row
            row, column = [], 0
        row.append(Cell(index, shown, size))
        column, line_column = column + size, line_column + size
    if row or not text:
        yield row
