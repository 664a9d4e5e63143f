"""The four kinds of environment faults, and counters of how often each occurs.

| kind | cause | consequence |
|---|---|---|
| unavailable | no connection, no free session, or no environment created | retried with growing pauses, up to a limit |
| bad action | the text is not an action, or the environment refuses its form | a warning; the episode continues |
| environment error | the environment raised while it ran the action | a warning; the episode continues |
| session lost | the session closed, timed out or violated the protocol during an episode | the episode is aborted |
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from echo_cli.errors import EchoError
from echo_cli.text import escape_unprintable

FAULT_KEYS = tuple("unavailable bad_actions errors sessions_lost ungraded unrewarded topped_up groups_dropped".split())
"""Names of the counters.

They count attempts, actions, errors, sessions, episodes whose grader failed, episodes without a reward, replacement
rollouts and groups.
"""

FINAL_FAILED = "the final action failed"
"""Beginning of the reason why an episode has no reward: an action that gives it failed, such as a task's tests."""
_MOST_REASONS = 5
"""Number of reasons that a run tells its user."""

_LINE_CHARS = 300
_SHOWN_ERRORS = 3
_SECRET_CHARS = 8
"""Minimum length of a secret in a server's data, characters; a shorter value may be a word of its own text."""


class Fault(Exception):
    """A failure on the environment's side; the text is for the user and contains no secret."""


class Unavailable(Fault):
    """A session that is not available; nothing is lost, and the caller may retry."""


class AtCapacity(Unavailable):
    """A session that is not available because the environment grants no more at once."""


class BadAction(Fault):
    """An action whose form the environment refused; the episode continues as if it had not been sent."""


class EnvironmentFault(Fault):
    """An exception that the environment raised while it ran the action; the session survives."""


class SessionLost(Fault):
    """The loss of an episode's session. Its connection is never used again, so that two episodes are never joined."""


class EnvironmentDown(EchoError):
    """An environment in which no episode can be played (exit code 1); a run in several leaves it out."""

    def __init__(self, message: str, tip: str) -> None:
        super().__init__(message, tip, exit_code=1)


class FaultCounts:
    """Counts per name in `FAULT_KEYS`, taken once per step. No lock is needed: each key has one writer at a time."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._reasons: dict[str, bool] = {}  # whether each was told

    def count(self, key: str, reason: str | None = None) -> None:
        """Add one to `key`; keep the first `reason` for each of a few different ones."""
        assert key in FAULT_KEYS
        self._counts[key] += 1
        if reason is not None and len(self._reasons) < _MOST_REASONS:
            self._reasons.setdefault(reason, False)

    def tell_reasons(self, say: Callable[[str], object]) -> None:
        """Call `say` with each reason that no earlier call has told."""
        for reason in [reason for reason, told in self._reasons.items() if not told]:
            self._reasons[reason] = True
            say(reason)

    def take(self) -> dict[str, int]:
        """Return the counts since the last call, for every key of `FAULT_KEYS`, and reset them."""
        taken, self._counts = self._counts, Counter()
        return {key: taken[key] for key in FAULT_KEYS}


def fault_line(text: str, secrets: Mapping[str, str] | None = None) -> str:
    """Return `text` as one line, cut to 300 characters before control characters are escaped.

    Args:
        secrets: secret texts, mapped to their replacements.
    """
    known = secrets or {}
    for secret in sorted(known, key=len, reverse=True):  # one secret may be part of another
        text = text.replace(secret, known[secret])
    line = " ".join(text.split())
    return escape_unprintable(line if len(line) <= _LINE_CHARS else line[: _LINE_CHARS - 1] + "…")


def without_secrets(data: Any, secrets: Mapping[str, str] | None) -> Any:
    """Return the JSON data of a server with every secret of at least 8 characters replaced.

    A server that repeats the headers that it was sent would otherwise put them into transcripts and run directories.

    Args:
        secrets: secret texts, mapped to their replacements.

    Raises:
        ValueError: brackets are nested too deep.
    """
    known = {secret: shown for secret, shown in (secrets or {}).items() if len(secret) >= _SECRET_CHARS}
    if not known:
        return data
    try:
        text = json.dumps(data)
        for secret in sorted(known, key=len, reverse=True):
            text = text.replace(json.dumps(secret)[1:-1], json.dumps(known[secret])[1:-1])
        return json.loads(text)
    except RecursionError:
        raise ValueError("brackets are nested too deep") from None


def errors_text(errors: Any) -> str:
    """Return the first three of pydantic's errors as `path: message`, without the input; "" if not a list.

    The messages are the environment's own text: pass the result to `fault_line`.
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
