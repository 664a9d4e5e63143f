"""Near-duplicates: signatures estimate the Jaccard similarity of word 5-grams, and every near copy is found."""

from __future__ import annotations

import random

import numpy as np
import pytest
from trace_files import episode

from echo_cli.trace import Trace, TraceSegment
from echo_cli.traces.inspection.near_duplicates import Signature, SignatureIndex, near_copies, signature, signature_of
from echo_cli.trajectory import Role

VOCABULARY = [f"word{number}" for number in range(2000)]


def text(seed: int, words: int = 400) -> list[str]:
    return random.Random(seed).choices(VOCABULARY, k=words)


def changed(words: list[str], count: int) -> list[str]:
    """Return the words with `count` of them replaced, far from each other."""
    found = list(words)
    for number in range(count):
        found[number * len(words) // count] = f"new{number}"
    return found


def similarity(some: list[str], others: list[str]) -> float:
    """Return the exact Jaccard similarity of the word 5-grams."""
    one, other = ({tuple(words[start : start + 5]) for start in range(len(words) - 4)} for words in (some, others))
    return len(one & other) / len(one | other)


def signed(words: list[str]) -> Signature:
    found = signature(words)
    assert found is not None
    return found


@pytest.mark.parametrize("count", [1, 4, 8, 20, 60])
def test_equal_minima_estimate_the_similarity_of_two_texts(count: int) -> None:
    pairs = [(words, changed(words, count)) for words in map(text, range(30))]
    estimates = [float((signed(one) == signed(other)).mean()) for one, other in pairs]
    exact = [similarity(one, other) for one, other in pairs]
    assert np.mean(estimates) == pytest.approx(np.mean(exact), abs=0.03)
    assert max(abs(estimate - value) for estimate, value in zip(estimates, exact, strict=True)) < 0.2


def test_equal_texts_have_equal_signatures_and_the_order_of_words_counts() -> None:
    words = text(0)
    assert (signed(words) == signed(list(words))).all()
    assert (signed(words) == signed(words[::-1])).mean() < 0.1
    assert (signed(["a", "b"]) == signed(["a", "b"])).all()
    assert not (signed(["a", "b"]) == signed(["b", "a"])).all()
    assert not (signed(["a", "b"]) == signed(["a", "b", "c"])).all()
    assert signature([]) is None


def test_long_texts_are_signed_in_parts() -> None:
    words = text(1, 30_000)
    parts = [signed(words[start : start + 1000 + 4]) for start in range(0, 30_000, 1000)]
    assert (signed(words) == np.min(parts, axis=0)).all()


def test_a_trace_is_what_the_environment_wrote() -> None:
    one, other = (episode(("ls", "a b c\n"), ("pwd", "d e f g\n"), opening=opening) for opening in ("$ ", "# "))
    other = Trace("other", (*other.segments, TraceSegment(Role.WARNING, "[exit 1]\n")), other.turns)
    found, same = signature_of(one), signature_of(other)
    assert found is not None and same is not None and (found == same).all()
    assert (found == signed("a b c d e f g".split())).all()
    assert signature_of(episode(("cd", ""))) is None


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8, 0.95, 1.0])
def test_a_near_copy_is_found_among_all_others(threshold: float) -> None:
    originals = {number: signed(text(number, 200)) for number in range(120)}
    copies = {1000 + number: signed(changed(text(number, 200), 1 + number % 25)) for number in range(0, 120, 2)}
    strangers = {2000 + number: signed(text(5000 + number, 200)) for number in range(20)}
    expected = {
        number: (number - 1000, estimate)
        for number, values in copies.items()
        if (estimate := float((values == originals[number - 1000]).mean())) >= threshold
    }
    index = SignatureIndex(threshold)
    for number, values in originals.items():
        index.add(number, values)
    held = copies | strangers | {3000: originals[7]}
    found = {number: index.most_similar(values) for number, values in held.items()}
    assert found == dict.fromkeys(held) | expected | {3000: (7, 1.0)}
    assert near_copies(held, originals, threshold) == {*expected, 3000}
    assert near_copies(held, {}, threshold) == set()
