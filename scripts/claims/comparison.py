"""Comparisons of arms, paired by machine and seed; intervals are over machines, since runs on one machine are alike."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from claims.arms import Place
from claims.measured import Measured
from echo_cli.reports.reference import METRIC
from echo_cli.statistics import CONFIDENCE, Estimate, mean_height, mean_over_seeds, sign_test

Curve = Sequence[tuple[float, float]]
"""(step, held-out pass@1) of each evaluation."""


def by_machine(measured: Measured, figure: str) -> list[float]:
    """Return the mean over the seeds of a figure, for each machine whose runs have it."""
    return [
        fmean(values)
        for machine in measured.machines
        if (
            values := [
                value
                for place, record in measured.records.items()
                if place.machine == machine and (value := record.figures.get(figure)) is not None
            ]
        )
    ]


def estimate(measured: Measured, figure: str) -> Estimate | None:
    """Return the mean of a figure with its interval over machines; None where no run has it."""
    values = by_machine(measured, figure)
    return mean_over_seeds(values) if values else None


def difference(first: Measured, second: Measured, figure: str) -> Estimate | None:
    """Return the mean of second - first, over the seeds that both have of a machine and then over machines."""
    return _over_machines(
        {
            place: b - a
            for place in first.records.keys() & second.records.keys()
            if (a := first.records[place].figures.get(figure)) is not None
            and (b := second.records[place].figures.get(figure)) is not None
        }
    )


def _over_machines(values: Mapping[Place, float]) -> Estimate | None:
    machines = sorted({place.machine for place in values})
    means = [fmean(value for place, value in values.items() if place.machine == machine) for machine in machines]
    return mean_over_seeds(means) if means else None


@dataclass(frozen=True)
class Speed:
    """How fast the second of two arms learns against the first."""

    ratio: Estimate
    """Geometric mean of the second arm's steps to the level over the first's; a run that never reaches it counts as
    one evaluation after its last step."""
    reached: tuple[int, int]
    """Number of runs of each arm that reach the level."""
    runs: int
    sign_p: float
    """P-value of the sign test over machines; a machine without a difference is out."""


def step_at(curve: Curve, level: float) -> float:
    """Return the first step of training at which the curve is at `level` or above; infinity if it never is."""
    return next((step for step, value in curve if step > 0 and value >= level), math.inf)


def speed(pairs: Sequence[Sequence[tuple[Curve, Curve]]], level: float) -> Speed:
    """Compare the steps to a level that was fixed on other machines.

    Args:
        pairs: for each machine, the pass@1 curves of the first and the second arm, a pair per seed.
    """
    logs, reached, signs = [], [0, 0], []
    for machine in pairs:
        found = []
        for curves in machine:
            steps = [step_at(curve, level) for curve in curves]
            for index, step in enumerate(steps):
                reached[index] += math.isfinite(step)
            first, second = (_censored(step, curve) for step, curve in zip(steps, curves, strict=True))
            found.append(math.log(second / first))
        logs.append(fmean(found))
        signs.append(np.sign(logs[-1]))
    estimate = mean_over_seeds(logs)
    low, high = (None if bound is None else math.exp(bound) for bound in (estimate.low, estimate.high))
    return Speed(
        Estimate(math.exp(estimate.value), low, high),
        (reached[0], reached[1]),
        sum(len(machine) for machine in pairs),
        sign_test(sum(sign < 0 for sign in signs), sum(sign > 0 for sign in signs)),
    )


def _censored(step: float, curve: Curve) -> float:
    (before, _), (last, _) = curve[-2:]
    return step if math.isfinite(step) else 2 * last - before


def shared_places(first: Measured, second: Measured) -> list[Place]:
    """Return the places that two arms have both, in order."""
    return sorted(first.records.keys() & second.records.keys(), key=lambda place: (place.machine, place.seed))


def speed_of(first: Measured, second: Measured, level: float) -> Speed:
    """Compare two arms on the places that both have, of which there is at least one."""
    shared = shared_places(first, second)
    machines = sorted({place.machine for place in shared})
    curves = {place: (first.records[place].curves[METRIC], second.records[place].curves[METRIC]) for place in shared}
    return speed([[curves[place] for place in shared if place.machine == machine] for machine in machines], level)


def null_rejections(
    machines: int, *, repeats: int, seeds: int = 2, tasks: int = 80, rollouts: int = 4
) -> dict[str, float]:
    """Simulate two equal arms and return the share of repeats in which each test finds a difference at 5 %.

    A machine has a pass@1 that its runs end at, between .1 and .7, and a run's own differs from it. A run rises to it,
    with a bump that comes and goes, and is measured every 10 steps on `tasks` tasks with `rollouts` rollouts each.

    Returns:
        The shares for the interval on last pass@1, on its mean over the steps, on the ratio of steps to .3, and for the
        sign test on these steps.
    """
    random = np.random.default_rng(0)
    times = np.arange(0, 70, 10)
    shape = (repeats, machines, seeds, 2)
    machine = random.uniform(0.1, 0.7, (repeats, machines, 1, 1))
    end = np.clip(machine + random.normal(0, 0.1, shape), 0, 1)[..., None]
    pace = random.uniform(10, 40, shape)[..., None]
    bump = random.normal(0, 0.04, (*shape, len(times))) * (times > 0)
    true = np.clip(end * (1 - np.exp(-times / pace)) + bump, 0, 1)
    measured = random.binomial(rollouts * tasks, true) / (rollouts * tasks)
    found = {"last": 0, "mean": 0, "ratio": 0, "sign": 0}
    for repeat in measured:
        curves = [
            [tuple(list(zip(times.tolist(), curve.tolist(), strict=True)) for curve in pair) for pair in of]
            for of in repeat
        ]
        for name, height in (("last", lambda curve: curve[-1][1]), ("mean", mean_height)):
            means = [fmean(height(b) - height(a) for a, b in of) for of in curves]
            found[name] += mean_over_seeds(means).excludes_zero
        compared = speed(curves, 0.3)
        assert compared.ratio.low is not None and compared.ratio.high is not None
        found["ratio"] += not compared.ratio.low <= 1 <= compared.ratio.high
        found["sign"] += compared.sign_p <= 1 - CONFIDENCE + 1e-12
    return {name: count / repeats for name, count in found.items()}
