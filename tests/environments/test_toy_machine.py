"""Machines: disjoint uses, questions that two lines answer, and explorers that never type a held-out solution."""

from __future__ import annotations

import asyncio
import random

import pytest

from echo_cli.config.toy_terminal import ToyTerminalConfig
from echo_cli.environments.tasks import Task
from echo_cli.environments.toy import ToyWorlds
from echo_cli.errors import EchoError
from toy_terminal_env.environment import ToyTerminalEnvironment, world_and_tasks
from toy_terminal_env.machine import SEEDS, STEMS, generate_machine, service_names, use_of
from toy_terminal_env.models import ToyTerminalAction
from toy_terminal_env.scripted import (
    MACHINE_WEIGHTS,
    expert_actions,
    explorer_actions,
    explorer_commands,
    solving_commands,
)
from toy_terminal_env.shell import run
from toy_terminal_env.tasks import ELSEWHERE, SPLITS
from toy_terminal_env.world import REGISTRY

MACHINES = (0, 1, 77, SEEDS["evaluation"][-1])


def test_uses_have_disjoint_seeds_and_names() -> None:
    assert len(SEEDS["evaluation"]) >= 60
    uses = list(SEEDS)
    for first in uses:
        assert {use_of(SEEDS[first][0]), use_of(SEEDS[first][-1])} == {first}
        for second in uses[uses.index(first) + 1 :]:
            assert SEEDS[first][-1] < SEEDS[second][0], "the ranges of seeds are disjoint"
            assert not set(service_names(first)) & set(service_names(second))


def test_a_machine_has_names_of_its_use_and_no_other_machine_that_recurs_has_them() -> None:
    seen: set[str] = set()
    for use in ("evaluation", "home"):
        for seed in SEEDS[use]:
            services = set(generate_machine(seed).service_of.values())
            assert len(services) == len(STEMS) and services <= set(service_names(use))
            assert not services & seen
            seen |= services
    assert set(generate_machine(SEEDS["fresh"][5]).service_of.values()) <= set(service_names("fresh"))


def test_a_seed_between_the_uses_is_refused() -> None:
    with pytest.raises(ValueError, match="no machine has the seed 500"):
        generate_machine(500)


@pytest.mark.parametrize("seed", MACHINES)
def test_files_are_called_the_same_on_every_machine_and_hold_what_is_secret(seed: int) -> None:
    world = generate_machine(seed)
    assert set(world.files) == {f"/etc/{stem}.yaml" for stem in STEMS} | {REGISTRY}
    for path, service in world.service_of.items():
        assert run(world.files, f"grep -rl {service} /etc").stdout == f"{path}\n"
        assert run(world.files, f"grep {service} {REGISTRY}").stdout == f"{service},{path}\n"
        first, *settings = world.lines(path)
        assert first == f"service: {service}" and 5 <= len(settings) <= 7


def test_where_a_service_lies_differs_by_machine() -> None:
    places = [tuple(sorted(generate_machine(seed).service_of.items())) for seed in SEEDS["evaluation"]]
    assert len(set(places)) == len(places)


@pytest.mark.parametrize("seed", MACHINES)
def test_an_expert_answers_every_question_in_two_lines_and_a_search_takes_three(seed: int) -> None:
    world, tasks = world_and_tasks(seed, "machine")
    for task in tasks.values():
        environment = ToyTerminalEnvironment(max_turns=2)
        assert environment.reset(seed, task_id=task.task_id, kind="machine").instruction == task.question
        look, answer = expert_actions(task)
        assert environment.step(ToyTerminalAction(look)).reward is None
        assert environment.step(ToyTerminalAction(answer)).reward == 1.0

        environment.reset(seed, task_id=task.task_id, kind="machine")
        service = task.question.removesuffix("?").rpartition(" ")[2]
        environment.step(ToyTerminalAction(f"grep -rl {service} /etc"))
        assert environment.step(ToyTerminalAction(look)).done, "the cap leaves no line for the answer"
        assert world.service_of[look.rpartition(" ")[2]] == service


@pytest.mark.parametrize("seed", MACHINES)
def test_no_setting_is_in_two_splits_and_whole_services_are_never_asked_about_in_training(seed: int) -> None:
    world, tasks = world_and_tasks(seed, "machine")
    solutions = {split: solving_commands(task for task in tasks.values() if task.split == split) for split in SPLITS}
    assert sum(map(len, solutions.values())) == len(set().union(*solutions.values())) == len(tasks)
    asked = {
        split: {world.service_of[task.solution[0].rpartition(" ")[2]] for task in tasks.values() if task.split == split}
        for split in SPLITS
    }
    elsewhere = {
        split: {task.solution[0].rpartition(" ")[2] for task in tasks.values() if task.family == "setting_elsewhere"}
        for split in SPLITS
    }
    assert len(elsewhere["heldout"]) == sum(ELSEWHERE.values())
    assert not asked["train"] & {world.service_of[path] for path in elsewhere["heldout"]}
    assert len(asked["train"]) == len(STEMS) - sum(ELSEWHERE.values())
    assert sum(task.split == "heldout" for task in tasks.values()) >= 40


@pytest.mark.parametrize("seed", MACHINES)
def test_explorers_never_type_a_held_out_solution_and_show_every_place_in_several_forms(seed: int) -> None:
    worlds = ToyWorlds([seed], (), 2, kind="machine")
    world, tasks = world_and_tasks(seed, "machine")
    forbidden = solving_commands(task for task in tasks.values() if task.split != "train")
    kinds = explorer_commands(world, forbidden)
    assert set(kinds) == set(MACHINE_WEIGHTS) and all(kinds.values())
    typed = set(explorer_actions(kinds, 4_000, random.Random(0)))
    typed |= set(worlds.explorer(worlds.tasks.train[0], 1_000, random.Random(1)))
    assert not typed & forbidden
    for path, service in world.service_of.items():
        for command in (f"grep -rl {service} /etc", f"grep -r {service} /etc", f"grep {service} {REGISTRY}"):
            assert command in typed
            assert path in run(world.files, command).stdout


def test_a_suite_of_machines_plays_its_kind() -> None:
    worlds = ToyWorlds([3], [4], 2, ["setting"], kind="machine")
    assert {task.family for task in worlds.tasks.heldout} == {"setting"}
    elsewhere = worlds.out_of_distribution()
    for suite in (worlds, elsewhere):
        task = suite.tasks.heldout[0]
        script = suite.expert(task)

        async def play(suite: ToyWorlds = suite, task: Task = task, script: list[str] = script) -> float | None:
            environment = suite.environment()
            await environment.reset(task)
            for line in script:
                await environment.step(line)
            return await environment.verify()

        assert asyncio.run(play()) == 1.0


def test_configs_name_evaluation_machines_and_families_of_their_kind() -> None:
    ToyTerminalConfig(kind="machine", world_seeds=(3,), families=("setting",))
    with pytest.raises(EchoError, match="seed 1000"):
        ToyTerminalConfig(kind="machine", world_seeds=(1000,))
    with pytest.raises(EchoError, match="no task family 'key' of kind machine"):
        ToyTerminalConfig(kind="machine", families=("key",))
    with pytest.raises(EchoError, match="no task family 'setting' of kind files"):
        ToyTerminalConfig(families=("setting",))
