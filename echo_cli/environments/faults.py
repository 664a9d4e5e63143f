"""What can go wrong between us and an environment, in four kinds, and how often each has happened.

| kind | what happened | what follows |
|---|---|---|
| unavailable | no connection, no free session, no environment made | tried again, pauses growing, up to a bound |
| bad action | the text is no action, or the environment refuses its form | a warning, and the episode goes on |
| environment error | the environment raised while it ran the action | likewise |
| session lost | closed, timed out, or no answer by the protocol, in the middle | the episode is aborted |
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from echo_cli.text import escape_unprintable

FAULT_KEYS = ("unavailable", "bad_actions", "errors", "sessions_lost", "unrewarded", "topped_up", "groups_dropped")
"""What is counted: one for each attempt, action, error, session, unrewarded episode, replacement, and group."""

_LINE_CHARS = 300
_SHOWN_ERRORS = 3


class Fault(Exception):
    """Something went wrong at the environment's side; the text is for the user and holds no secret."""


class Unavailable(Fault):
    """There is no session to be had now: nothing is lost, and it may be tried again."""


class BadAction(Fault):
    """The environment refused the action's form; the episode goes on as if it had not been sent."""


class EnvironmentFault(Fault):
    """The environment raised while it ran the action; its session lives on."""


class SessionLost(Fault):
    """The episode cannot go on. Its connection is never used again, so no two episodes are joined into one."""


class FaultCounts:
    """Counts by the names of `FAULT_KEYS`, taken once a step. Only one thread counts, or the GIL orders them."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def count(self, key: str) -> None:
        """Add one to `key`."""
        assert key in FAULT_KEYS
        self._counts[key] += 1

    def take(self) -> dict[str, int]:
        """The counts since they were taken last; every key of `FAULT_KEYS`."""
        taken, self._counts = self._counts, Counter()
        return {key: taken[key] for key in FAULT_KEYS}


def fault_line(text: str, secrets: Mapping[str, str] | None = None) -> str:
    """`text` as one line without control characters, cut at 300; `secrets` are replaced by what they map to."""
    known = secrets or {}
    for secret in sorted(known, key=len, reverse=True):  # one may be a part of another
        text = text.replace(secret, known[secret])
    line = " ".join(text.split())
    return escape_unprintable(line if len(line) <= _LINE_CHARS else line[: _LINE_CHARS - 1] + "…")


def errors_text(errors: Any) -> str:
    """The first entries of pydantic's list of errors, as `where: what`; the input is left out. Empty where it is none.

    What it says is the environment's own words: `fault_line` makes a line of it.
    """
    if not isinstance(errors, list):
        return ""
    entries = [error for error in errors if isinstance(error, dict)]
    lines = []
    for error in entries[:_SHOWN_ERRORS]:
        where = error.get("loc")
        path = ".".join(map(str, where)) if isinstance(where, list | tuple) else ""
        lines.append(f"{path}: {error.get('msg')}" if path else str(error.get("msg")))
    more = len(entries) - len(lines)
    return "; ".join(lines) + (f"; and {more} more" if more else "")
