"""Estimates with intervals: bootstrap over clusters, Student's t over seeds, McNemar over clusters of tasks, pass@k.

Intervals are 95 % confidence intervals. The bootstrap resamples whole clusters (a trajectory, the tasks with
one solution, a seed), never single tokens, because observations of one cluster are correlated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

CONFIDENCE = 0.95
RESAMPLES = 2000
_BOOTSTRAP_SEED = 0


@dataclass(frozen=True)
class Estimate:
    """A value and its confidence interval; `low` and `high` are None for fewer than two clusters."""

    value: float
    low: float | None
    high: float | None

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval is entirely above or below 0."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)

    def to_json(self) -> dict[str, float | None]:
        return {"value": self.value, "low": self.low, "high": self.high}


def ratio(numerators: ArrayLike, denominators: ArrayLike) -> Estimate | None:
    """Return Σ numerators / Σ denominators with a percentile-bootstrap interval; the arrays have an entry per cluster.

    Clusters with denominator 0 are excluded; returns None if no cluster remains. With few clusters the interval is too
    narrow: for simulated outputs of 5 to 60 tokens it covers the true value in 79 % of cases with 5 clusters, 87 % with
    10, 90 % with 20, 92 % with 40 and 93 % with 80.
    """
    above, below = _clusters(numerators, denominators)
    if len(below) == 0:
        return None

    def statistic(up: Floats, down: Floats, axis: int) -> Floats:
        return np.asarray(up.sum(axis=axis) / down.sum(axis=axis))

    return _bootstrap(statistic, above, below)


def ratio_difference(numerators_a: ArrayLike, numerators_b: ArrayLike, denominators: ArrayLike) -> Estimate | None:
    """Return Σ b / Σ d - Σ a / Σ d with a paired bootstrap: each cluster's two numerators are resampled together."""
    a, below = _clusters(numerators_a, denominators)
    b, _ = _clusters(numerators_b, denominators)
    if len(below) == 0:
        return None

    def statistic(first: Floats, second: Floats, down: Floats, axis: int) -> Floats:
        return np.asarray((second.sum(axis=axis) - first.sum(axis=axis)) / down.sum(axis=axis))

    return _bootstrap(statistic, a, b, below)


def absolute_ratio(numerators: Sequence[ArrayLike], denominators: ArrayLike) -> Estimate | None:
    """Return Σ_b |Σ numerators of b| / Σ denominators with a percentile bootstrap over clusters: a calibration error.

    A sum of absolute values grows with a resample's noise, so the interval is biased upwards for few observations. If
    it would exclude the value, the nearer end is moved to the value.

    Args:
        numerators: one array per bin b, with an entry per cluster as in `ratio`.
    """
    below = np.asarray(denominators, dtype=np.float64)
    parts = [_clusters(part, denominators)[0] for part in numerators]
    below = below[below > 0]
    if len(below) == 0:
        return None

    def statistic(*samples: Floats, axis: int) -> Floats:
        *up, down = samples
        return np.asarray(sum(np.abs(part.sum(axis=axis)) for part in up) / down.sum(axis=axis))

    found = _bootstrap(statistic, *parts, below)
    if found.low is None or found.high is None:
        return found
    return Estimate(found.value, min(found.low, found.value), max(found.high, found.value))


def mean_over_seeds(values: Sequence[float]) -> Estimate:
    """Return the mean with Student's t interval.

    Raises:
        ValueError: `values` is empty.
    """
    if not values:
        raise ValueError("no values to take a mean of")
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return Estimate(mean, None, None)
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    half = float(scipy.stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * error
    return Estimate(mean, mean - half, mean + half)


def paired_difference(before: Sequence[float], after: Sequence[float]) -> Estimate:
    """Return the mean of after - before over pairs (the same seed twice) with Student's t interval.

    Raises:
        ValueError: the lengths differ, or the sequences are empty.
    """
    return mean_over_seeds([b - a for a, b in zip(before, after, strict=True)])


def median(values: Sequence[float]) -> Estimate:
    """Return the median with a percentile bootstrap over the values.

    Raises:
        ValueError: `values` is empty.
    """
    if not values:
        raise ValueError("no values to take a median of")
    return _bootstrap(np.median, np.asarray(values, dtype=np.float64))


def mean_height(curve: Sequence[tuple[float, float]]) -> float:
    """Return the area under a curve of (x, y) points, by the trapezoidal rule, over the width of the curve.

    Raises:
        ValueError: fewer than two points, or an x that is not above the one before.
    """
    x, y = np.asarray(curve, dtype=np.float64).reshape(-1, 2).T
    if len(x) < 2 or not (np.diff(x) > 0).all():
        raise ValueError(f"no area under {curve}")
    return float((np.diff(x) * (y[1:] + y[:-1])).sum() / 2 / (x[-1] - x[0]))  # scipy.integrate takes long to import


def sign_test(wins: int, losses: int) -> float:
    """Return the exact two-sided p-value of `wins` and `losses` where both are equally likely; ties do not count."""
    return 1.0 if wins + losses == 0 else float(scipy.stats.binomtest(wins, wins + losses, 0.5).pvalue)


def spread(values: Sequence[float]) -> float | None:
    """Return the sample standard deviation (n - 1); None for fewer than two values."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def mcnemar(differences: Sequence[int]) -> float:
    """Return the exact two-sided McNemar p-value of tasks in clusters.

    Under the null hypothesis, the sign of each cluster's difference is a fair coin. With one task per cluster, this is
    the sign test of the discordant tasks.

    Args:
        differences: per cluster, the number of tasks that only the first model solves minus the number that only the
            second solves.
    """
    probabilities = np.ones(1)  # of the sums from -reach to reach
    for size in map(abs, differences):
        coin = np.zeros(2 * size + 1)
        coin[0] += 0.5
        coin[-1] += 0.5
        probabilities = np.convolve(probabilities, coin)
    reach, observed = len(probabilities) // 2, abs(sum(differences))
    sums = np.abs(np.arange(-reach, reach + 1))
    return min(1.0, float(probabilities[sums >= observed].sum()))


def pass_at_k(rollouts: int, solved: int, k: int) -> float:
    """Return the unbiased estimate of P(at least one of k rollouts solves the task), 1 - C(n - c, k) / C(n, k).

    `rollouts` is n and `solved` is c (Chen et al. 2021, arXiv 2107.03374, Eq. 1).

    Raises:
        ValueError: 1 <= k <= n or 0 <= c <= n does not hold.
    """
    if not 1 <= k <= rollouts or not 0 <= solved <= rollouts:
        raise ValueError(f"pass@{k} of {solved} solved in {rollouts} rollouts")
    return 1 - math.comb(rollouts - solved, k) / math.comb(rollouts, k)


def _clusters(numerators: ArrayLike, denominators: ArrayLike) -> tuple[Floats, Floats]:
    above, below = np.asarray(numerators, dtype=np.float64), np.asarray(denominators, dtype=np.float64)
    return above[below > 0], below[below > 0]


def _bootstrap(statistic: Callable[..., Floats], *samples: Floats) -> Estimate:
    value = float(statistic(*samples, axis=0))
    if len(samples[0]) < 2:
        return Estimate(value, None, None)
    found = scipy.stats.bootstrap(
        samples,
        statistic,
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        random_state=_BOOTSTRAP_SEED,
    ).confidence_interval
    return Estimate(value, float(found.low), float(found.high))
