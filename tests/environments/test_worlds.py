"""Task suites of users' environments: what explorers may type."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from echo_cli.config.environment import EnvironmentConfig, TasksConfig
from echo_cli.environments.protocol import Description, HostLimits
from echo_cli.environments.tasks import load_tasks
from echo_cli.environments.text_environment import EnvironmentFactory
from echo_cli.environments.toy import ToySource
from echo_cli.environments.worlds import TaskWorlds

ITEMS = (
    {"reset": {"seed": 1}, "split": "train", "actions": ["ls", "cat a", "answer 1"]},
    {"reset": {"seed": 2}, "split": "validation", "actions": ["ls", "cat b", "answer 2"]},
    {"reset": {"seed": 3}, "split": "heldout", "actions": ["ls", "cat c", "answer 3"]},
    {"reset": {"seed": 4}, "split": "heldout", "actions": ["cat a"]},
    {"reset": {"seed": 5}, "split": "heldout"},
)


@pytest.mark.parametrize(
    ("explorer", "typed"),
    [
        (["ls", "cat a", "cat b", "cat c", "answer 3", "wc"], {"ls", "wc"}),
        (["cat b", "answer 2"], set()),
        ([], set()),
    ],
)
def test_explorers_never_type_a_line_that_solves_a_task_outside_training(
    explorer: Sequence[str], typed: set[str]
) -> None:
    tasks = TasksConfig(items=ITEMS)
    settings = EnvironmentConfig(url="http://127.0.0.1:1", tasks=tasks, explorer=tuple(explorer))
    factory = EnvironmentFactory(ToySource(), settings, HostLimits(), Description("any", {}, {}))
    worlds = TaskWorlds(load_tasks(tasks), factory)
    assert set(worlds.explorer(worlds.tasks.train[0], 200, random.Random(0))) == typed
    assert worlds.can_explore == bool(typed)
