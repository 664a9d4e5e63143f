"""Task outcomes: solved rollouts, pass@k with its interval, and the comparison of two policies on the same tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from echo_cli.environments.tasks import Task
from echo_cli.statistics import Estimate, mcnemar, pass_at_k, ratio, ratio_difference
from echo_cli.trajectory import Trajectory


@dataclass(frozen=True)
class TaskOutcome:
    """Outcome of one task's rollouts."""

    task_id: str
    family: str
    rollouts: int
    """Number of rollouts."""
    solved: int
    """Number of rollouts with a reward of 1."""
    first_solved: bool
    """Whether the first rollout solved the task."""


@dataclass(frozen=True)
class OutcomeComparison:
    """Comparison of policies A and B on the same tasks; the four counts classify the tasks by their first rollouts."""

    both: int
    only_a: int
    only_b: int
    neither: int
    p_value: float
    """p-value of the exact two-sided McNemar test of `only_a` against `only_b`."""
    difference: Estimate
    """pass@1 of B minus pass@1 of A over all rollouts, paired by task."""


def solved(rollout: Trajectory) -> bool:
    """Return whether the rollout solved its task, with a reward of 1; an unknown reward counts as unsolved."""
    return (rollout.reward or 0.0) >= 1


def solved_share(rollouts: Sequence[Trajectory]) -> float | None:
    """Return pass@1: the share of solved rollouts among rollouts with a known reward; None if no reward is known."""
    known = [rollout for rollout in rollouts if rollout.reward is not None]
    return sum(map(solved, known)) / len(known) if known else None


def outcomes_of(tasks: Sequence[Task], trajectories: Sequence[Trajectory]) -> list[TaskOutcome]:
    """Return the outcomes of `tasks`.

    Args:
        trajectories: verified rollouts in the order of `tasks`, the same number for each task.
    """
    rollouts = len(trajectories) // max(len(tasks), 1)
    outcomes = []
    for number, task in enumerate(tasks):
        found = [solved(rollout) for rollout in trajectories[number * rollouts : (number + 1) * rollouts]]
        outcomes.append(TaskOutcome(task.task_id, task.family, rollouts, sum(found), found[0]))
    return outcomes


def pass_at(outcomes: Sequence[TaskOutcome], k: int) -> Estimate | None:
    """Return the mean over tasks of the unbiased pass@k estimate, resampled over tasks; None without tasks.

    Raises:
        ValueError: a task has fewer than k rollouts.
    """
    values = [pass_at_k(outcome.rollouts, outcome.solved, k) for outcome in outcomes]
    return ratio(values, [1] * len(values))


def compare_outcomes(first: Sequence[TaskOutcome], second: Sequence[TaskOutcome]) -> OutcomeComparison | None:
    """Compare policy A (`first`) and policy B on the same tasks, with equal numbers of rollouts; None without tasks."""
    difference = ratio_difference(
        [a.solved for a in first], [b.solved for b in second], [outcome.rollouts for outcome in first]
    )
    if difference is None:
        return None
    pairs = [(a.first_solved, b.first_solved) for a, b in zip(first, second, strict=True)]
    only_a, only_b = pairs.count((True, False)), pairs.count((False, True))
    both, neither = pairs.count((True, True)), pairs.count((False, False))
    return OutcomeComparison(both, only_a, only_b, neither, mcnemar(only_a, only_b), difference)
