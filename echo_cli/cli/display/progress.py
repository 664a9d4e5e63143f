"""Progress on stderr: a bar on a terminal, one plain line per interval elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

Row = Mapping[str, Any]

PLAIN_INTERVAL = 10
"""Steps between plain lines; steps with an evaluation always get one."""


@contextmanager
def progress(total: int, label: str) -> Iterator[Callable[[Row], None]]:
    """Shows the rows of a run of `total` steps as they are given to it."""
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:

        def show_plain(row: Row) -> None:
            print_plain(row, total, label)
            for line in _notices(row, label):
                print(line, file=sys.stderr, flush=True)

        yield show_plain
        return
    columns = (
        TextColumn("{task.description}", table_column=_whole(len(label))),
        BarColumn(bar_width=None, table_column=Column(ratio=1)),
        MofNCompleteColumn(table_column=_whole(2 * len(str(total)) + 1)),
        TimeRemainingColumn(table_column=_whole(len("0:00:00"))),
        TextColumn("{task.fields[state]}", table_column=Column(no_wrap=True, overflow="ellipsis")),
    )
    with Progress(*columns, console=console, transient=True) as bars:
        bar = bars.add_task(label, total=total, state="evaluating")
        state: dict[str, str] = {}

        def show(row: Row) -> None:
            state.update(_values(row))
            bars.update(bar, completed=row["step"], state=" ".join(f"{k} {v}" for k, v in state.items()))
            for line in _notices(row, label):
                bars.console.print(line, markup=False, soft_wrap=True)

        yield show


def _whole(width: int) -> Column:
    """A column that a narrow terminal does not cut; the values at the end of the line are cut first."""
    return Column(min_width=width, no_wrap=True)


def print_plain(row: Row, total: int, label: str) -> None:
    """A line on stderr, if the row is one that gets one."""
    evaluated = row.get("heldout/env_ce") is not None
    if evaluated or row["step"] % PLAIN_INTERVAL == 0 or row["step"] == total:
        values = ", ".join(f"{name} {value}" for name, value in _values(row).items())
        print(f"{label}: step {row['step']}/{total}: {values}", file=sys.stderr, flush=True)


def _notices(row: Row, label: str) -> list[str]:
    """The alarms of a row (collapse.py), one line each, and a line on what went wrong with the environment."""
    lines = [
        f"{label}: warning at step {row['step']}: {warning['signal']}: {warning['reason']}"
        for warning in row["warnings"]
    ]
    faults = [f"{row[f'environment/{key}']} {words}" for key, words in _FAULTS.items() if row.get(f"environment/{key}")]
    return [*lines, f"{label}: environment at step {row['step']}: {', '.join(faults)}"] if faults else lines


# Refused and failed actions are the policy's, and in the metrics alone.
_FAULTS = {
    "unavailable": "attempts in vain, tried again",
    "sessions_lost": "sessions lost",
    "topped_up": "rollouts played again",
    "unrewarded": "rollouts without a reward",
    "groups_dropped": "groups left out of the RL term",
}


_SHOWN = {
    "train/reward": "reward",
    "train/env_ce": "env-CE",
    "heldout/env_ce": "held-out env-CE",
    "traces/env_ce": "traces' env-CE",
    "heldout/pass_at_1": "held-out pass@1",
}


def _values(row: Row) -> dict[str, str]:
    return {label: f"{row[key]:.3f}" for key, label in _SHOWN.items() if row.get(key) is not None}
