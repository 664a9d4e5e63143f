"""Estimates with intervals: bootstrap over clusters, Student's t over seeds, McNemar over tasks, pass@k.

Intervals hold 95 % unless `confidence` says otherwise. What the observations of one cluster (a trajectory, a task, a
seed) have in common is kept: whole clusters are resampled, never single tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Floats = NDArray[np.float64]

CONFIDENCE = 0.95
RESAMPLES = 2000
_BOOTSTRAP_SEED = 0


@dataclass(frozen=True)
class Estimate:
    """A value and its interval; `low` and `high` are None where too few clusters make no interval (fewer than two)."""

    value: float
    low: float | None
    high: float | None

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of 0."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)

    def to_json(self) -> dict[str, float | None]:
        return {"value": self.value, "low": self.low, "high": self.high}


def ratio(numerators: ArrayLike, denominators: ArrayLike) -> Estimate | None:
    """Σ numerators / Σ denominators with a percentile bootstrap over clusters, one entry a cluster.

    Clusters whose denominator is 0 hold nothing of the quantity and are left out; None if no cluster is left. Over few
    clusters the interval is too narrow: in simulated outputs of 5 to 60 tokens it holds the truth in 79 % of cases over
    5 clusters, 87 % over 10, 90 % over 20, 92 % over 40 and 93 % over 80.
    """
    above, below = _clusters(numerators, denominators)
    if len(below) == 0:
        return None

    def statistic(up: Floats, down: Floats, axis: int) -> Floats:
        return np.asarray(up.sum(axis=axis) / down.sum(axis=axis))

    return _bootstrap(statistic, above, below)


def ratio_difference(numerators_a: ArrayLike, numerators_b: ArrayLike, denominators: ArrayLike) -> Estimate | None:
    """Σ b / Σ d - Σ a / Σ d, paired: a cluster enters a resample with both its numerators."""
    a, below = _clusters(numerators_a, denominators)
    b, _ = _clusters(numerators_b, denominators)
    if len(below) == 0:
        return None

    def statistic(first: Floats, second: Floats, down: Floats, axis: int) -> Floats:
        return np.asarray((second.sum(axis=axis) - first.sum(axis=axis)) / down.sum(axis=axis))

    return _bootstrap(statistic, a, b, below)


def absolute_ratio(numerators: Sequence[ArrayLike], denominators: ArrayLike) -> Estimate | None:
    """Σ_b |Σ numerators of b| / Σ denominators, with a percentile bootstrap over clusters: a calibration error.

    A sum of absolute values grows with the noise of a resample, so the interval leans upwards where there are few
    observations; the end that would leave the value out is moved to it.

    Args:
        numerators: for each bin b one entry a cluster, as for `ratio`.
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
    """The mean with Student's t interval.

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("no values to take a mean of")
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return Estimate(mean, None, None)
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * error
    return Estimate(mean, mean - half, mean + half)


def paired_difference(before: Sequence[float], after: Sequence[float]) -> Estimate:
    """The mean of after - before over pairs (the same seed twice), with Student's t interval of the differences.

    Raises:
        ValueError: the lengths differ, or there is nothing.
    """
    return mean_over_seeds([b - a for a, b in zip(before, after, strict=True)])


def median(values: Sequence[float]) -> Estimate:
    """The median with a percentile bootstrap over the values.

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("no values to take a median of")
    return _bootstrap(np.median, np.asarray(values, dtype=np.float64))


def spread(values: Sequence[float]) -> float | None:
    """The sample standard deviation (n - 1); None with fewer than two values."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def mcnemar(only_first: int, only_second: int) -> float:
    """The exact two-sided McNemar p-value, from how many tasks only the one and only the other solves."""
    discordant = only_first + only_second
    return 1.0 if discordant == 0 else float(stats.binomtest(only_first, discordant, 0.5).pvalue)


def pass_at_k(rollouts: int, solved: int, k: int) -> float:
    """The unbiased estimate of P(at least one of k rollouts solves the task), 1 - C(n - c, k) / C(n, k).

    From `solved` = c of `rollouts` = n (Chen et al. 2021, arXiv 2107.03374, Eq. 1).

    Raises:
        ValueError: not 1 <= k <= n, or not 0 <= c <= n.
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
    found = stats.bootstrap(
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
