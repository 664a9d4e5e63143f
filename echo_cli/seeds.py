"""Random generators, one per purpose and step, derived from the run's seed.

A derived generator has no state to save: a resumed run draws the same numbers as an uninterrupted one, and evaluating
more often does not change training.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")


def derive_seed(seed: int, purpose: str, step: int = 0) -> int:
    """Return a 63-bit seed for one purpose at one step: the same on every machine and Python version."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{step}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(seed: int, purpose: str, step: int = 0) -> random.Random:
    """Return Python's generator for one purpose at one step."""
    return random.Random(derive_seed(seed, purpose, step))


def uniforms(seed: int, stream: int, start: int, count: int) -> NDArray[np.float64]:
    """Return the uniform numbers `start` to `start + count - 1` of a stream, each in [0, 1).

    A number depends on (seed, stream, its index) alone: Philox4x64-10 (Salmon et al. 2011, doi:10.1145/2063384.2063405)
    encrypts the index with the key (seed, stream), four numbers per block.
    """
    philox = np.random.Philox(key=np.array([seed, stream], dtype=np.uint64))
    blocks, within = divmod(start, 4)
    philox.advance(blocks)
    return np.random.Generator(philox).random(within + count)[within:]


def epoch_sample(items: Sequence[T], count: int, seed: int, purpose: str, step: int) -> list[T]:
    """Return the `count` items of a 0-based step, taken from shuffled epochs so that all items occur equally often."""
    return epoch_slice(items, step * count, count, seed, purpose)


def epoch_slice(items: Sequence[T], start: int, count: int, seed: int, purpose: str) -> list[T]:
    """Return the `count` items from the 0-based index `start` of the sequence of all shuffled epochs."""
    chosen: list[T] = []
    if count == 0:
        return chosen
    end = start + count
    for epoch in range(start // len(items), -(-end // len(items))):
        order = list(items)
        generator(seed, purpose, epoch).shuffle(order)
        first = epoch * len(items)
        chosen += order[max(start - first, 0) : max(end - first, 0)]
    return chosen
