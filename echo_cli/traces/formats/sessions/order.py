"""Order of a session's lines: what arrives while a tool runs follows the tool's answer, as it does for the model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

Line = TypeVar("Line")


@dataclass(frozen=True)
class Step:
    """Part of a line in a conversation; a line that is neither a reply nor an answer is a prompt or a notice."""

    is_reply: bool = False
    calls: frozenset[str] = frozenset()
    """Ids of the calls that the line makes."""
    answers: frozenset[str] = frozenset()
    """Ids of the calls that the line answers."""


def answers_first(lines: Iterable[Line], step_of: Callable[[Line], Step]) -> Iterator[Line]:
    """Yield the lines; prompts and notices wait for the answers of the open calls, but no longer than to a reply."""
    open_calls, waiting = set[str](), list[Line]()
    for line in lines:
        step = step_of(line)
        if not step.is_reply and not step.answers and open_calls:
            waiting.append(line)
            continue
        if step.is_reply:
            yield from waiting
            waiting = []
        yield line
        open_calls = (open_calls | step.calls) - step.answers
        if not open_calls:
            yield from waiting
            waiting = []
    yield from waiting
