"""Mean reward and pass@k by hand, over tasks that share their solution."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest

from echo_cli.environments.protocol import Description, Environment, HostLimits, TaskSuite
from echo_cli.environments.tasks import Task, TaskSplits
from echo_cli.evaluation.pass_at_k import (
    TaskOutcome,
    clusters_of,
    compare_outcomes,
    group_shares,
    ks_up_to,
    mean_reward,
    outcomes_of,
    pass_at,
    pass_share,
    pass_shares,
    reward_estimate,
)
from echo_cli.statistics import mcnemar
from echo_cli.trajectory import Role, Segment, Trajectory

TASKS = [Task(name, "heldout", "family", {"seed": seed}) for seed, name in enumerate("abcd")]
SOLUTIONS = {"a": ["grep x f", "answer: 1"], "b": ["grep x f", "answer: 1"], "c": ["grep y f", "answer: 2"]}


class _Suite:
    """The suite of `TASKS`; `d` has no known solution."""

    replayable = False
    tasks = TaskSplits((), (), TASKS)
    hosting = HostLimits()
    description = Description("canned", {}, {})

    def environment(self) -> Environment:
        raise AssertionError("outcomes need no environment")

    def expert(self, task: Task) -> list[str] | None:
        return SOLUTIONS.get(task.task_id)

    def explorer(self, task: Task, count: int, rng: random.Random) -> list[str]:
        raise AssertionError("outcomes need no explorer")

    def reserved(self, tasks: Sequence[Task]) -> list[tuple[Task, list[str]]]:
        return []

    def out_of_distribution(self) -> TaskSuite:
        return self


def outcomes(rewards: Mapping[str, Sequence[float | None]], solved_at: float = 1.0) -> list[TaskOutcome]:
    played = [
        Trajectory(name, name, (Segment(Role.CONTEXT, "task", (1,)),), (), reward, "answered", "policy")
        for name, of in rewards.items()
        for reward in of
    ]
    return outcomes_of(_Suite(), TASKS, played, solved_at)


def test_mean_reward_and_pass_at_1_are_two_measures() -> None:
    found = outcomes({"a": [-3.0, 1.0], "b": [0.5, 0.5], "c": [2.0, 0.0], "d": [0.0, 0.0]})
    assert mean_reward(found) == (-1.0 + 0.5 + 1.0 + 0.0) / 4
    assert pass_share(found) == (0.5 + 0.0 + 0.5 + 0.0) / 4
    negative = outcomes({name: [-3.0] for name in "abcd"})
    assert (mean_reward(negative), pass_share(negative)) == (-3.0, 0.0)


def test_pass_at_k_by_hand_for_k_up_to_the_rollouts() -> None:
    assert [ks_up_to(rollouts) for rollouts in (0, 1, 2, 3, 4, 6, 8)] == [
        [],
        [1],
        [1, 2],
        [1, 2, 3],
        [1, 2, 4],
        [1, 2, 4, 6],
        [1, 2, 4, 8],
    ]
    found = outcomes(
        {"a": [1.0, 0.0, 0.0, 0.0], "b": [1.0, 1.0, 0.0, 0.0], "c": [0.0] * 4, "d": [1.0, None, None, None]}
    )
    shares = pass_shares(found, 4)
    # Of two of four rollouts: 1 - 3/6 with one solved, 1 - 1/6 with two. Task d has too few rewards for k above 1.
    assert shares == {
        "pass_at_1": pytest.approx((0.25 + 0.5 + 0 + 1) / 4),
        "pass_at_2": pytest.approx((1 / 2 + 5 / 6 + 0) / 3),
        "pass_at_4": pytest.approx((1 + 1 + 0) / 3),
    }
    assert shares["pass_at_1"] == pass_share(found)
    assert pass_shares([], 4) == {"pass_at_1": None, "pass_at_2": None, "pass_at_4": None}


def test_groups_that_all_fail_and_all_succeed_by_hand() -> None:
    rewards = {"a": [0.0, 0.5], "b": [1.0, 1.0], "c": [0.0, 1.0], "d": [0.0, 0.0], "e": [0.0, None], "f": [2.0]}
    played = [
        Trajectory(name, name, (Segment(Role.CONTEXT, "task", (1,)),), (), reward, "answered", "policy")
        for name, of in rewards.items()
        for reward in of
    ]
    scripted = replace(played[0], group_id="x", world_model_only=True, source="explorer")
    assert group_shares([*played, scripted], 1.0) == {"groups_all_failed": 2 / 5, "groups_all_solved": 2 / 5}
    assert group_shares(played, 0.5) == {"groups_all_failed": 1 / 5, "groups_all_solved": 2 / 5}
    assert group_shares([scripted], 1.0) == {"groups_all_failed": None, "groups_all_solved": None}


@pytest.mark.parametrize(("solved_at", "share"), [(0.5, 0.75), (0.6, 0.5), (1.0, 0.25), (-1.0, 1.0)])
def test_solved_at_is_the_lowest_reward_of_a_solved_rollout(solved_at: float, share: float) -> None:
    assert pass_share(outcomes({"a": [0.5], "b": [0.9], "c": [1.0], "d": [0.0]}, solved_at)) == share


def test_training_and_eval_heldout_share_the_definitions() -> None:
    found = outcomes({"a": [1.0, 0.0, None], "b": [0.25], "c": [None], "d": []})
    passed, rewards = pass_at(found, 1), reward_estimate(found)
    assert passed is not None and rewards is not None
    # A rollout without a reward does not count, and neither does a task without any reward.
    assert passed.value == pass_share(found) == (0.5 + 0.0) / 2
    assert rewards.value == mean_reward(found) == (0.5 + 0.25) / 2
    assert pass_at(found, 3) is pass_at(outcomes({}), 1) is None
    assert pass_share(outcomes({})) is mean_reward(outcomes({"a": [None]})) is None


def test_tasks_with_one_solution_are_one_cluster() -> None:
    found = outcomes({"a": [1.0], "b": [1.0], "c": [0.0], "d": [0.0]})
    assert clusters_of(found) == 3
    passed = pass_at(found, 1)
    assert passed is not None and passed.value == 0.5
    # Alone, one cluster has no interval, however many tasks it has.
    alone = pass_at(found[:2], 1)
    assert alone is not None and (alone.value, alone.low, alone.high) == (1.0, None, None)


def test_an_outcome_names_its_task() -> None:
    found = outcomes({"a": [1.0, 0.0], "c": [0.0]})
    assert [(each.task_id, each.family, each.rewards) for each in found] == [
        ("a", "family", (1.0, 0.0)),
        ("b", "family", ()),
        ("c", "family", (0.0,)),
        ("d", "family", ()),
    ]


def test_tasks_without_a_solution_are_one_cluster_if_they_are_reset_alike() -> None:
    arguments: list[dict[str, object]] = [{"seed": 1, "level": 2}, {"level": 2, "seed": 1}, {"seed": 2}, {}, {}]
    tasks = [Task(f"n{number}", "heldout", "f", each) for number, each in enumerate(arguments)]
    clusters = [outcome.cluster for outcome in outcomes_of(_Suite(), tasks, [], 1.0)]
    assert clusters[0] == clusters[1] and len(set(clusters)) == 4


def test_a_comparison_by_hand() -> None:
    # Rewards under A and under B, and the number of such tasks; each task is its own cluster.
    kinds: list[tuple[tuple[float | None, ...], tuple[float | None, ...], int]] = [
        ((1.0, 0.0), (1.0, 1.0), 1),  # the first rollouts solve it under both
        ((1.0,), (0.0, 1.0), 2),  # under A alone
        ((0.0, 1.0), (1.0,), 4),  # under B alone
        ((0.0,), (0.0, 0.0), 3),  # under neither
        ((None,), (1.0,), 1),  # not compared: no reward under A
        ((1.0,), (), 1),
    ]
    rewards = [(a, b) for a, b, number in kinds for _ in range(number)]
    first, second = (
        [TaskOutcome(str(number), "f", str(number), pair[side], 1.0) for number, pair in enumerate(rewards)]
        for side in (0, 1)
    )
    found = compare_outcomes(first, second)
    assert found is not None
    assert (found.both, found.only_a, found.only_b, found.neither, found.clusters) == (1, 2, 4, 3, 10)
    # Of six tasks that change sides, two or fewer on one side: 2 · (1 + 6 + 15) / 64.
    assert found.p_value == pytest.approx(44 / 64)
    # pass@1 over all rollouts: (1 + 2 · 0.5 + 4) / 10 - (0.5 + 2 + 4 · 0.5) / 10.
    assert found.difference.value == pytest.approx(0.6 - 0.45)
    assert compare_outcomes(first[-2:], second[-2:]) is None
    with pytest.raises(ValueError):
        compare_outcomes(first, second[:-1])


def test_the_first_rollout_of_a_task_is_the_first_with_a_reward() -> None:
    found = compare_outcomes(outcomes({"a": [None, 1.0], "b": [1.0, 0.0]}), outcomes({"a": [1.0, 0.0], "b": [None]}))
    assert found is not None
    assert (found.both, found.only_a, found.only_b, found.neither) == (1, 0, 0, 0)  # b has no reward under B


def test_tasks_that_change_sides_together_are_one_observation() -> None:
    names = "abcdefgh"
    before, after = (
        [TaskOutcome(name, "f", cluster, (reward,), 1.0) for name, cluster in zip(names, "wwwwwwxy", strict=True)]
        for reward in (0.0, 1.0)
    )
    found = compare_outcomes(before, after)
    assert found is not None
    assert (found.only_a, found.only_b, found.clusters) == (0, 8, 3)
    assert found.p_value == pytest.approx(2 * 0.5**3)  # three clusters, not 2 · 0.5 ** 8 of eight tasks
    assert found.difference.value == 1.0


@pytest.mark.parametrize(
    ("differences", "p"),
    [
        ([], 1.0),
        ([0, 0], 1.0),
        ([-1] * 5, 2 / 32),
        ([1] + [-1] * 7, 2 * (1 + 8) / 256),
        ([3, -3], 1.0),
        ([2, 1], 2 / 4),  # sums ±3 and ±1: |3| or more in two of four
        ([3, 2, -1], 4 / 8),  # |sum| is 4; 6, 4, -4 and -6 of eight sums
    ],
)
def test_clustered_mcnemar_by_hand(differences: list[int], p: float) -> None:
    assert mcnemar(differences) == pytest.approx(p)
