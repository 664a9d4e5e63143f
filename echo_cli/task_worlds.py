"""The tasks of any environment: lists of reset arguments, with the scripts that go with them."""

from __future__ import annotations

import random

from echo_cli.client import Description, Source
from echo_cli.environment import Environment, Hosting
from echo_cli.environment_config import EnvironmentConfig
from echo_cli.task import Task, TaskSplits
from echo_cli.task_file import TaskList
from echo_cli.text_environment import TextEnvironment


class TaskWorlds:
    """What a run needs of an environment that is not ours."""

    scripted = False

    def __init__(
        self, tasks: TaskList, source: Source, settings: EnvironmentConfig, hosting: Hosting, description: Description
    ) -> None:
        self._list = tasks
        self._source = source
        self._settings = settings
        self.tasks = tasks.splits
        self.hosting = hosting
        self.description = description

    def environment(self) -> Environment:
        return TextEnvironment(self._source, self._settings, self.hosting)

    def expert(self, task: Task) -> list[str] | None:
        actions = self._list.actions.get(task.task_id)
        return None if actions is None else list(actions)

    def explorer(self, task: Task, count: int, rng: random.Random) -> list[str]:
        return rng.choices(self._settings.explorer, k=count)

    def out_of_distribution(self) -> TaskWorlds:
        elsewhere = TaskList(TaskSplits((), (), self._list.ood), self._list.actions, ())
        return TaskWorlds(elsewhere, self._source, self._settings, self.hosting, self.description)
