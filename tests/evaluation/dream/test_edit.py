"""Edit similarity against the definition of edit distance."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echo_cli.evaluation.dream.scoring import edit_similarity

TEXT = st.text(alphabet="ab\né😀", max_size=9)


def by_definition(first: str, second: str) -> int:
    @cache
    def distance(a: int, b: int) -> int:
        if a == 0 or b == 0:
            return a + b
        replace = distance(a - 1, b - 1) + (first[a - 1] != second[b - 1])
        return min(replace, distance(a - 1, b) + 1, distance(a, b - 1) + 1)

    return distance(len(first), len(second))


@given(TEXT, TEXT)
@settings(max_examples=100, deadline=None)
def test_the_distance_is_the_fewest_edits(first: str, second: str) -> None:
    longest = max(len(first), len(second))
    expected = 1 - by_definition(first, second) / longest if longest else 1.0
    assert edit_similarity(first, second) == edit_similarity(second, first) == expected


@pytest.mark.parametrize(
    ("first", "second", "distance", "similarity"),
    [
        ("kitten", "sitting", 3, 1 - 3 / 7),
        ("", "", 0, 1.0),
        ("", "abc", 3, 0.0),
        ("quota: 7842\n", "quota: 7843\n", 1, 1 - 1 / 12),
        ("abcd", "bcde", 2, 0.5),  # block matching gives the same value, comparison by position gives 0
        ("a" * 3000, "a" * 2999, 1, 1 - 1 / 3000),
    ],
)
def test_distances_known_by_hand(first: str, second: str, distance: int, similarity: float) -> None:
    assert edit_similarity(first, second) == pytest.approx(similarity)
    assert round((1 - edit_similarity(first, second)) * max(len(first), len(second))) == distance
