"""Nats per token as a ramp: eight characters under a text, or eight shades behind it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from rich.cells import cell_len
from rich.color import ColorSystem
from rich.style import Style

from echo_cli.text import LINES, escape_unprintable

BLOCKS, DIGITS = " ▁▂▃▄▅▆▇█", " 12345678"
"""The ramp, and one for terminals that cannot write it."""
LOWEST = 1 / 16
"""Nats from which a token is on the ramp; each step is twice the one before, up to 8 nats."""

_SHADES = ("#fff7d6", "#ffeda0", "#fed976", "#feb24c", "#fd8d3c", "#fc4e2a", "#e31a1c", "#9d0022")
_LIGHT = 7
"""The shades before it have black text on them, the others white."""

CellNats = Sequence[float | None]
"""By the index of a character, the nats of its token; None where nothing was scored."""


def level(nats: float) -> int:
    """The step of the ramp, 0 to 8. What is not a number is as hard as can be."""
    if not nats < 8:
        return 8
    return 0 if nats < LOWEST else math.floor(math.log2(nats / LOWEST)) + 1


def strip(row: Sequence[Cell], nats: CellNats, ramp: str) -> str:
    """The ramp's characters under a row, a token's under each of its columns; a dot where nothing was scored."""
    marks = []
    for cell in row:
        value = nats[cell.index]
        marks.append(("·" if value is None else ramp[level(value)]) * cell.width)
    return "".join(marks).rstrip()


def shaded(row: Sequence[Cell], nats: CellNats, colours: ColorSystem) -> str:
    """The text of a row on the shades of its tokens; a newline's shade is a space at the end."""

    def of(cell: Cell) -> int:
        value = nats[cell.index]
        return 0 if value is None else level(value)

    parts = []
    for step, run in groupby(row, key=of):
        cells = list(run)
        text = "".join(cell.shown or (" " if step else "") for cell in cells)
        parts.append(_shade(text, step, colours))
    return "".join(parts)


def legend(ramp: str, colours: ColorSystem | None) -> str:
    """What the ramp means, in one line."""
    bounds = [f"{LOWEST * 2**step:.2g}" for step in range(8)]
    if colours is None:
        steps = [f"{mark} {bound}" for mark, bound in zip(ramp[1:], bounds, strict=True)]
    else:
        steps = [_shade(f" {bound} ", step, colours) for step, bound in enumerate(bounds, start=1)]
    return f"nats/token, from: {(' ' if colours else '  ').join(steps)}"


def _shade(text: str, step: int, colours: ColorSystem) -> str:
    if not step or not text:
        return text
    style = Style(color="#000000" if step < _LIGHT else "#ffffff", bgcolor=_SHADES[step - 1])
    return style.render(text, color_system=colours)


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
        shown = " " * (_TAB - line_column % _TAB) if character == "\t" else escape_unprintable(character, keep=LINES)
        size = cell_len(shown)
        if row and column + size > width:
            yield row
            row, column = [], 0
        row.append(Cell(index, shown, size))
        column, line_column = column + size, line_column + size
    if row or not text:
        yield row
