"""Task outcomes: rewards of rollouts, mean reward, pass@k, and the comparison of two policies on the same tasks.

Training, `eval-heldout`, sweeps and reports share these definitions. `mean_reward` is the mean over tasks of the mean
reward. A rollout has solved its task if its reward is at least `evaluation.solved_at`; pass@k follows from the solved
rollouts. A rollout without a reward (the verifier gave none) does not count.

Tasks that have the same solution are solved or missed together, so intervals and tests take them as one cluster.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from echo_cli.environments.grading.grade import criteria_in
from echo_cli.environments.protocol import TaskSuite
from echo_cli.environments.several import SeveralWorlds
from echo_cli.environments.tasks import Task
from echo_cli.statistics import Estimate, Floats, mcnemar, pass_at_k, ratio, ratio_difference
from echo_cli.trajectory import Trajectory


@dataclass(frozen=True)
class TaskOutcome:
    """Outcome of one task's rollouts."""

    task_id: str
    family: str
    cluster: str
    """Solution of the task or, if it is unknown, its reset arguments."""
    rewards: tuple[float | None, ...]
    """Rewards of the rollouts in the order of play; None for a rollout without a reward."""
    solved_at: float
    """Lowest reward of a solved rollout."""
    criteria: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """Values of each criterion of a grader, of the rollouts that have one."""

    @property
    def known(self) -> list[float]:
        """Rewards of the rollouts that have one."""
        return [reward for reward in self.rewards if reward is not None]

    @property
    def rollouts(self) -> int:
        """Number of rollouts with a reward."""
        return len(self.known)

    @property
    def solved(self) -> int:
        """Number of solved rollouts."""
        return sum(reward >= self.solved_at for reward in self.known)

    @property
    def first_solved(self) -> bool:
        """Whether the first rollout with a reward solved the task."""
        return any(reward >= self.solved_at for reward in self.known[:1])


@dataclass(frozen=True)
class OutcomeComparison:
    """Comparison of policies A and B on the same tasks; the four counts classify the tasks by their first rollouts."""

    both: int
    only_a: int
    only_b: int
    neither: int
    clusters: int
    """Number of clusters of tasks."""
    p_value: float
    """p-value of the exact two-sided McNemar test, in which the tasks of a cluster change sides together."""
    difference: Estimate
    """pass@1 of B minus pass@1 of A over all rollouts, paired by task, resampled over clusters."""


def outcomes_of(
    worlds: TaskSuite, tasks: Sequence[Task], trajectories: Sequence[Trajectory], solved_at: float
) -> list[TaskOutcome]:
    """Return the outcomes of `tasks` in the suite `worlds`, given verified rollouts of these tasks in any number."""
    played: dict[str, list[Trajectory]] = {task.task_id: [] for task in tasks}
    for trajectory in trajectories:
        played[trajectory.task_id].append(trajectory)
    return [
        TaskOutcome(
            task.task_id,
            task.family,
            _cluster(worlds, task),
            tuple(trajectory.reward for trajectory in played[task.task_id]),
            solved_at,
            criteria_of(played[task.task_id]),
        )
        for task in tasks
    ]


def outcomes_by_part(
    split: str, worlds: TaskSuite, tasks: Sequence[Task], trajectories: Sequence[Trajectory], solved_at: float
) -> dict[str, list[TaskOutcome]]:
    """Return the outcomes of the tasks of `split` in one environment, or of all together and of each, as `split/NAME`.

    All together have none if a task of an environment that was left out has no rollout: figures over other tasks would
    not be comparable.
    """
    outcomes = outcomes_of(worlds, tasks, trajectories, solved_at)
    if not isinstance(worlds, SeveralWorlds):
        return {split: outcomes}
    parts = {name: [of for of in outcomes if of.task_id.startswith(f"{name}/")] for name in worlds.members}
    is_whole = all(any(of.rewards for of in own) for own in parts.values() if own)
    return {split: outcomes if is_whole else []} | {f"{split}/{name}": own for name, own in parts.items()}


def criteria_of(trajectories: Iterable[Trajectory]) -> dict[str, tuple[float, ...]]:
    """Return the values of each criterion of a grader, of the trajectories that have one."""
    found: dict[str, list[float]] = {}
    for trajectory in trajectories:
        for name, value in criteria_in(trajectory.meta).items():
            found.setdefault(name, []).extend([] if value is None else [value])
    return {name: tuple(values) for name, values in found.items()}


def _cluster(worlds: TaskSuite, task: Task) -> str:
    solution = worlds.expert(task)
    content = {**task.reset_arguments, **({"question": task.question} if task.question else {})}
    return json.dumps(solution or content or task.task_id, sort_keys=True)


def clusters_of(outcomes: Sequence[TaskOutcome]) -> int:
    """Return the number of clusters of the tasks that have a reward."""
    return len({outcome.cluster for outcome in outcomes if outcome.rollouts})


def pass_share(outcomes: Sequence[TaskOutcome]) -> float | None:
    """Return pass@1 without an interval; None if no reward is known."""
    return _mean([outcome.solved / outcome.rollouts for outcome in outcomes if outcome.rollouts])


def ks_up_to(rollouts: int) -> list[int]:
    """Return the k of pass@k that a run records with `rollouts` rollouts per task: 1, 2, 4, 8, … and `rollouts`."""
    doubled = [2**power for power in range(rollouts.bit_length())]
    return sorted({*doubled, rollouts}) if rollouts else []


