"""Which training tasks a step plays: those whose groups lately had contrast are drawn more often.

A group whose rollouts all solve their task, or all fail, has no advantage and no RL gradient. Drawing tasks by the
contrast of their groups is prioritized level replay (Jiang et al. 2021, arXiv 2010.03934) with the share of groups with
contrast as the score; dropping groups without contrast after they were played is DAPO's dynamic sampling (Yu et al.
2025, arXiv 2503.14476).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from echo_cli.environments.protocol import TaskSuite
from echo_cli.environments.several import SeveralWorlds
from echo_cli.environments.tasks import Task
from echo_cli.seeds import generator
from echo_cli.trajectory import Trajectory

FLOOR = 0.1
"""Least weight of a task, so that none vanishes; 1 is that of a task whose groups all have contrast."""
RATE = 0.5
"""Weight of a group in the running mean of its task's contrast."""

Outcome = Literal["solved", "failed", "mixed"]
"""Outcome of a group: every rollout solves the task, every rollout gets the same lower reward, or rewards differ."""

CURRICULUM_KEYS = ("tasks_solved", "tasks_failed", "tasks_mixed", "tasks_unplayed")


@dataclass
class Curriculum:
    """Running mean of the contrast of each task's groups, and the outcome of its last group."""

    solved_at: float
    """Lowest reward of a rollout that has solved its task."""
    contrast: dict[str, float] = field(default_factory=dict)
    """By task id: 1 if its groups had contrast, 0 if not, as a running mean; tasks without a group are missing."""
    last: dict[str, Outcome] = field(default_factory=dict)
    """By task id, the outcome of the last group."""

    def draw(self, tasks: Sequence[Task], count: int, seed: int, step: int, purpose: str = "curriculum") -> list[Task]:
        """Return the `count` tasks of the 0-based `step`, drawn without replacement while there are enough.

        The probability of a task is proportional to its weight at each draw (Efraimidis and Spirakis 2006,
        doi:10.1016/j.ipl.2005.11.003).
        """
        random = generator(seed, purpose, step)
        drawn: list[Task] = []
        while len(drawn) < count:
            key = {task.task_id: math.log(1 - random.random()) / self.weight(task.task_id) for task in tasks}
            order = sorted(tasks, key=lambda task: key[task.task_id], reverse=True)
            drawn += order[: count - len(drawn)]
        return drawn

    def weight(self, task_id: str) -> float:
        """Return the weight of a task: that of a task without a group is 1."""
        return max(self.contrast.get(task_id, 1.0), FLOOR)

    def observe(self, rollouts: Sequence[Trajectory]) -> None:
        """Learn from the groups of a step; a group with fewer than two rewards says nothing."""
        groups: dict[tuple[str, str], list[float]] = {}
        for rollout in rollouts:
            if not rollout.world_model_only and rollout.reward is not None:
                groups.setdefault((rollout.group_id, rollout.task_id), []).append(rollout.reward)
        for (_, task_id), rewards in groups.items():
            if len(rewards) > 1:
                self._learn(task_id, rewards)

    def _learn(self, task_id: str, rewards: Sequence[float]) -> None:
        equal = min(rewards) == max(rewards)
        before = self.contrast.get(task_id, 1.0)
        self.contrast[task_id] = before + RATE * ((not equal) - before)
        self.last[task_id] = "mixed" if not equal else "solved" if rewards[0] >= self.solved_at else "failed"

    def shares(self, tasks: Sequence[Task]) -> dict[str, float]:
        """Return the shares of `tasks` by the outcome of their last group, under the names in `CURRICULUM_KEYS`."""
        outcomes = [self.last.get(task.task_id, "unplayed") for task in tasks]
        return {key: outcomes.count(key.removeprefix("tasks_")) / len(tasks) for key in CURRICULUM_KEYS}

    def to_json(self) -> dict[str, Mapping[str, float | str]]:
        return {"contrast": self.contrast, "last": self.last}


def shares_of(curriculum: Curriculum, worlds: TaskSuite) -> dict[str, float]:
    """Return the shares of the training tasks, and of those of each of several environments, as `NAME/KEY`."""
    found = curriculum.shares(worlds.tasks.train)
    if isinstance(worlds, SeveralWorlds):
        for name in worlds.members:
            own = curriculum.shares(worlds.tasks_in(name, worlds.tasks.train))
            found |= {f"{name}/{key}": share for key, share in own.items()}
    return found
