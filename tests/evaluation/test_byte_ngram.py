"""The n-gram over bytes gives the probabilities of the n-gram of the baselines."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echo_cli.evaluation.baselines import ORDER, fit_ngram
from echo_cli.evaluation.data.byte_ngram import bits_per_byte

TEXTS = st.lists(st.lists(st.sampled_from(b"abc\xff"), max_size=12).map(bytes), max_size=5)


@settings(max_examples=50, deadline=None)
@given(TEXTS, TEXTS, st.sampled_from([1, 2, ORDER, 8]))
def test_it_is_the_model_of_the_baselines(fitted: list[bytes], scored: list[bytes], order: int) -> None:
    model, bits = fit_ngram([((), text) for text in fitted], order, 256), 0.0
    for text in scored:
        for place, byte in enumerate(text):
            bits -= math.log2(model.distribution(text[max(place - order + 1, 0) : place])[byte])
    size = sum(map(len, scored))
    assert bits_per_byte(fitted, scored, order) == (pytest.approx(bits / size) if size else None)


def test_what_was_fitted_is_cheap_and_what_was_not_is_not() -> None:
    text = b"the quick brown fox jumps over the lazy dog\n" * 50
    known, other = bits_per_byte([text], [text]), bits_per_byte([text], [bytes(range(256))])
    assert known is not None and other is not None and known < 0.2 < 7 < other