def pass_shares(outcomes: Sequence[TaskOutcome], rollouts: int) -> dict[str, float | None]:
    """Return pass@k without intervals, as `pass_at_<k>`, for every k of `ks_up_to(rollouts)` and for k = 1.

    pass@k is the mean over the tasks with at least k rewards; None without such a task.
    """
    found: dict[str, float | None] = {"pass_at_1": pass_share(outcomes)}
    for k in ks_up_to(rollouts)[1:]:
        enough = [outcome for outcome in outcomes if outcome.rollouts >= k]
        found[f"pass_at_{k}"] = _mean([pass_at_k(outcome.rollouts, outcome.solved, k) for outcome in enough])
    return found


def group_shares(trajectories: Sequence[Trajectory], solved_at: float) -> dict[str, float | None]:
    """Return the fractions of a step's groups that solve their task in no rollout and in every rollout.

    Neither group has a gradient of the RL term if rewards are 0 or 1. Groups count if all their rewards are known; the
    fractions are None without such a group.
    """
    groups: dict[str, list[float | None]] = {}
    for trajectory in trajectories:
        if not trajectory.world_model_only:
            groups.setdefault(trajectory.group_id, []).append(trajectory.reward)
    solved = [
        [reward >= solved_at for reward in group if reward is not None]
        for group in groups.values()
        if None not in group
    ]
    return {
        "groups_all_failed": _mean([float(not any(group)) for group in solved]),
        "groups_all_solved": _mean([float(all(group)) for group in solved]),
    }


def mean_reward(outcomes: Sequence[TaskOutcome]) -> float | None:
    """Return the mean reward without an interval; None if no reward is known."""
    return _mean([math.fsum(outcome.known) / outcome.rollouts for outcome in outcomes if outcome.rollouts])


def criterion_means(outcomes: Sequence[TaskOutcome], names: Sequence[str]) -> dict[str, float | None]:
    """Return the mean over tasks of each criterion's mean, as `criterion_<name>`; None if no value is known."""
    means = {name: [_mean(of.criteria[name]) for of in outcomes if of.criteria.get(name)] for name in names}
    return {f"criterion_{name}": _mean([mean for mean in of if mean is not None]) for name, of in means.items()}


def pass_at(outcomes: Sequence[TaskOutcome], k: int) -> Estimate | None:
    """Return the mean over tasks of the unbiased pass@k estimate, resampled over clusters of tasks.

    A task with fewer than k rewards is left out; the estimate is None if no task remains.
    """
    enough = [outcome for outcome in outcomes if outcome.rollouts >= k]
    values = [pass_at_k(outcome.rollouts, outcome.solved, k) for outcome in enough]
    return ratio(_by_cluster(enough, values), _by_cluster(enough, [1.0] * len(enough)))


def reward_estimate(outcomes: Sequence[TaskOutcome]) -> Estimate | None:
    """Return the mean reward, resampled over clusters of tasks; None if no reward is known."""
    known = [outcome for outcome in outcomes if outcome.rollouts]
    values = [math.fsum(outcome.known) / outcome.rollouts for outcome in known]
    return ratio(_by_cluster(known, values), _by_cluster(known, [1.0] * len(known)))


def criterion_estimates(outcomes: Sequence[TaskOutcome]) -> dict[str, Estimate]:
    """Return the mean of each criterion over tasks, as `criterion_<name>`, resampled over clusters of tasks."""
    found = {}
    for name in dict.fromkeys(name for of in outcomes for name in of.criteria):
        known = [of for of in outcomes if of.criteria.get(name)]
        values = [math.fsum(of.criteria[name]) / len(of.criteria[name]) for of in known]
        estimate = ratio(_by_cluster(known, values), _by_cluster(known, [1.0] * len(known)))
        if estimate is not None:
            found[f"criterion_{name}"] = estimate
    return found


def compare_outcomes(first: Sequence[TaskOutcome], second: Sequence[TaskOutcome]) -> OutcomeComparison | None:
    """Compare policy A (`first`) and policy B on the same tasks; None if no task has a reward under both."""
    pairs = [(a, b) for a, b in zip(first, second, strict=True) if a.rollouts and b.rollouts]
    tasks = [a for a, _ in pairs]
    shares_a, shares_b = ([each.solved / each.rollouts for each in side] for side in (tasks, [b for _, b in pairs]))
    difference = ratio_difference(
        _by_cluster(tasks, shares_a), _by_cluster(tasks, shares_b), _by_cluster(tasks, [1.0] * len(tasks))
    )
    if difference is None:
        return None
    sides = [(a.first_solved, b.first_solved) for a, b in pairs]
    net = _by_cluster(tasks, [float(a) - float(b) for a, b in sides])
    return OutcomeComparison(
        both=sides.count((True, True)),
        only_a=sides.count((True, False)),
        only_b=sides.count((False, True)),
        neither=sides.count((False, False)),
        clusters=clusters_of(tasks),
        p_value=mcnemar([round(each) for each in net]),
        difference=difference,
    )


def _by_cluster(outcomes: Sequence[TaskOutcome], values: Sequence[float]) -> Floats:
    """Return the sum of `values`, one per task, in each cluster."""
    numbers = {cluster: number for number, cluster in enumerate(dict.fromkeys(each.cluster for each in outcomes))}
    places = np.array([numbers[each.cluster] for each in outcomes], dtype=np.int64)
    return np.bincount(places, np.asarray(values, dtype=np.float64), len(numbers)).astype(np.float64)


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None
