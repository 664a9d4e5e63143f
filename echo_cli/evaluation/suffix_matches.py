"""Matches of a text's suffixes with its own earlier text: the tokens that copying alone would predict."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


def longest_suffix_matches(token_ids: Sequence[int]) -> tuple[Ints, Ints]:
    """Match, at every position p, the longest suffix of the preceding tokens that also occurs earlier.

    Time is O(T²) and memory O(T) for T tokens.

    Returns:
        length_T: length of the longest suffix of `token_ids[:p]` that also ends at an earlier position; 0 at p = 0 and
            where the last token is new.
        following_T: id of the token after the latest earlier occurrence of the suffix; -1 where the length is 0.
    """
    ids_T = np.asarray(token_ids, dtype=np.int64)
    length_T, following_T = np.zeros(len(ids_T), dtype=np.int64), np.full(len(ids_T), -1, dtype=np.int64)
    # shared_T[j]: length of the longest common suffix of ids[:p] and ids[:j], for 0 < j < p.
    shared_T = np.zeros(len(ids_T) + 1, dtype=np.int64)
    for p in range(1, len(ids_T)):
        shared_T[1:p] = np.where(ids_T[: p - 1] == ids_T[p - 1], shared_T[: p - 1] + 1, 0)
        if p > 1:
            latest = p - 1 - int(shared_T[1:p][::-1].argmax())
            length_T[p] = shared_T[latest]
            following_T[p] = ids_T[latest] if shared_T[latest] else -1
    return length_T, following_T
