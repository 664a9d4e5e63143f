"""Traces whose observations are nearly those of another trace, found by MinHash (Broder 1997).

A trace is a set of word 5-grams of its observations. Of each set, 128 minima under random permutations of the hash
values are kept; the share of equal minima of two sets estimates their Jaccard similarity J, with a standard deviation
of at most (J (1 - J) / 128)^½: 0.035 at 0.8. The minima are compared between traces that agree in a band of them.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from echo_cli.trace import Trace
from echo_cli.trajectory import Role

if TYPE_CHECKING:
    from datasketch import MinHash

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


class SignatureIndex:
    """Signatures by number, among which those similar to another are found without comparing all."""

    def __init__(self, threshold: float) -> None:
        """Begin without signatures.

        Args:
            threshold: least estimated Jaccard similarity, above 0 and at most 1.
        """
        from datasketch import MinHashLSH

        self._threshold = threshold
        self._bands = MinHashLSH(num_perm=PERMUTATIONS, params=_bands(threshold))
        self._signatures: dict[int, Signature] = {}

    def add(self, number: int, signature: Signature) -> None:
        """Add a signature."""
        self._signatures[number] = signature
        self._bands.insert(number, _sketch(signature))

    def most_similar(self, signature: Signature) -> tuple[int, float] | None:
        """Return the most similar signature's number, the lowest of several, and the estimated similarity.

        None if no similarity reaches the threshold.
        """
        numbers = sorted(self._bands.query(_sketch(signature)))
        if not numbers:
            return None
        similarity = (np.stack([self._signatures[number] for number in numbers]) == signature).mean(axis=1)
        best = int(similarity.argmax())
        return (numbers[best], float(similarity[best])) if similarity[best] >= self._threshold else None


def near_copies(traces: Mapping[int, Signature], originals: Mapping[int, Signature], threshold: float) -> set[int]:
    """Return the numbers of the traces that have an original of at least this similarity."""
    index = SignatureIndex(threshold)
    for number, found in originals.items():
        index.add(number, found)
    return {number for number, found in traces.items() if index.most_similar(found) is not None}


def _sketch(found: Signature) -> MinHash:
    from datasketch import MinHash

    return MinHash(hashvalues=found, permutations=_permutations(), scheme=_SCHEME)


def _grams(words: list[str]) -> NDArray[np.uint64]:
    """Return the hash values, of 32 bits, of the n-grams of `words`."""
    distinct = list(set(words))
    codes = dict(zip(distinct, map(zlib.crc32, map(str.encode, distinct)), strict=True))
    of_word = np.array([codes[word] for word in words], np.uint64)
    count = max(min(1, len(words)), len(words) - WORDS + 1)
    mixed = np.zeros(count, np.uint64)
    for place in range(min(WORDS, len(words))):
        mixed = (mixed ^ of_word[place : place + count]) * _MULTIPLIER
        mixed ^= mixed >> np.uint64(32)
    found: NDArray[np.uint64] = mixed & np.uint64(0xFFFFFFFF)
    return found


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
