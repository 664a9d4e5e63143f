"""Task suites of users' environments: what explorers may type."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from echo_cli.config.environment import EnvironmentConfig
from echo_cli.config.episodes.tasks import TasksConfig
from echo_cli.config.loader import load_config
from echo_cli.environments.protocol import Description, HostLimits
from echo_cli.environments.tasks import load_tasks
from echo_cli.environments.text_environment import EnvironmentFactory
from echo_cli.environments.toy import ToySource
from echo_cli.environments.worlds import TaskWorlds, open_worlds
from echo_cli.errors import EchoError

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
    assert worlds.other_world() is None


def test_tasks_of_another_world_are_played_by_a_placebos_explorers_alone() -> None:
    other = {"reset": {"seed": 9}, "split": "other_world", "actions": ["ls", "cat b"]}
    tasks = TasksConfig(items=(*ITEMS, other))
    settings = EnvironmentConfig(url="http://127.0.0.1:1", tasks=tasks, explorer=("ls", "cat a", "cat b"))
    factory = EnvironmentFactory(ToySource(), settings, HostLimits(), Description("any", {}, {}))
    worlds = TaskWorlds(load_tasks(tasks), factory)
    listed = (*worlds.tasks.train, *worlds.tasks.validation, *worlds.tasks.heldout)
    assert {"seed": 9} not in [task.reset_arguments for task in listed]
    placebo = worlds.other_world()
    assert placebo is not None and [task.reset_arguments for task in placebo.tasks.train] == [{"seed": 9}]
    assert set(placebo.explorer(placebo.tasks.train[0], 200, random.Random(0))) == {"ls"}


def test_a_placebo_of_a_users_environment_needs_tasks_of_another_world() -> None:
    words = ["objective.env_targets=other_world", "environment.provider.command=[missing]"]
    with (
        pytest.raises(EchoError, match=r"environment\.tasks has no task of another world") as caught,
        open_worlds(load_config("sandbox", words)),
    ):
        pytest.fail("the server was started")
    assert "split: other_world" in caught.value.tip


@pytest.mark.parametrize("kind", ["files", "machine"])
def test_explorers_of_a_placebo_play_another_world_with_the_same_kind_and_turns(kind: str) -> None:
    words = [f"environment.toy_terminal.kind={kind}", "objective.env_targets=other_world"]
    with open_worlds(load_config("toy", words)) as worlds:
        placebo = worlds.other_world()
        assert placebo is not None and placebo.tasks.train
        own, other = (suite.tasks.train[0].reset_arguments for suite in (worlds, placebo))
    assert own["seed"] == 0 and other["seed"] == {"files": 200, "machine": 149}[kind]
    assert {**own, "seed": 0, "task_id": 0} == {**other, "seed": 0, "task_id": 0}
