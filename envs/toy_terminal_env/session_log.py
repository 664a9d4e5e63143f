"""Session logs: what somebody who solved training tasks has left in the world, for others to find.

As runbooks and shell histories do in a real one, they show how questions turn into commands here. They hold training
tasks only: no question, no solving command and no answer of a validation or held-out task.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from types import MappingProxyType

from toy_terminal_env.shell import run
from toy_terminal_env.tasks import ToyTask
from toy_terminal_env.world import World

FOLDER = "/home/ops"
SEARCHED = ("key", "cell")
"""Families whose question does not name the file: what there is to learn from others."""
TASKS_PER_LOG = 4


def with_session_logs(world: World, tasks: Iterable[ToyTask]) -> World:
    """`world` with a log for every `TASKS_PER_LOG` training tasks of the `SEARCHED` families."""
    solved = [task for task in tasks if task.split == "train" and task.family in SEARCHED]
    random.Random(f"toy-terminal-sessions-{world.seed}").shuffle(solved)
    logs = {
        f"{FOLDER}/session-{start // TASKS_PER_LOG + 1}.txt": "".join(
            _transcript(world, task) for task in solved[start : start + TASKS_PER_LOG]
        )
        for start in range(0, len(solved), TASKS_PER_LOG)
    }
    return World(world.seed, MappingProxyType(dict(sorted({**world.files, **logs}.items()))), world.service_of)


def _transcript(world: World, task: ToyTask) -> str:
    turns = "".join(f"$ {command}\n{run(world.files, command).stdout}" for command in task.solution)
    return f"task: {task.question}\n{turns}$ answer: {task.answer}\n"
