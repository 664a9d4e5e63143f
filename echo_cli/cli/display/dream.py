"""Printing for `dream`: replies side by side with their differences marked, and the table of a score.

Text from an environment or a model is data: control characters are made visible.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from difflib import SequenceMatcher
from itertools import zip_longest

from rich.text import Text

from echo_cli.cli.display.tables import TextTable, new_console, new_table, number, print_table
from echo_cli.environments.tasks import Task
from echo_cli.evaluation.dream.scoring import ALL, AT_LENGTH, COMMAND, MEASURES, SEEN, DreamGroup, DreamReport
from echo_cli.evaluation.dream.session import Answer, Event, Notice, Opening
from echo_cli.statistics import Estimate
from echo_cli.terminal import joined, put
from echo_cli.text import LINES, counted, escape_unprintable

_TITLES = {
    "exact_match": "exact match",
    "edit_similarity": "edit similarity",
    "exit_status": "exit status",
    "ended": "ended",
    "exact_match_at_length": "exact match",
    "edit_similarity_at_length": "edit similarity",
    "exit_status_at_length": "exit status",
}
_WIDE = 100
_DIFFERENT = "!"


def print_dreams(found: DreamReport, *, breakdown: bool) -> None:
    """Print the table of a score; with `breakdown`, also each command and the pairs that training executed."""
    groups = [group for group in found.groups if breakdown or group.group == ALL]
    for group in groups:
        _print_group(group, found.step)
    scored = sum(question.novel for question in found.questions)
    put(
        f"{found.run}, pool {found.pool}: {scored} of "
        f"{counted(found.novel_pairs, 'novel pair')} scored, "
        f"order of seed {found.seed}; pairs that training executed: {found.seen_pairs}, see "
        f"{'the last table' if breakdown else '--breakdown'}"
    )
    put(f"greedy, at most {counted(found.max_tokens, 'token')}; 95 % intervals over trajectories")
    if not scored:
        put("the pool has no novel pair: training executed all its pairs")
    for note in found.notes:
        put(f"note: {note}")


def print_event(event: Event, prompt: str | None) -> None:
    """Print an event of an episode: its opening, a command with both replies, or a notice.

    Args:
        prompt: printed with the command; None if the command is already on the terminal because it was typed.
    """
    match event:
        case Opening():
            put(*(f"| {line}" for line in event.text.expandtabs().removesuffix("\n").split("\n") if event.text))
        case Notice():
            put(f"[{event.text}]")
        case Answer():
            if prompt is not None:
                put(f"{prompt}{event.command}")
            _print_answer(event)
    sys.stdout.flush()


def print_tasks(tasks: Sequence[Task]) -> None:
    """Print the tasks that --task accepts."""
    table = new_table("task", "split", "family")
    for task in tasks:
        table.add_row(task.task_id, task.split, task.family)
    print_table(table)


def lines_beside(predicted: str, actual: str) -> list[tuple[str | None, str | None]]:
    """Align the lines of two texts in rows, equal lines side by side; None where a text has no line."""
    first, second = predicted.splitlines(), actual.splitlines()
    rows: list[tuple[str | None, str | None]] = []
    for _, a, b, c, d in SequenceMatcher(None, first, second, autojunk=False).get_opcodes():
        rows += zip_longest(first[a:b], second[c:d])
    return rows


def _print_group(group: DreamGroup, step: int) -> None:
    title = {ALL: "all novel pairs", COMMAND: joined(group.key), SEEN: "pairs that training executed"}[group.group]
    short = title if len(title) <= 32 else f"{title[:31]}…"
    replies = counted(group.replies, "reply", "replies")
    table = new_table(f"{short}: {replies}", "initial policy", f"step {step}", "difference")
    for name in MEASURES:
        if name == AT_LENGTH[0]:
            table.add_row("of as many tokens as the true reply")
        title = f"  {_TITLES[name]}" if name in AT_LENGTH else _TITLES[name]
        table.add_row(title, *(_interval(of.get(name)) for of in (group.before, group.after, group.difference)))
    print_table(table)


def _interval(estimate: Estimate | None) -> str:
    if estimate is None or estimate.low is None:
        return number(None if estimate is None else estimate.value)
    return f"{number(estimate.value)} [{number(estimate.low)}, {number(estimate.high)}]"


def _print_answer(answer: Answer) -> None:
    predicted, actual = (
        escape_unprintable(answer.predicted, keep=LINES).expandtabs(),
        escape_unprintable(answer.actual, keep=LINES).expandtabs(),
    )
    rows = lines_beside(predicted, actual)
    width = shutil.get_terminal_size().columns
    if sys.stdout.isatty() and width >= _WIDE:
        _print_columns(rows, width)
    else:
        for title, place in (("predicted", 0), ("real", 1)):
            put(f"  {title}:" if any(row[place] is not None for row in rows) else f"  {title}: (empty)")
            for row in rows:
                if row[place] is not None:
                    put(f"  {' ' if row[0] == row[1] else _DIFFERENT} {row[place]}")
    put(f"  {_verdict(answer)}")


def _print_columns(rows: Sequence[tuple[str | None, str | None]], width: int) -> None:
    table = TextTable(box=None, pad_edge=False, padding=(0, 1), expand=True)
    table.add_column("predicted", ratio=1, overflow="fold")
    table.add_column("", width=1)
    table.add_column("real", ratio=1, overflow="fold")
    for predicted, actual in rows:
        same = predicted == actual
        first, second = (Text(text or "") for text in (predicted, actual))
        if not same:
            matcher = SequenceMatcher(None, predicted or "", actual or "", autojunk=False)
            for kind, a, b, c, d in matcher.get_opcodes():
                if kind != "equal":
                    first.stylize("bold red", a, b)
                    second.stylize("bold green", c, d)
        table.add_row(first, "" if same else _DIFFERENT, second)
    new_console(width=width).print(table)


def _verdict(answer: Answer) -> str:
    parts = ["exact match" if answer.exact_match else f"edit similarity {answer.edit_similarity:.3f}"]
    if answer.exit_code is not None and answer.predicted_exit_code is not None:
        agrees = answer.predicted_exit_code == answer.exit_code
        parts.append(f"exit status {answer.predicted_exit_code}{'' if agrees else f', real {answer.exit_code}'}")
    if not answer.ended:
        parts.append("the prediction did not end by itself")
    return "; ".join(parts)
