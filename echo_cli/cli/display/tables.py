"""Tables of results, as plain text that is also readable in a file.

Text that came from an environment or a model is data: control characters are made visible.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.color import ColorSystem
from rich.console import COLOR_SYSTEMS, Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

COLUMNS = 80
"""Width of a table where stdout is not a terminal, and least width of one, columns."""
_WIDEST = 160


def new_table(*columns: str) -> Table:
    """Return an empty table; its first column is left-aligned, the others are right-aligned."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(Text(column), justify="left" if number == 0 else "right", no_wrap=True)
    return table


def print_table(table: Table) -> None:
    """Print `table` on stdout, in parts below each other if it is wider than the terminal, or than 80 columns."""
    for part in parts_of(table, max(width_of_stdout() or 0, COLUMNS)):
        # Wide enough that a narrow terminal does not cut figures.
        Console(highlight=False, width=_WIDEST).print(part)


def parts_of(table: Table, width: int) -> list[Table]:
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


def _with_columns(table: Table, numbers: Sequence[int]) -> Table:
    columns = [table.columns[number] for number in numbers]
    part = Table(box=table.box, pad_edge=table.pad_edge, padding=table.padding)
    for column in columns:
        part.add_column(column.header, justify=column.justify, no_wrap=column.no_wrap)
    for row, cells in zip(table.rows, zip(*(column.cells for column in columns), strict=True), strict=True):
        part.add_row(*cells, end_section=row.end_section)
    return part


def _width_of(table: Table) -> int:
    console = Console(width=_WIDEST)
    return Measurement.get(console, console.options, table).maximum


def has_colours() -> bool:
    """Return whether stdout is a colour terminal and NO_COLOR is not set."""
    return colours_of_stdout() is not None


def colours_of_stdout() -> ColorSystem | None:
    """Return the colour system of stdout; None if it is not a colour terminal or NO_COLOR is set."""
    console = Console()
    if not console.is_terminal or console.color_system is None or console.no_color:
        return None
    return COLOR_SYSTEMS[console.color_system]


def width_of_stdout() -> int | None:
    """Return the width of stdout's terminal, columns; None if stdout is not a terminal."""
    console = Console()
    return console.width if console.is_terminal else None


def number(value: float | None) -> str:
    """Format `value` with three decimals, None as a dash."""
    return "-" if value is None else f"{value:.3f}"
