"""How predictable bytes are: bits per byte of an n-gram model that was fitted on other texts of the same source.

The model is `baselines.NGram` with V = 256. Contexts are integers and their counts sorted arrays, so that megabytes are
fitted and scored in seconds, order by order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from echo_cli.evaluation.baselines import ORDER
from echo_cli.statistics import Floats

Keys = NDArray[np.uint64]

_BYTES = 256
_BITS = np.uint64(8)


def bits_per_byte(fitted: Sequence[bytes], scored: Sequence[bytes], order: int = ORDER) -> float | None:
    """Return the mean code length of the bytes of `scored` under an n-gram model of `fitted`, bits per byte.

    A model fitted on nothing is uniform, 8 bits per byte. None if there is nothing to score.

    Args:
        order: number of bytes that the model counts together, at most 8: a byte is predicted from `order` - 1 before
            it in its text.
    """
    texts = _Bytes.of(scored, order)
    if not len(texts.byte):
        return None
    known = _Bytes.of(fitted, order)
    probability: Floats = np.full(len(texts.byte), 1 / _BYTES)
    for length in range(order if len(known.byte) else 0):
        counts = _counts(known, length)
        if not len(counts.contexts):  # no text is as long
            break
        context = texts.context(length)
        row, found = _find(counts.contexts, context)
        found &= texts.before >= length
        pair, seen = _find(counts.pairs, (context << _BITS) | texts.byte)
        times = np.where(seen, counts.pair_counts[pair], 0)
        total, distinct = counts.totals[row], counts.distinct[row]
        # A context that was never seen leaves the probability of the shorter one.
        probability = np.where(found, (times + distinct * probability) / (total + distinct), probability)
    return float(-np.log2(probability).mean())


@dataclass(frozen=True)
class _Bytes:
    """The bytes of texts, each with those before it in its text."""

    byte: Keys
    before: NDArray[np.int64]
    """Number of bytes before each in its text."""
    last: Keys
    """The `order` - 1 bytes before each, the nearest in the lowest bits; beyond its text they are another's."""

    @classmethod
    def of(cls, texts: Sequence[bytes], order: int) -> _Bytes:
        byte = np.frombuffer(bytearray(b"".join(texts)), np.uint8).astype(np.uint64)
        sizes = np.array([len(text) for text in texts], np.int64)
        before = np.arange(len(byte)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        last = np.zeros(len(byte), np.uint64)
        for distance in range(1, order):
            last[distance:] |= byte[:-distance] << np.uint64(8 * (distance - 1))
        return cls(byte, before, last)

    def context(self, length: int) -> Keys:
        """Return the `length` bytes before each byte as a number."""
        found: Keys = self.last & np.uint64(2 ** (8 * length) - 1)
        return found


@dataclass(frozen=True)
class _Counts:
    """Counts after the contexts of one length; keys are sorted."""

    pairs: Keys
    """Contexts, each followed by a byte that came after it."""
    pair_counts: NDArray[np.int64]
    contexts: Keys
    totals: NDArray[np.int64]
    """Number of bytes seen after each context."""
    distinct: NDArray[np.int64]
    """Number of distinct bytes among them."""


def _counts(texts: _Bytes, length: int) -> _Counts:
    keys = (texts.context(length) << _BITS) | texts.byte
    pairs, pair_counts = np.unique(keys[texts.before >= length], return_counts=True)
    contexts, first = np.unique(pairs >> _BITS, return_index=True)
    totals = np.add.reduceat(pair_counts, first) if len(first) else pair_counts
    return _Counts(pairs, pair_counts, contexts, totals, np.diff([*first, len(pairs)]).astype(np.int64))


def _find(known: Keys, wanted: Keys) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return a place among the known keys for each wanted key, and whether the key is there."""
    place = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    return place, known[place] == wanted
