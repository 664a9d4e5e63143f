"""Verdict on a λ in one word, by a fixed rule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from echo_cli.statistics import Estimate
from echo_cli.text import counted

Name = Literal["flat", "learns", "over-fits", "collapsed", "no gradient", "inconclusive", "solves more", "solves fewer"]

MARGIN = 0.05
"""Smallest relative change of env-CE that counts as a change."""
MIN_SEEDS = 3
LOST = 0.5
"""Smallest relative fall of pass@1 that counts as a collapse."""

RULE = (
    "The first of these that holds, with 95 % intervals over the finished seeds (Student's t):",
    "collapsed: at least half of the runs ended diverged or collapsed (failed runs do not count)",
    "no gradient: at least half of the runs were stopped because no token had a gradient",
    f"inconclusive: fewer than {MIN_SEEDS} seeds finished",
    f"collapsed: pass@1 fell, the interval of its change is below 0, and the mean fall is at least {LOST:.0%} of the "
    "start",
    f"over-fits: env-CE ends above its best by more than {MARGIN:.0%} of its start, or above its start by more than "
    f"{MARGIN:.0%}",
    f"learns: env-CE ends below its start by more than {MARGIN:.0%}",
    f"flat: env-CE ends within {MARGIN:.0%} of its start",
    "inconclusive: none of these",
    "'By more than' and 'within' refer to the whole interval. The start is the env-CE before training, on the same "
    "held-out pairs.",
)
"""Rule of `judge`, one verdict per line, as printed with every table of verdicts."""

TASK_RULE = (
    "tasks: 'solves more' ('solves fewer') if the 95 % interval of the difference of held-out pass@1, mean over the "
    f"steps, to the arm of the comparison is above (below) 0 over at least {MIN_SEEDS} seeds; else 'inconclusive'."
)
"""Rule of `judge_tasks`."""


@dataclass(frozen=True)
class Evidence:
    """Evidence for a verdict, from the runs of one λ.

    Attributes:
        finished: number of runs that trained all steps.
        broken: number of runs that diverged or collapsed.
        idle: number of runs that were stopped for lack of any gradient.
        met: number of runs that have executed every held-out pair, so that no env-CE of novel pairs is left.
        change: (last - start) / start of held-out env-CE, over the same pairs.
        rise: rise of held-out env-CE from the best step to the last, as a fraction of the start.
        pass_before: mean held-out pass@1 before training.
        pass_change: last - before of held-out pass@1.
    """

    finished: int
    broken: int
    idle: int
    met: int
    change: Estimate | None
    rise: Estimate | None
    pass_before: float | None
    pass_change: Estimate | None


@dataclass(frozen=True)
class Verdict:
    name: Name
    reason: str


def judge(evidence: Evidence) -> Verdict:
    """Return the verdict on a λ by `RULE`."""
    ended = evidence.finished + evidence.broken + evidence.idle
    if evidence.broken > 0 and 2 * evidence.broken >= ended:
        return Verdict("collapsed", f"{evidence.broken} of {counted(ended, 'run')} diverged or collapsed")
    if evidence.idle > 0 and 2 * evidence.idle >= ended:
        return Verdict("no gradient", f"{evidence.idle} of {counted(ended, 'run')} stopped for lack of any gradient")
    if evidence.finished < MIN_SEEDS:
        return Verdict("inconclusive", f"{counted(evidence.finished, 'seed')} finished, {MIN_SEEDS} are needed")
    fall, before = evidence.pass_change, evidence.pass_before
    if fall is not None and before is not None and _below(fall, 0) and -fall.value >= LOST * before:
        return Verdict("collapsed", f"pass@1 fell by {-fall.value:.3f} from {before:.3f}")
    rise, change = evidence.rise, evidence.change
    if rise is not None and _above(rise, MARGIN):
        return Verdict("over-fits", f"env-CE ends {_percent(rise)} of its start above its best")
    if change is None or change.low is None or change.high is None:
        met = f": {evidence.met} of {evidence.finished} runs have executed every held-out pair" if evidence.met else ""
        return Verdict("inconclusive", f"no interval for held-out env-CE{met}")
    if _above(change, MARGIN):
        return Verdict("over-fits", f"env-CE changed by {_percent(change)}")
    if _below(change, -MARGIN):
        return Verdict("learns", f"env-CE changed by {_percent(change)}")
    if change.low >= -MARGIN and change.high <= MARGIN:
        return Verdict("flat", f"env-CE changed by {_percent(change)}")
    return Verdict("inconclusive", f"env-CE changed by {_percent(change)}")


def judge_tasks(difference: Estimate | None, seeds: int) -> Verdict:
    """Return the verdict by `TASK_RULE`.

    Args:
        difference: held-out pass@1, mean over the steps, minus that of the arm of the comparison; None without one.
        seeds: number of seeds that both arms finished.
    """
    if difference is None:
        return Verdict("inconclusive", "no other arm to compare pass@1 with at the same seeds")
    if seeds < MIN_SEEDS or difference.low is None or difference.high is None:
        return Verdict("inconclusive", f"{counted(seeds, 'seed')} in both arms, {MIN_SEEDS} are needed")
    name: Name = "solves more" if difference.low > 0 else "solves fewer" if difference.high < 0 else "inconclusive"
    shown = f"{difference.value:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]"
    return Verdict(name, f"pass@1 over the steps {shown}")


def _below(estimate: Estimate, bound: float) -> bool:
    return estimate.high is not None and estimate.high < bound


def _above(estimate: Estimate, bound: float) -> bool:
    return estimate.low is not None and estimate.low > bound


def _percent(estimate: Estimate) -> str:
    low, high = estimate.low or 0.0, estimate.high or 0.0  # callers ensure that there is an interval
    return f"{100 * estimate.value:+.1f} % [{100 * low:+.1f}, {100 * high:+.1f}]"
