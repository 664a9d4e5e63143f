"""Worlds with environments made by a test, handed out in order, one per episode."""

from __future__ import annotations

import random
from collections.abc import Sequence

from echo_cli.environments.protocol import Description, Environment, HostLimits, TaskSuite
from echo_cli.environments.tasks import Task, TaskSplits


class CannedWorlds:
    replayable = True

    def __init__(self, *environments: Environment, hosting: HostLimits | None = None) -> None:
        self._environments = list(environments)
        self.tasks = TaskSplits((), (), ())
        self.hosting = hosting or HostLimits()
        self.description = Description("canned", {}, {})

    def environment(self) -> Environment:
        return self._environments.pop(0)

    def expert(self, task: Task) -> list[str] | None:
        return None

    def explorer(self, task: Task, count: int, rng: random.Random) -> list[str]:
        raise AssertionError("nothing here explores")

    def reserved(self, tasks: Sequence[Task]) -> list[tuple[Task, list[str]]]:
        return []

    def out_of_distribution(self) -> TaskSuite:
        return self


def groups(tasks: Sequence[Task]) -> list[tuple[Task, str]]:
    """Return each task as a group of its own."""
    return [(task, task.task_id) for task in tasks]
