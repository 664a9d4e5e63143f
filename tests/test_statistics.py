"""Estimates and intervals: hand-computed values, published values, and invariants of any bootstrap."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echo_cli.statistics import (
    Estimate,
    absolute_ratio,
    mean_height,
    mean_over_seeds,
    paired_difference,
    pass_at_k,
    ratio,
    ratio_difference,
    sign_test,
    spread,
)

counts = st.lists(st.tuples(st.floats(0, 100), st.integers(0, 20)), min_size=1, max_size=12)


def test_a_ratio_is_over_all_clusters_together() -> None:
    found = ratio([3.0, 1.0, 0.0], [4, 6, 0])
    assert found is not None and found.value == pytest.approx(0.4)
    # Two clusters: a resample has one of them twice, or both.
    assert (found.low, found.high) == (pytest.approx(1 / 6), pytest.approx(3 / 4))


def test_nothing_has_no_ratio_and_one_cluster_no_interval() -> None:
    assert ratio([], []) is None
    assert ratio([1.0], [0]) is None
    assert ratio([3.0], [4]) == Estimate(0.75, None, None)


def test_equal_clusters_have_an_interval_of_no_width() -> None:
    found = ratio([2.0] * 5, [8] * 5)
    assert found == Estimate(0.25, 0.25, 0.25)


@settings(max_examples=15, deadline=None)
@given(counts)
def test_the_same_clusters_give_the_same_interval_within_their_range(clusters: list[tuple[float, int]]) -> None:
    numerators, denominators = zip(*clusters, strict=True)
    found = ratio(numerators, denominators)
    assert found == ratio(numerators, denominators)
    if found is not None and found.low is not None and found.high is not None:
        each = [up / down for up, down in clusters if down]
        assert min(each) - 1e-9 <= found.low <= found.high <= max(each) + 1e-9


def test_more_clusters_narrow_the_interval() -> None:
    few, many = (ratio([0.0, 1.0] * n, [1] * 2 * n) for n in (5, 50))
    assert few is not None and many is not None
    assert few.low is not None and few.high is not None and many.low is not None and many.high is not None
    assert few.low < many.low < 0.5 < many.high < few.high
    # For a proportion of .5 over n: about ±1.96 · .5 / √n.
    assert many.high - many.low == pytest.approx(2 * 1.96 * 0.5 / 10, rel=0.1)


def test_a_paired_difference_of_ratios_keeps_what_the_clusters_share() -> None:
    first, second = [1.0, 50.0, 3.0, 70.0], [2.0, 51.0, 4.0, 71.0]
    found = ratio_difference(first, second, [1, 1, 1, 1])
    assert found == Estimate(1.0, 1.0, 1.0)
    assert found.excludes_zero
    assert ratio_difference([], [], []) is None


def test_an_absolute_ratio_sums_the_bins_gaps() -> None:
    # Bins: |0.5 - 0.1| + |-0.3 - 0.3|, over 10 tokens.
    found = absolute_ratio([[0.5, -0.1], [-0.3, -0.3]], [4, 6])
    assert found is not None and found.value == pytest.approx(0.1)
    assert found.low is not None and found.high is not None and found.low <= found.value <= found.high
    assert absolute_ratio([[0.5]], [4]) == Estimate(0.125, None, None)
    assert absolute_ratio([[0.5]], [0]) is None


def test_the_t_interval_by_hand() -> None:
    # Mean 2, s = 1, t(0.975; 2) = 4.3027.
    found = mean_over_seeds([1.0, 2.0, 3.0])
    half = 4.302652729911275 / math.sqrt(3)
    assert (found.value, found.low, found.high) == pytest.approx((2.0, 2 - half, 2 + half))
    assert mean_over_seeds([5.0]) == Estimate(5.0, None, None)
    assert not found.excludes_zero
    with pytest.raises(ValueError):
        mean_over_seeds([])


def test_a_paired_difference_is_after_less_before() -> None:
    found = paired_difference([1.0, 2.0, 3.0], [0.5, 1.5, 2.5])
    assert found == Estimate(-0.5, -0.5, -0.5) and found.excludes_zero
    with pytest.raises(ValueError):
        paired_difference([1.0], [1.0, 2.0])


def test_spread_is_the_sample_deviation() -> None:
    assert spread([1.0, 3.0]) == pytest.approx(math.sqrt(2))
    assert spread([1.0]) is None


@pytest.mark.parametrize(
    ("rollouts", "solved", "k", "expected"),
    [(4, 1, 1, 0.25), (4, 1, 4, 1.0), (4, 2, 2, 1 - 1 / 6), (4, 0, 3, 0.0), (10, 3, 5, 1 - 21 / 252)],
)
def test_pass_at_k_by_hand(rollouts: int, solved: int, k: int, expected: float) -> None:
    assert pass_at_k(rollouts, solved, k) == pytest.approx(expected)


@pytest.mark.parametrize(("rollouts", "solved", "k"), [(4, 1, 5), (4, 1, 0), (4, 5, 1), (4, -1, 1)])
def test_pass_at_k_refuses_what_cannot_be(rollouts: int, solved: int, k: int) -> None:
    with pytest.raises(ValueError):
        pass_at_k(rollouts, solved, k)


@given(st.integers(1, 12), st.data())
def test_pass_at_k_grows_with_k_and_is_the_rate_at_1(rollouts: int, data: st.DataObject) -> None:
    solved = data.draw(st.integers(0, rollouts))
    values = [pass_at_k(rollouts, solved, k) for k in range(1, rollouts + 1)]
    assert values[0] == pytest.approx(solved / rollouts)
    assert values == sorted(values)
    assert all(0 <= value <= 1 for value in values)


def test_the_mean_height_of_a_curve_weighs_by_the_width_of_its_parts() -> None:
    assert mean_height([(0, 0.0), (10, 1.0), (40, 1.0)]) == pytest.approx((5 + 30) / 40)
    assert mean_height([(3, 0.25), (4, 0.25)]) == 0.25


@pytest.mark.parametrize("curve", [[], [(0, 1.0)], [(0, 1.0), (0, 2.0)], [(5, 1.0), (0, 2.0)]])
def test_a_curve_without_width_has_no_height(curve: list[tuple[float, float]]) -> None:
    with pytest.raises(ValueError, match="no area"):
        mean_height(curve)


def test_the_sign_test_by_hand() -> None:
    assert sign_test(6, 0) == pytest.approx(2 / 64)
    assert sign_test(0, 5) == pytest.approx(2 / 32)
    assert sign_test(1, 3) == pytest.approx(2 * 5 / 16)
    assert sign_test(2, 2) == 1.0
    assert sign_test(0, 0) == 1.0
