"""How predictable bytes are: bits per byte of an n-gram model that was fitted on other texts of the same source."""

from __future__ import annotations

import math
from collections.abc import Sequence

from echo_cli.evaluation.baselines import ORDER, fit_ngram

_BYTES = 256


def bits_per_byte(fitted: Sequence[bytes], scored: Sequence[bytes], order: int = ORDER) -> float | None:
    """Return the mean code length of the bytes of `scored` under an n-gram model of `fitted`, bits per byte.

    A model fitted on nothing is uniform, 8 bits per byte. None if there is nothing to score.

    Args:
        order: number of bytes that the model counts together: a byte is predicted from `order` - 1 before it.
    """
    total = sum(map(len, scored))
    if total == 0:
        return None
    model = fit_ngram([((), text) for text in fitted], order, _BYTES)
    nats = 0.0
    for text in scored:
        for index, byte in enumerate(text):
            nats -= math.log(model.distribution(text[max(index - order + 1, 0) : index])[byte])
    return nats / math.log(2) / total
