"""Tables of results, as plain text that is also readable in a file, and the console that renders them.

Text that came from an environment or a model is data: control characters are made visible.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from rich import box
from rich.color import ColorSystem
from rich.console import COLOR_SYSTEMS, Console, ConsoleOptions, RenderableType
from rich.measure import Measurement
from rich.segment import Segment
from rich.style import Style
from rich.table import Table
from rich.text import Text

from echo_cli.terminal import Styled, joined, unguarded
from echo_cli.text import escape_unprintable

COLUMNS = 80
"""Width of a table where stdout is not a terminal, and least width of one, columns."""
_WIDEST = 160


class TextTable(Table):
    """A table whose cells are text: escaped, and without markup."""

    def add_row(
        self, *cells: RenderableType | None, style: Style | str | None = None, end_section: bool = False
    ) -> None:
        """Add a row; a `str` cell is one line of text."""
        texts = [Text(joined(cell)) if isinstance(cell, str) else cell for cell in cells]
        super().add_row(*texts, style=style, end_section=end_section)


def new_table(*columns: str) -> TextTable:
    """Return an empty table; its first column is left-aligned, the others are right-aligned."""
    table = TextTable(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(
            Text(escape_unprintable(column, keep="\n")), justify="left" if number == 0 else "right", no_wrap=True
        )
    return table


def print_table(table: TextTable) -> None:
    """Print `table` on stdout, in parts below each other if it is wider than the terminal, or than 80 columns."""
    for part in parts_of(table, max(width_of_stdout() or 0, COLUMNS)):
        # Wide enough that a narrow terminal does not cut figures.
        new_console(width=_WIDEST).print(part)


def parts_of(table: TextTable, width: int) -> list[TextTable]:
    """Split the columns of `table` into tables of at most `width` columns, each with the first column.

    A table with a column that is too wide for that, such as text, is returned whole.
    """
    first, *rest = range(len(table.columns))
    parts, chosen = [], [first]
    for column in rest:
        if len(chosen) > 1 and _width_of(_with_columns(table, [*chosen, column])) > width:
            parts.append(chosen)
            chosen = [first]
        chosen.append(column)
    tables = [_with_columns(table, part) for part in (*parts, chosen)]
    return tables if all(_width_of(part) <= width for part in tables) else [table]


def _with_columns(table: TextTable, numbers: Sequence[int]) -> TextTable:
    columns = [table.columns[number] for number in numbers]
    part = TextTable(box=table.box, pad_edge=table.pad_edge, padding=table.padding)
    for column in columns:
        part.add_column(column.header, justify=column.justify, no_wrap=column.no_wrap)
    for row, cells in zip(table.rows, zip(*(column.cells for column in columns), strict=True), strict=True):
        part.add_row(*cells, end_section=row.end_section)
    return part


def _width_of(table: Table) -> int:
    console = new_console(width=_WIDEST)
    return Measurement.get(console, console.options, table).maximum


class _Console(Console):
    """A console that escapes all text, whatever renders it."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Yield the segments of `renderable`; control segments, such as movements of the cursor, are rich's own."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=escape_unprintable(segment.text, keep="\n"))


def new_console(*, err: bool = False, width: int | None = None) -> Console:
    """Return a console on stdout or, with `err`, on stderr; it reads no markup in text."""
    stream = unguarded(sys.stderr if err else sys.stdout)
    return _Console(file=stream, stderr=err, width=width, highlight=False, markup=False, emoji=False)


def colours_of_stdout() -> ColorSystem | None:
    """Return the colour system of stdout; None if it is not a colour terminal or NO_COLOR is set."""
    console = new_console()
    if not console.is_terminal or console.color_system is None or console.no_color:
        return None
    return COLOR_SYSTEMS[console.color_system]


def width_of_stdout() -> int | None:
    """Return the width of stdout's terminal, columns; None if stdout is not a terminal."""
    console = new_console()
    return console.width if console.is_terminal else None


def styled(text: str, style: Style, colours: ColorSystem | None) -> Styled:
    """Return `text` escaped and, unless `colours` is None, in `style`."""
    return Styled(style.render(joined(text), color_system=colours))


def number(value: float | None) -> str:
    """Format `value` with three decimals, None as a dash."""
    return "-" if value is None else f"{value:.3f}"
