"""What the commands print: tables of results, as plain text that also reads well in a file.

Text that came from an environment or a model is data: control characters are made visible.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.color import ColorSystem
from rich.console import COLOR_SYSTEMS, Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    pass


def new_table(*columns: str) -> Table:
    """A table of text on the left and figures on the right."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(Text(column), justify="left" if number == 0 else "right", no_wrap=True)
    return table


def print_table(table: Table) -> None:
    """Print on stdout."""
    # Wide enough that no figure is cut, on a narrow terminal too.
    Console(highlight=False, width=160).print(table)


def has_colours() -> bool:
    """Whether stdout is a terminal with colours, and nobody asked for none (NO_COLOR)."""
    return colours_of_stdout() is not None


def colours_of_stdout() -> ColorSystem | None:
    """The colours that stdout has; None where it is no terminal, has none, or somebody asked for none (NO_COLOR)."""
    console = Console()
    if not console.is_terminal or console.color_system is None or console.no_color:
        return None
    return COLOR_SYSTEMS[console.color_system]


def width_of_stdout() -> int | None:
    """Columns of the terminal that stdout is; None where it is no terminal."""
    console = Console()
    return console.width if console.is_terminal else None


def number(value: float | None) -> str:
    """Three decimals, or a dash."""
    return "-" if value is None else f"{value:.3f}"
