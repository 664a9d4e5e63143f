"""Progress of runs and sweeps on stderr: live on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich import box
from rich.console import Console
from rich.live import Live
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text

from echo_cli.cli.display.tables import TextTable, new_console
from echo_cli.errors import EchoError
from echo_cli.files import Row, read_jsonl
from echo_cli.runs.summary import checked_rows, is_met
from echo_cli.sweeps.arms import column_of, row_label
from echo_cli.sweeps.plan import Cell
from echo_cli.sweeps.runner import CellStatus
from echo_cli.terminal import guarded_streams, joined, put
from echo_cli.text import counted

Outcomes = Mapping[str, CellStatus]

_COLUMNS = ("seed", "status", "step", "held-out env-CE", "reward")
_SHOWN_KEYS = ("heldout/env_ce", "train/reward")
_NO_ROW = -1
_ACTIVE = {"running", "stopping"}
_FRAME = 5
"""Lines of the live table besides its rows, cursor line included."""
_LEAST_COLUMNS = 3
_WIDE = 1000


@contextmanager
def sweep_progress(cells: Sequence[Cell]) -> Iterator[Callable[[Outcomes], None]]:
    """Yield a function that shows the outcomes of `cells`, with the new rows of their metrics.jsonl."""
    followed = [Followed(cell) for cell in cells]
    for one in followed:
        one.read()
    console = new_console(err=True)
    if not console.is_terminal:
        statuses: dict[str, CellStatus] = {}
        yield lambda outcomes: _print_lines(followed, outcomes, statuses)
        return
    with Live(console=console, auto_refresh=False) as live, guarded_streams():
        yield lambda outcomes: live.update(live_table(console, followed, outcomes), refresh=True)


class Followed:
    """A cell's metrics file, reread when it changes."""

    def __init__(self, cell: Cell) -> None:
        self.cell = cell
        self.step = _NO_ROW
        self.latest: dict[str, float] = {}
        self._path = cell.path / "metrics.jsonl"
        self._stamp: tuple[int, int] | None = None

    def read(self) -> list[Row]:
        """Return the rows since the last call; a run that restarts, from a checkpoint or from 0, repeats rows."""
        if not self._path.is_file():
            return []
        stat = self._path.stat()
        if (stat.st_mtime_ns, stat.st_size) == self._stamp:
            return []
        self._stamp = stat.st_mtime_ns, stat.st_size
        try:
            rows = checked_rows(read_jsonl(self._path), self._path)
        except EchoError:  # a damaged file: the cell's own process reports it, or --overwrite replaces it
            return []
        last = rows[-1]["step"] if rows else _NO_ROW
        new = [row for row in rows if row["step"] > self.step]
        self.step = last
        self.latest = {key: row[key] for row in rows for key in _SHOWN_KEYS if row.get(key) is not None}
        return new


def _print_lines(followed: Sequence[Followed], outcomes: Outcomes, before: dict[str, CellStatus]) -> None:
    """Print the changes from `before` to `outcomes`, then update `before`."""
    for one in followed:
        outcome, earlier = outcomes[one.cell.name], before.get(one.cell.name, CellStatus("waiting"))
        if outcome.status == "running" and outcome != earlier:
            put(f"{one.cell.title}: running", err=True)
        if _ACTIVE & {outcome.status, earlier.status}:
            for row in one.read():
                print_plain(row, one.cell.config.steps, one.cell.title)
        if earlier.status in _ACTIVE and outcome != earlier:
            error = f": {outcome.error}" if outcome.error else ""
            put(f"{one.cell.title}: {outcome.status}{error}", err=True)
    before.update(outcomes)


def live_table(console: Console, followed: Sequence[Followed], outcomes: Outcomes) -> TextTable:
    """Return the live table, cut to the terminal: running cells are kept first, and the last columns are dropped."""
    for one in followed:
        one.read()
    shown = _fitting(followed, outcomes, console.height - _FRAME)
    table = TextTable(box=box.SIMPLE_HEAD, pad_edge=False)
    arms = column_of(one.cell.arm for one in followed)
    for column in (arms, *_COLUMNS):
        table.add_column(column, justify="left" if column == "status" else "right", no_wrap=True)
    for one in shown:
        cell, status = one.cell, outcomes[one.cell.name].status
        step = "" if one.step == _NO_ROW else f"{one.step}/{cell.config.steps}"
        values = (f"{one.latest[key]:.3f}" if key in one.latest else "" for key in _SHOWN_KEYS)
        table.add_row(row_label(cell.arm, arms), str(cell.seed), Text(status, _STYLES[status]), step, *values)
    hidden = Counter(outcomes[one.cell.name].status for one in followed if one not in shown)
    if hidden:
        table.caption = "and " + ", ".join(f"{count} {status}" for status, count in hidden.items())
    while Measurement.get(console, console.options.update(width=_WIDE), table).maximum > console.width:
        if len(table.columns) <= _LEAST_COLUMNS:
            break
        table.columns.pop()
    return table


