"""No environment: what a run on traces alone has in its place. There is no task, so nothing is ever played."""

from __future__ import annotations

import random

from echo_cli.environments.client import Description
from echo_cli.environments.protocol import Environment, Hosting
from echo_cli.environments.task import Task, TaskSplits
from echo_cli.errors import EchoError


class NoWorlds:
    """Worlds without a task."""

    replayable = False

    def __init__(self) -> None:
        self.tasks = TaskSplits((), (), ())
        self.hosting = Hosting()
        self.description = Description("none", {}, {})

    def environment(self) -> Environment:
        raise EchoError("environment.none is true: there is no environment to play in", "name one in the config")

    def expert(self, task: Task) -> list[str] | None:
        return None

    def explorer(self, task: Task, count: int, rng: random.Random) -> list[str]:
        return []

    def out_of_distribution(self) -> NoWorlds:
        return self
