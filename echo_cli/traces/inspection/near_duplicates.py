"""Traces whose observations are nearly those of another trace, found by MinHash (Broder 1997).

A trace is a set of word 5-grams of its observations. Of each set, 128 minima under random permutations of the hash
values are kept; the share of equal minima of two sets estimates their Jaccard similarity J, with a standard deviation
of at most (J (1 - J) / 128)^½: 0.035 at 0.8. The minima are compared between traces that agree in a band of them.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from functools import cache

import numpy as np
from numpy.typing import NDArray

from echo_cli.trace import Trace
from echo_cli.trajectory import Role

Signature = NDArray[np.uint32]
"""Minima of a trace's 5-grams, one per permutation, of shape [128]."""

WORDS = 5
"""Number of words of an n-gram."""
PERMUTATIONS = 128

_SCHEME = "affine32"
_BATCH = 2**11
"""Number of n-grams that are permuted at once; their hash values take 1 MiB."""
_MISSED = 1e-6
"""Largest probability that two sets are not compared, though their minima agree as often as the threshold says."""
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
"""Odd constant near 2^64 / golden ratio, which spreads the bits of a product (Knuth, The Art of Computer Programming,
volume 3, 6.4)."""


def signature_of(trace: Trace) -> Signature | None:
    """Return the signature of a trace, or None if its observations have no words."""
    return signature(
        word for segment in trace.segments if segment.role is Role.ENV_OUTPUT for word in segment.text.split()
    )


def signature(words: Iterable[str]) -> Signature | None:
    """Return the signature of a text, or None if it has no words; a text of fewer than five words is one n-gram."""
    grams = _grams(list(words))
    if not len(grams):
        return None
    from datasketch import MinHash

    found = MinHash(PERMUTATIONS, hashfunc=int, permutations=_permutations(), scheme=_SCHEME)
    for start in range(0, len(grams), _BATCH):
        found.update_batch(grams[start : start + _BATCH].tolist())
    minima: Signature = found.hashvalues
    return minima


def near_copies(
    traces: Mapping[int, Signature], originals: Mapping[int, Signature], threshold: float
) -> dict[int, tuple[int, float]]:
    """Return the first most similar original of each trace that has one of at least this similarity.

    Args:
        traces: signatures by number.
        threshold: estimated Jaccard similarity, above 0 and at most 1.

    Returns:
        Number and estimated similarity of the original, by the number of the trace.
    """
    from datasketch import MinHash, MinHashLSH

    if not originals:
        return {}
    bands = MinHashLSH(num_perm=PERMUTATIONS, params=_bands(threshold))
    rows = {number: row for row, number in enumerate(originals)}
    numbers, minima = list(originals), np.stack(list(originals.values()))

    def sketch(values: Signature) -> MinHash:
        return MinHash(hashvalues=values, permutations=_permutations(), scheme=_SCHEME)

    for number, values in originals.items():
        bands.insert(number, sketch(values))
    found = {}
    for number, values in traces.items():
        alike = sorted(rows[other] for other in bands.query(sketch(values)))
        if not alike:
            continue
        similarity = (minima[alike] == values).mean(axis=1)
        best = int(similarity.argmax())
        if similarity[best] >= threshold:
            found[number] = (numbers[alike[best]], float(similarity[best]))
    return found


def _grams(words: list[str]) -> NDArray[np.uint64]:
    """Return the distinct hash values, of 32 bits, of the n-grams of `words`."""
    codes = {word: zlib.crc32(word.encode()) for word in set(words)}
    of_word = np.fromiter((codes[word] for word in words), np.uint64, len(words))
    count = max(min(1, len(words)), len(words) - WORDS + 1)
    mixed = np.zeros(count, np.uint64)
    for place in range(min(WORDS, len(words))):
        mixed = (mixed ^ of_word[place : place + count]) * _MULTIPLIER
        mixed ^= mixed >> np.uint64(32)
    return np.unique(mixed & np.uint64(0xFFFFFFFF))


def _bands(threshold: float) -> tuple[int, int]:
    """Return the number of bands and of minima in each: as long as two sets at the threshold are hardly missed."""
    sizes = range(PERMUTATIONS // 2, 0, -1)
    chosen = next((size for size in sizes if (1 - threshold**size) ** (PERMUTATIONS // size) <= _MISSED), 1)
    return PERMUTATIONS // chosen, chosen


@cache
def _permutations() -> NDArray[np.uint32]:
    from datasketch import MinHash

    found: NDArray[np.uint32] = MinHash(PERMUTATIONS, scheme=_SCHEME).permutations
    return found
