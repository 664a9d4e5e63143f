"""The tasks of any environment: lists of reset arguments, with the scripts that go with them."""

from __future__ import annotations

import random

from echo_cli.environments.protocol import Environment
from echo_cli.environments.task import Task, TaskSplits
from echo_cli.environments.tasks import TaskList
from echo_cli.environments.text_environment import EnvironmentFactory


class TaskWorlds:
    """What a run needs of an environment that is not ours."""

    replayable = False

    def __init__(self, tasks: TaskList, factory: EnvironmentFactory) -> None:
        self._list = tasks
        self._factory = factory
        self.tasks = tasks.splits
        self.hosting = factory.hosting
        self.description = factory.description

    def environment(self) -> Environment:
        return self._factory.environment()

    def expert(self, task: Task) -> list[str] | None:
        actions = self._list.actions.get(task.task_id)
        return None if actions is None else list(actions)

    def explorer(self, task: Task, count: int, rng: random.Random) -> list[str]:
        return rng.choices(self._factory.settings.explorer, k=count)

    def out_of_distribution(self) -> TaskWorlds:
        elsewhere = TaskList(TaskSplits((), (), self._list.ood), self._list.actions, ())
        return TaskWorlds(elsewhere, self._factory)
