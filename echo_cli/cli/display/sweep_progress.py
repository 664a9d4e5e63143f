"""How a sweep goes, on stderr: a live table on a terminal, plain lines elsewhere; read from the cells' metrics."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich import box
from rich.console import Console
from rich.live import Live
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from echo_cli.cli.display.progress import print_plain
from echo_cli.errors import EchoError
from echo_cli.files import Row, read_jsonl
from echo_cli.sweeps.plan import Cell, shown_coeff
from echo_cli.sweeps.runner import Outcome

Outcomes = Mapping[str, Outcome]

_COLUMNS = ("λ", "seed", "status", "step", "held-out env-CE", "reward")
_SHOWN = ("heldout/env_ce", "train/reward")
_NO_ROW = -1
_ACTIVE = {"running", "stopping"}
_FRAME = 5
"""Lines of the live table around its rows, and the cursor's."""
_LEAST_COLUMNS = 3
_WIDE = 1000


@contextmanager
def sweep_progress(cells: Sequence[Cell]) -> Iterator[Callable[[Outcomes], None]]:
    """Shows the outcomes of `cells` as they are given to it, with what their metrics.jsonl have gained since."""
    followed = [Followed(cell) for cell in cells]
    for one in followed:
        one.read()
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        statuses: dict[str, Outcome] = {}
        yield lambda outcomes: _print_lines(followed, outcomes, statuses)
        return
    with Live(console=console, auto_refresh=False) as live:
        yield lambda outcomes: live.update(live_table(console, followed, outcomes), refresh=True)


class Followed:
    """A cell's metrics file, read again when it has changed."""

    def __init__(self, cell: Cell) -> None:
        self.cell = cell
        self.step = _NO_ROW
        self.latest: dict[str, float] = {}
        self._path = cell.path / "metrics.jsonl"
        self._stamp: tuple[int, int] | None = None

    def read(self) -> list[Row]:
        """The rows that came since; a run that went back to a checkpoint, or to its start, gives its rows again."""
        if not self._path.is_file():
            return []
        stat = self._path.stat()
        if (stat.st_mtime_ns, stat.st_size) == self._stamp:
            return []
        self._stamp = stat.st_mtime_ns, stat.st_size
        try:
            rows = list(read_jsonl(self._path))
        except EchoError:  # of a damaged file; the cell's own process says so, or --overwrite replaces it
            return []
        last = rows[-1]["step"] if rows else _NO_ROW
        new = [row for row in rows if row["step"] > self.step]
        self.step = last
        self.latest = {key: row[key] for row in rows for key in _SHOWN if row.get(key) is not None}
        return new


def _print_lines(followed: Sequence[Followed], outcomes: Outcomes, before: dict[str, Outcome]) -> None:
    """Print what is new since `before`, which becomes `outcomes`."""
    for one in followed:
        outcome, earlier = outcomes[one.cell.name], before.get(one.cell.name, Outcome("waiting"))
        if outcome.status == "running" and outcome != earlier:
            print(f"{one.cell.title}: running", file=sys.stderr, flush=True)
        if _ACTIVE & {outcome.status, earlier.status}:
            for row in one.read():
                print_plain(row, one.cell.config.steps, one.cell.title)
        if earlier.status in _ACTIVE and outcome != earlier:
            error = f": {outcome.error}" if outcome.error else ""
            print(f"{one.cell.title}: {outcome.status}{error}", file=sys.stderr, flush=True)
    before.update(outcomes)


def live_table(console: Console, followed: Sequence[Followed], outcomes: Outcomes) -> Table:
    """The live table, as much of it as the terminal has room for: cells that run come first, the last columns go."""
    for one in followed:
        one.read()
    shown = _fitting(followed, outcomes, console.height - _FRAME)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, column in enumerate(_COLUMNS):
        table.add_column(column, justify="left" if number == 2 else "right", no_wrap=True)
    for one in shown:
        cell, status = one.cell, outcomes[one.cell.name].status
        step = "" if one.step == _NO_ROW else f"{one.step}/{cell.config.steps}"
        values = (f"{one.latest[key]:.3f}" if key in one.latest else "" for key in _SHOWN)
        table.add_row(shown_coeff(cell.coeff), str(cell.seed), Text(status, _STYLES[status]), step, *values)
    hidden = Counter(outcomes[one.cell.name].status for one in followed if one not in shown)
    if hidden:
        table.caption = "and " + ", ".join(f"{count} {status}" for status, count in hidden.items())
    while Measurement.get(console, console.options.update(width=_WIDE), table).maximum > console.width:
        if len(table.columns) <= _LEAST_COLUMNS:
            break
        table.columns.pop()
    return table


def _fitting(followed: Sequence[Followed], outcomes: Outcomes, room: int) -> list[Followed]:
    """The cells that fit into `room` lines, those that run first, in their order."""
    by_need = sorted(followed, key=lambda one: outcomes[one.cell.name].status not in _ACTIVE)
    kept = by_need[: max(room, 1)]
    return [one for one in followed if one in kept]


_STYLES = {
    "waiting": "dim",
    "running": "bold",
    "stopping": "bold yellow",
    "finished": "green",
    "diverged": "yellow",
    "collapsed": "yellow",
    "failed": "red",
    "stopped": "dim",
}
