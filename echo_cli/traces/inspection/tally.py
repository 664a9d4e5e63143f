"""Counts of what comes up in a stream, in bounded memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from typing import Generic, TypeVar

KEPT = 10_000
"""How many different things are counted one by one."""
CLIP = 200
"""Characters that are kept of a text."""

Key = TypeVar("Key", bound=Hashable)


class Tally(Generic[Key]):
    """Counts of keys. Once `KEPT` different ones have come up, others add to `total` alone."""

    def __init__(self) -> None:
        self.total = 0
        self._counts: Counter[Key] = Counter()

    def add(self, key: Key, count: int = 1) -> None:
        """Count `key`."""
        self.total += count
        if key in self._counts or len(self._counts) < KEPT:
            self._counts[key] += count

    def commonest(self, most: int) -> list[tuple[Key, int]]:
        """The keys that came up most, with their counts; of equal ones the earliest first."""
        return self._counts.most_common(most)


def clipped(text: str) -> str:
    """The first `CLIP` characters of `text`, with a mark where more were left out."""
    return text if len(text) <= CLIP else f"{text[:CLIP]}…"


def share(part: float, whole: float) -> float | None:
    """`part` of `whole`; None of nothing."""
    return part / whole if whole else None
