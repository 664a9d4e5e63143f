"""Metrics of a step as sums and counts, so that micro-batches and ranks are added before any division."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

TOTALS = frozenset({"loss", "rl_loss", "env_loss", "action_tokens", "env_tokens", "end_tokens", "imitation_tokens"})
"""Names of the metrics that are totals of the step; all others are means, total / count."""


@dataclass(frozen=True)
class Metric:
    """The sum of a quantity over `count` items."""

    total: float
    count: float

    def __add__(self, other: Metric) -> Metric:
        return Metric(self.total + other.total, self.count + other.count)


Metrics = dict[str, Metric]


def merge_metrics(parts: Iterable[Metrics]) -> Metrics:
    """Add the metrics of micro-batches or ranks.

    Raises:
        ValueError: the parts have different keys.
    """
    merged: Metrics = {}
    for part in parts:
        if merged and part.keys() != merged.keys():
            raise ValueError(f"metric keys differ: {sorted(part.keys() ^ merged.keys())}")
        merged = {name: metric + merged[name] if merged else metric for name, metric in part.items()}
    return merged


def reduce_metrics(parts: Iterable[Metrics]) -> dict[str, float | None]:
    """Return the values of a step's metrics: sums for totals, total / count for means; None for a mean of no items."""
    values: dict[str, float | None] = {}
    for name, metric in merge_metrics(parts).items():
        if name in TOTALS:
            values[name] = metric.total
        else:
            values[name] = metric.total / metric.count if metric.count > 0 else None
    return values
