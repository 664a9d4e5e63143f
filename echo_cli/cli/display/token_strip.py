"""Nats per token on a ramp of eight levels above 0: characters under a text, or shades behind it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from rich.cells import cell_len
from rich.color import ColorSystem
from rich.style import Style

from echo_cli.cli.display.tables import styled
from echo_cli.terminal import Styled, joined
from echo_cli.text import LINES, escape_unprintable

BLOCKS, DIGITS = " ▁▂▃▄▅▆▇█", " 12345678"
"""Characters of levels 0 to 8, and a fallback for terminals that cannot print them."""
LOWEST = 1 / 16
"""Lower bound of level 1, nats per token; it doubles per level, up to 8 nats."""

_SHADES = ("#fff7d6", "#ffeda0", "#fed976", "#feb24c", "#fd8d3c", "#fc4e2a", "#e31a1c", "#9d0022")
_LIGHT = 7
"""First level with white text; the text on lighter shades is black."""

CellNats = Sequence[float | None]
"""Nats of each character's token, by character index; None if the token was not scored."""


def level(nats: float) -> int:
    """Return the ramp level of `nats`, 0 to 8; NaN has level 8."""
    if not nats < 8:
        return 8
    return 0 if nats < LOWEST else math.floor(math.log2(nats / LOWEST)) + 1


def strip(row: Sequence[Cell], nats: CellNats, ramp: str) -> str:
    """Return the strip below a row: in each column the ramp character of its token, or a dot if it was not scored."""
    marks = []
    for cell in row:
        value = nats[cell.index]
        marks.append(("·" if value is None else ramp[level(value)]) * cell.width)
    return "".join(marks).rstrip()


def shaded(row: Sequence[Cell], nats: CellNats, colours: ColorSystem) -> Styled:
    """Return the text of a row, shaded by token; a shaded newline is a space at the end."""

    def of(cell: Cell) -> int:
        value = nats[cell.index]
        return 0 if value is None else level(value)

    parts = []
    for step, run in groupby(row, key=of):
        cells = list(run)
        text = "".join(cell.shown or (" " if step else "") for cell in cells)
        parts.append(_shade(text, step, colours))
    return joined(*parts)


def legend(ramp: str, colours: ColorSystem | None) -> Styled:
    """Return a one-line legend of the ramp."""
    bounds = [f"{LOWEST * 2**step:.2g}" for step in range(8)]
    steps: list[str]
    if colours is None:
        steps = [f"{mark} {bound}" for mark, bound in zip(ramp[1:], bounds, strict=True)]
    else:
        steps = [_shade(f" {bound} ", step, colours) for step, bound in enumerate(bounds, start=1)]
    between = " " if colours else "  "
    parts = [part for step in steps for part in (between, step)]
    return joined("nats/token, from: ", *parts[1:])


def _shade(text: str, step: int, colours: ColorSystem) -> Styled:
    if not step:
        return joined(text)
    style = Style(color="#000000" if step < _LIGHT else "#ffffff", bgcolor=_SHADES[step - 1])
    return styled(text, style, colours)


_TAB = 8


@dataclass(frozen=True, slots=True)
class Cell:
    """A character: its index in the text, its shown form and width in columns. A newline is empty, one column wide."""

    index: int
    shown: str
    width: int


def rows_of(text: str, width: int) -> Iterator[list[Cell]]:
    """Yield the rows of `text`, at most `width` columns each, not counting a newline at the end of a row.

    A character wider than `width` has a row of its own. A final newline adds no empty row; empty text has one.
    """
    row: list[Cell] = []
    column = line_column = 0  # within the row, and within the line, for tab stops
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
