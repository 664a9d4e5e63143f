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

FAULT_KEYS = ("unavailable", "bad_actions", "errors", "sessions_lost", "unrewarded", "topped_up", "groups_dropped")
"""What is counted: one for each attempt, action, error, session, unrewarded episode, replacement, and group."""


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
