"""A generator of its own for every purpose and step, derived from the run's seed.

Derived, not carried along: a resumed run draws what an uninterrupted one would, with no state to save, and evaluating
more often does not change training.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def derive_seed(seed: int, purpose: str, step: int = 0) -> int:
    """A 63-bit seed for one purpose at one step: the same on every machine and Python version."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{step}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(seed: int, purpose: str, step: int = 0) -> random.Random:
    """Python's generator for one purpose at one step."""
    return random.Random(derive_seed(seed, purpose, step))


def epoch_sample(items: Sequence[T], count: int, seed: int, purpose: str, step: int) -> list[T]:
    """The `count` of `items` that are a 0-based step's: shuffled epochs, so that every item comes up equally often."""
    chosen: list[T] = []
    if count == 0:
        return chosen
    for epoch in range(step * count // len(items), -(-(step + 1) * count // len(items))):
        order = list(items)
        generator(seed, purpose, epoch).shuffle(order)
        start = epoch * len(items)
        chosen += order[max(step * count - start, 0) : max((step + 1) * count - start, 0)]
    return chosen
