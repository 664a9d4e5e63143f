"""Machines: disjoint uses, questions that two lines answer, and explorers that never type a held-out solution."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable

import pytest
from pool_samples import TOKENIZER

from echo_cli.config.toy_terminal import ToyTerminalConfig
from echo_cli.environments.tasks import Split, Task
from echo_cli.environments.toy import ToyWorlds
from echo_cli.errors import EchoError
from echo_cli.evaluation.evaluator import expert_pool, pool_tasks
from echo_cli.models.renderer import PlainRenderer
from echo_cli.rollouts.limits import EpisodeLimits
from toy_terminal_env.environment import ToyTerminalEnvironment, world_and_tasks
from toy_terminal_env.machine import SEEDS, STEMS, generate_machine, service_names, use_of
from toy_terminal_env.models import ToyTerminalAction
from toy_terminal_env.scripted import (
    HIDDEN,
    MACHINE_WEIGHTS,
    expert_actions,
    explorer_actions,
    explorer_commands,
    reserved_commands,
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
def test_explorers_type_no_solution_or_reserved_command_and_show_every_place_in_several_forms(seed: int) -> None:
    worlds = ToyWorlds([seed], (), 2, kind="machine")
    world, tasks = world_and_tasks(seed, "machine")
    reserved = reserved_commands(world, tasks.values())
    forbidden = solving_commands(task for task in tasks.values() if task.split != "train") | reserved.commands
    kinds = explorer_commands(world, forbidden)
    assert set(kinds) == set(MACHINE_WEIGHTS) and all(kinds.values())
    typed = set(explorer_actions(kinds, 4_000, random.Random(0)))
    typed |= set(worlds.explorer(worlds.tasks.train[0], 1_000, random.Random(1)))
    assert not typed & forbidden
    for path, service in world.service_of.items():
        forms = (f"grep -rl {service} /etc", f"grep -r {service} /etc", f"grep {service} {REGISTRY}")
        assert sum(form in typed for form in forms) >= 2
        assert all(path in run(world.files, form).stdout for form in forms)
        assert any(command in typed for command in kinds["window"] if command.startswith("head") and path in command)


@pytest.mark.parametrize("seed", (*MACHINES, 3, 46, 61))
def test_pools_reserve_disjoint_commands_of_lines_shown_and_of_lines_hidden(seed: int) -> None:
    world, tasks = world_and_tasks(seed, "machine")
    reserved = reserved_commands(world, tasks.values())
    assert reserved == reserved_commands(world, tasks.values()) and set(reserved.pools) == {"validation", "heldout"}
    validation, heldout = map(set, reserved.pools.values())
    assert len(validation) + len(heldout) == sum(map(len, reserved.pools.values())), "no command twice"
    assert not validation & heldout
    asked = {split: solving_commands(task for task in tasks.values() if task.split == split) for split in SPLITS}
    assert not (validation | heldout) & set().union(*asked.values())

    def printed(commands: Iterable[str]) -> set[str]:
        results = [run(world.files, command) for command in commands]
        assert all(result.stdout and not result.exit_code for result in results), "no error and no empty output"
        return {line for result in results for line in result.stdout.splitlines()}

    kinds = explorer_commands(world, reserved.commands.union(asked["validation"], asked["heldout"]))
    shown = printed(command for commands in kinds.values() for command in commands)
    for split in ("validation", "heldout"):
        hidden = printed(asked[split] | set(reserved.pools[split])) - shown
        settings = {line for line in hidden if not line.startswith("/etc")}  # `grep -r` prints the path before the line
        assert 1 <= len(settings) <= HIDDEN[split]
        assert settings <= printed(asked[split]), "a task of the split asks for each"
        assert not hidden & printed(asked["train"])
        surprising = [command for command in reserved.pools[split] if printed([command]) & hidden]
        assert len(surprising) < len(reserved.pools[split]) / 2, "explorers see most lines under other commands"
    words = {tuple(command.split()[:2]) for command in heldout}
    assert words >= {("grep", "-rl"), ("grep", "-r"), ("head", "-n"), ("tail", "-n")}
    assert any(command.endswith(REGISTRY) and command.startswith("grep") for command in heldout)
    assert any(command.endswith(REGISTRY) and not command.startswith("grep") for command in heldout)


def test_the_frozen_pools_of_a_machine_hold_the_reserved_commands() -> None:
    worlds, limits = ToyWorlds([0], [1], 2, kind="machine"), EpisodeLimits(16, 256, 512)
    renderer = PlainRenderer(TOKENIZER)
    pools = {name: expert_pool(of, tasks, renderer, limits).pairs for name, (of, tasks) in pool_tasks(worlds).items()}
    for name, seed in (("validation", 0), ("heldout", 0), ("ood", 1)):
        world, tasks = world_and_tasks(seed, "machine")
        split: Split = "validation" if name == "validation" else "heldout"
        solutions = solving_commands(task for task in tasks.values() if task.split == split)
        commands = solutions.union(reserved_commands(world, tasks.values()).pools[split])
        assert {command for command, _ in pools[name]} == commands
        assert len(pools[name]) == len(commands)
    assert len(pools["heldout"]) >= 90 and sum(len(output) for _, output in pools["heldout"]) >= 2_500
    assert not worlds.reserved(worlds.tasks.train) and not ToyWorlds([0], (), 5).reserved(worlds.tasks.heldout)


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
