"""A curriculum draws tasks with contrast more often, drops none, and continues after a resume as if undisturbed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_run import rows, train

from echo_cli.environments.tasks import Task
from echo_cli.training.curriculum import FLOOR, RATE, Curriculum
from echo_cli.trajectory import Role, Segment, Trajectory

TASKS = [Task(name, "train", "f", {}) for name in "abcdefgh"]
LEARNABLE = ("rollout.curriculum=learnable", "rollout.tasks_per_step=3", "rollout.explorers=0")


def group(task_id: str, *rewards: float | None, world_model_only: bool = False) -> list[Trajectory]:
    segments = (Segment(Role.CONTEXT, (1, 2), "$ "),)
    return [
        Trajectory(task_id, f"0/{task_id}", segments, (), reward, "answered", "policy", world_model_only)
        for reward in rewards
    ]


def test_a_task_has_the_weight_of_its_contrast() -> None:
    curriculum = Curriculum(solved_at=1.0)
    curriculum.observe([*group("a", 1.0, 1.0), *group("b", 0.2, 0.2), *group("c", 0.0, 1.0)])
    assert {name: curriculum.weight(name) for name in "abcd"} == {"a": 1 - RATE, "b": 1 - RATE, "c": 1.0, "d": 1.0}
    curriculum.observe(group("a", 1.0, 0.0))
    assert curriculum.weight("a") == (1 - RATE) * (1 - RATE) + RATE
    for _ in range(50):
        curriculum.observe(group("b", 0.2, 0.2))
    assert curriculum.weight("b") == FLOOR
    assert curriculum.shares(TASKS[:4]) == {
        "tasks_solved": 0.0,
        "tasks_failed": 0.25,
        "tasks_mixed": 0.5,
        "tasks_unplayed": 0.25,
    }


@pytest.mark.parametrize(
    "rollouts", [group("a", 1.0), group("a", None, None), group("a", 0.0, 0.0, world_model_only=True)]
)
def test_a_group_that_has_no_contrast_to_show_says_nothing(rollouts: list[Trajectory]) -> None:
    curriculum = Curriculum(solved_at=1.0)
    curriculum.observe(rollouts)
    assert curriculum == Curriculum(solved_at=1.0)


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(0, 20),
    step=st.integers(0, 99),
    contrast=st.dictionaries(st.sampled_from("abcdefgh"), st.floats(0, 1)),
)
def test_a_step_has_each_task_as_often_as_any_other_up_to_one(
    count: int, step: int, contrast: dict[str, float]
) -> None:
    drawn = Curriculum(1.0, contrast).draw(TASKS, count, seed=0, step=step)
    times = Counter(task.task_id for task in drawn)
    assert len(drawn) == count
    assert max((times[task.task_id] for task in TASKS), default=0) - min(times[task.task_id] for task in TASKS) <= 1
    assert drawn == Curriculum(1.0, contrast).draw(TASKS, count, seed=0, step=step)


def test_tasks_are_drawn_in_proportion_to_their_weights() -> None:
    curriculum = Curriculum(1.0, {"a": 0.0, "b": 0.5})
    times = Counter(task.task_id for step in range(4000) for task in curriculum.draw(TASKS[:3], 1, 0, step))
    whole = FLOOR + 0.5 + 1.0
    for name, weight in (("a", FLOOR), ("b", 0.5), ("c", 1.0)):
        assert times[name] / 4000 == pytest.approx(weight / whole, abs=0.03)  # four standard deviations


def test_a_resumed_run_draws_as_an_undisturbed_one(tmp_path: Path) -> None:
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    assert train(whole, "--steps", "3", *LEARNABLE) == 0
    assert train(resumed, "--steps", "2", *LEARNABLE) == 0
    assert train(resumed, "--resume", "--steps", "3", *LEARNABLE) == 0
    assert rows(whole)[-1] == rows(resumed)[-1]
    shares = [rows(whole)[-1][f"train/tasks_{name}"] for name in ("solved", "failed", "mixed", "unplayed")]
    assert sum(shares) == pytest.approx(1.0) and shares[-1] < 1


def test_without_a_curriculum_rows_have_no_columns_of_it(tmp_path: Path) -> None:
    assert train(tmp_path / "run") == 0
    assert not any("tasks_" in name for name in rows(tmp_path / "run")[-1])
