"""Longest matches: where the last tokens of a sequence have stood before, and what followed them then."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


def longest_matches(token_ids: Sequence[int]) -> tuple[Ints, Ints]:
    """For every position p: how much of what precedes it has occurred before, and what then followed.

    Time is O(T²) and memory O(T) for T tokens.

    Returns:
        length_T: tokens of the longest suffix of `token_ids[:p]` that also ends at an earlier position; 0 where the
            last token is new, and at p = 0.
        following_T: the token after the latest of the earlier occurrences of that suffix; -1 where the length is 0.
    """
    ids_T = np.asarray(token_ids, dtype=np.int64)
    length_T, following_T = np.zeros(len(ids_T), dtype=np.int64), np.full(len(ids_T), -1, dtype=np.int64)
    # shared_T[j]: tokens that the suffixes of ids[:p] and ids[:j] have in common, for 0 < j < p.
    shared_T = np.zeros(len(ids_T) + 1, dtype=np.int64)
    for p in range(1, len(ids_T)):
        shared_T[1:p] = np.where(ids_T[: p - 1] == ids_T[p - 1], shared_T[: p - 1] + 1, 0)
        if p > 1:
            latest = p - 1 - int(shared_T[1:p][::-1].argmax())
            length_T[p] = shared_T[latest]
            following_T[p] = ids_T[latest] if shared_T[latest] else -1
    return length_T, following_T
