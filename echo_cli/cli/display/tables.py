"""Tables of results, as plain text that is also readable in a file.

Text that came from an environment or a model is data: control characters are made visible.
"""

from __future__ import annotations

from rich import box
from rich.color import ColorSystem
from rich.console import COLOR_SYSTEMS, Console
from rich.table import Table
from rich.text import Text


def new_table(*columns: str) -> Table:
    """Return an empty table; its first column is left-aligned, the others are right-aligned."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(Text(column), justify="left" if number == 0 else "right", no_wrap=True)
    return table


def print_table(table: Table) -> None:
    """Print `table` on stdout."""
    # Wide enough that a narrow terminal does not cut figures.
    Console(highlight=False, width=160).print(table)


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