def _fitting(followed: Sequence[Followed], outcomes: Outcomes, room: int) -> list[Followed]:
    """Return the cells that fit into `room` lines, in order; running cells have priority."""
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
    "no_gradient": "yellow",
    "failed": "red",
    "stopped": "dim",
    "elsewhere": "dim",
}

PLAIN_INTERVAL = 10
"""Steps between plain lines; steps with an evaluation always get one."""


@contextmanager
def progress(total: int, label: str) -> Iterator[Callable[[Row], None]]:
    """Yield a function that shows the metrics rows of a run of `total` steps."""
    console = new_console(err=True)
    if not console.is_terminal:

        def show_plain(row: Row) -> None:
            print_plain(row, total, label)
            for line in _notices(row, label):
                put(line, err=True)

        yield show_plain
        return
    columns = (
        TextColumn("{task.description}", markup=False, table_column=_whole(len(label))),
        BarColumn(bar_width=None, table_column=Column(ratio=1)),
        MofNCompleteColumn(table_column=_whole(2 * len(str(total)) + 1)),
        TimeRemainingColumn(table_column=_whole(len("0:00:00"))),
        TextColumn("{task.fields[state]}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")),
    )
    with Progress(*columns, console=console, transient=True) as bars, guarded_streams():
        bar = bars.add_task(label, total=total, state="evaluating")
        state: dict[str, str] = {}

        def show(row: Row) -> None:
            state.update(_values(row))
            around = len(label) + 2 * len(str(total)) + _AROUND
            bars.update(
                bar,
                completed=row["step"],
                state=fitting_values(state, bars.console.width - around) if state else _NOTHING,
            )
            for line in _notices(row, label):
                bars.console.print(joined(line), soft_wrap=True)

        yield show


_AROUND = len("0:00:00") + 14
"""Columns of the time, the slash, the gaps and the shortest bar of a progress line."""


def fitting_values(values: Mapping[str, str], room: int) -> str:
    """Return as many `name value` pairs as fit into `room` columns, in order; none is cut."""
    text = ""
    for name, value in values.items():
        longer = f"{text} {name} {value}".lstrip()
        if len(longer) > room:
            break
        text = longer
    return text


def _whole(width: int) -> Column:
    """Return a column that a narrow terminal does not cut; the values at the end of the line are cut instead."""
    return Column(min_width=width, no_wrap=True)


def print_plain(row: Row, total: int, label: str) -> None:
    """Print a row on stderr if it has an evaluation, at every `PLAIN_INTERVAL`th step and at the last step."""
    evaluated = row.get("heldout/env_ce") is not None or is_met(row, "heldout")
    if evaluated or row["step"] % PLAIN_INTERVAL == 0 or row["step"] == total:
        values = ", ".join(f"{name} {value}" for name, value in _values(row).items()) or _NOTHING
        put(f"{label}: step {row['step']}/{total}: {values}", err=True)


def _notices(row: Row, label: str) -> list[str]:
    """Return a line per alarm of a row (collapse.py), and a line on its environment faults, if any."""
    lines = [
        f"{label}: warning at step {row['step']}: {warning['signal']}: {warning['reason']}"
        for warning in row["warnings"]
    ]
    faults = [
        counted(count, f"{noun}{rest}", f"{noun}s{rest}")
        for key, (noun, rest) in _FAULTS.items()
        if (count := row.get(f"environment/{key}"))
    ]
    return [*lines, f"{label}: environment at step {row['step']}: {', '.join(faults)}"] if faults else lines


# Refused and failed actions are the policy's own mistakes, so only the metrics contain them.
_FAULTS = {
    "unavailable": ("failed attempt", ", retried"),
    "sessions_lost": ("session", " lost"),
    "topped_up": ("rollout", " repeated"),
    "ungraded": ("rollout", " whose grader failed"),
    "unrewarded": ("rollout", " without a reward"),
    "groups_dropped": ("group", " excluded from the RL term"),
}


_SHOWN = {
    "train/reward": "reward",
    "train/env_ce": "env-CE",
    "heldout/env_ce": "held-out env-CE",
    "traces/env_ce": "traces' env-CE",
    "heldout/pass_at_1": "held-out pass@1",
    "heldout/mean_reward": "held-out mean reward",
}


_NOTHING = "nothing measured"
"""Text of a row without any value: no pool has an observation, and no task was played."""


def _values(row: Row) -> dict[str, str]:
    """Return the values of a row by label; a pool without novel pairs shows env-CE of its seen pairs instead."""
    values: dict[str, str] = {}
    for key, label in _SHOWN.items():
        pool = key.removesuffix("/env_ce")
        if row.get(key) is not None:
            values[label] = f"{row[key]:.3f}"
        elif pool != key and is_met(row, pool):
            values[f"{label} of seen pairs (no pair is novel)"] = f"{row[f'{key}_seen']:.3f}"
    return values
