"""How far two texts are apart: the Levenshtein distance, in characters."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


def edit_distance(first: str, second: str) -> int:
    """The fewest characters to insert, delete or replace that make `second` of `first` (Levenshtein 1966).

    By the rows of Wagner and Fischer's table, each in whole-array operations.
    """
    a, b = sorted((_codes(first), _codes(second)), key=len)  # the shorter one gives the rows
    begin = _shared(a, b)
    a, b = a[begin:], b[begin:]
    end = _shared(a[::-1], b[::-1])
    a, b = a[: len(a) - end], b[: len(b) - end]
    place = np.arange(len(b) + 1)
    row = place.copy()
    for number, code in enumerate(a, start=1):
        below = np.empty_like(row)
        below[0] = number
        below[1:] = np.minimum(row[1:] + 1, row[:-1] + (b != code))
        # An insertion adds 1 to the entry on its left: the least of all entries on the left plus their way.
        row = np.minimum.accumulate(below - place) + place
    return int(row[-1])


def edit_similarity(first: str, second: str) -> float:
    """1 - distance / the longer length: 1 for equal texts, 0 where no character can stay."""
    longest = max(len(first), len(second))
    return 1 - edit_distance(first, second) / longest if longest else 1.0


def _codes(text: str) -> Ints:
    return np.array([ord(character) for character in text], dtype=np.int64)


def _shared(a: Ints, b: Ints) -> int:
    """How many entries the two begin with in common."""
    least = min(len(a), len(b))
    different = np.flatnonzero(a[:least] != b[:least])
    return int(different[0]) if len(different) else least
