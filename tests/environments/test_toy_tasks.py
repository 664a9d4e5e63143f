"""Worlds, tasks and scripted actors: the same bytes everywhere, correct answers, and disjoint splits."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from echo_cli.config.loader import load_config
from echo_cli.environments.toy import ToyWorlds
from toy_terminal_env.environment import ToyTerminalEnvironment, world_and_tasks
from toy_terminal_env.models import ToyTerminalAction
from toy_terminal_env.scripted import (
    EXPLORER_WEIGHTS,
    expert_actions,
    explorer_actions,
    explorer_commands,
    mistaken_action,
    searching_actions,
    solving_commands,
)
from toy_terminal_env.shell import run
from toy_terminal_env.tasks import SPLITS, ToyTask, generate_tasks
from toy_terminal_env.world import REGISTRY, World, generate_world

ROOT = Path(__file__).parents[2]
SEEDS = (0, 1, 2, 101, 102)

# The shipped tiny-base was pretrained on worlds of this form. If this changes, pretrain again (CONTRIBUTING.md).
SEED_0 = "dfc140a65a48fd643dfdfe0a16da93a1373066b7bbdd66c1146b7e5ba37936de"

DIGEST = """
import hashlib
from toy_terminal_env.scripted import explorer_commands
from toy_terminal_env.tasks import generate_tasks
from toy_terminal_env.world import generate_world
world = generate_world({seed})
things = list(world.files.items()), generate_tasks(world), explorer_commands(world, frozenset())
print(hashlib.sha256(repr(things).encode()).hexdigest())
"""


def outputs(world: World, task: ToyTask) -> list[str]:
    return [run(world.files, command).stdout for command in task.solution]


# --- The same everywhere ---------------------------------------------------------------------------------------------


def test_a_world_has_the_same_bytes_in_every_process() -> None:
    digests = {
        subprocess.run(
            [sys.executable, "-c", DIGEST.format(seed=7)],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert len(digests) == 1


def test_the_default_world_is_the_one_pretraining_knows_the_form_of() -> None:
    world = generate_world(0)
    assert hashlib.sha256(repr((list(world.files.items()), generate_tasks(world))).encode()).hexdigest() == SEED_0


def test_distinct_seeds_give_distinct_worlds_and_tasks() -> None:
    worlds = [generate_world(seed) for seed in range(50)]
    assert len({tuple(world.files.items()) for world in worlds}) == 50
    assert len({tuple(task.question for task in generate_tasks(world)) for world in worlds[:10]}) == 10


def test_two_calls_agree_and_nothing_can_be_changed() -> None:
    world, again = generate_world(3), generate_world(3)
    assert (world.files, world.service_of, generate_tasks(world)) == (
        again.files,
        again.service_of,
        generate_tasks(again),
    )
    with pytest.raises(TypeError):
        world.files["/etc/new"] = ""  # type: ignore[index]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_world_is_plain_text_files(seed: int) -> None:
    world = generate_world(seed)
    assert list(world.files) == sorted(world.files)
    for path, text in world.files.items():
        assert path.startswith(("/etc/", "/var/log/", "/srv/"))
        assert text.isascii() and text.endswith("\n") and "\r" not in text and "\n\n" not in text


# --- True answers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_the_expert_earns_reward_1_on_every_task_and_a_wrong_answer_0(seed: int) -> None:
    _, tasks = world_and_tasks(seed)
    for task in tasks.values():
        for actions, reward in ((expert_actions(task), 1.0), ([*task.solution, f"answer: {task.answer}x"], 0.0)):
            environment = ToyTerminalEnvironment(max_turns=5)
            assert environment.reset(seed, task_id=task.task_id).instruction == task.question
            replies = [environment.step(ToyTerminalAction(action)) for action in actions]
            assert [reply.exit_code for reply in replies] == [0] * len(task.solution) + [None]
            assert (replies[-1].done, replies[-1].reward) == (True, reward), task


def read_answer(world: World, task: ToyTask) -> str:
    """Return the answer as a person would read it from the question and the last command's output."""
    words, output = task.question.rstrip("?").split(), outputs(world, task)[-1]
    lines = output.splitlines()
    if task.family in ("key", "key_named", "two_step"):
        key = words[2] if task.family == "key_named" else words[3]
        (line,) = lines
        assert line.startswith(f"{key}: ")
        return line.removeprefix(f"{key}: ")
    if task.family in ("cell", "cell_named"):
        (line,) = lines
        path = task.solution[0].split()[-1]
        header = world.lines(path)[0].split(",")
        assert line.split(",")[0] == words[5].rstrip("?")
        return line.split(",")[header.index(words[3])]
    if task.family == "match_time":
        return lines[{"first": 0, "last": -1}[words[3]]].split()[0]
    if task.family == "next_line":
        starts = [line.split(" ")[0].split(",")[0].rstrip(":") for line in lines]
        assert starts.count(words[3]) == 1
        return starts[starts.index(words[3]) + 1]
    if task.family in ("last_line", "nth_line", "line_from_end"):
        assert len(lines) == (1 if task.family == "last_line" else int(words[3]))
        line = lines[-1] if task.family == "nth_line" else lines[0]
        return line.split(" ")[0].split(",")[0].rstrip(":")
    if task.family == "line_count":
        return lines[0].split()[0]
    if task.family == "file_count":
        return str(len(lines))
    assert task.family == "count"
    return lines[0]


@pytest.mark.parametrize("seed", SEEDS)
def test_the_answer_can_be_read_off_the_last_output(seed: int) -> None:
    world, tasks = world_and_tasks(seed)
    for task in tasks.values():
        assert read_answer(world, task) == task.answer, task


@pytest.mark.parametrize("seed", SEEDS)
def test_two_step_tasks_find_their_config_in_the_registry(seed: int) -> None:
    world, tasks = world_and_tasks(seed)
    two_step = [task for task in tasks.values() if task.family == "two_step"]
    assert two_step
    for task in two_step:
        (line,) = outputs(world, task)[0].splitlines()
        assert line.split(",")[1] == task.solution[1].split()[-1]


@pytest.mark.parametrize("seed", range(30))
def test_no_question_is_ambiguous(seed: int) -> None:
    world = generate_world(seed)
    tables = [path for path in world.paths(".csv") if path != REGISTRY]
    hosts = [line.split(",")[0] for path in tables for line in world.lines(path)[1:]]
    assert len(hosts) > 20 and len(set(hosts)) == len(hosts)
    assert len(set(world.service_of.values())) == len(world.service_of)
    answers: dict[str, set[str]] = {}
    for task in generate_tasks(world):
        answers.setdefault(task.question, set()).add(task.answer)
    assert all(len(found) == 1 for found in answers.values())


# --- Splits ----------------------------------------------------------------------------------------------------------


def fact(task: ToyTask) -> tuple[str, ...]:
    """Return the subject of a task, independent of its wording."""
    family = {"key_named": "key", "two_step": "key", "cell_named": "cell"}.get(task.family, task.family)
    return (family, task.solution[-1])


@pytest.mark.parametrize("seed", SEEDS)
def test_splits_share_no_question_no_fact_and_no_solving_command(seed: int) -> None:
    _, tasks = world_and_tasks(seed)
    assert {task.split for task in tasks.values()} == set(SPLITS)
    for of in (lambda task: {task.question}, lambda task: {fact(task)}, lambda task: set(task.solution)):
        found = [set().union(*(of(task) for task in tasks.values() if task.split == split)) for split in SPLITS]
        assert sum(len(part) for part in found) == len(set().union(*found))


@pytest.mark.parametrize("seed", SEEDS)
def test_every_family_is_in_every_split(seed: int) -> None:
    _, tasks = world_and_tasks(seed)
    families = {split: {task.family for task in tasks.values() if task.split == split} for split in SPLITS}
    # Whether a two-step task falls into a small split depends on two independent draws.
    assert (
        families["train"] - {"two_step"} == families["heldout"] - {"two_step"} == families["validation"] - {"two_step"}
    )
    assert len(families["train"]) >= 11


@pytest.mark.parametrize(
    ("seeds", "least_bytes"), [((0,), 2000), *(((seed,), 1800) for seed in range(1, 6)), ((101, 102), 4000)]
)
def test_the_heldout_split_is_large_enough_to_measure(seeds: tuple[int, ...], least_bytes: int) -> None:
    heldout, pairs = [], set()
    for world, tasks in map(world_and_tasks, seeds):
        heldout += [task for task in tasks.values() if task.split == "heldout"]
        pairs |= {
            pair
            for task in heldout
            if task.task_id in tasks
            for pair in zip(task.solution, outputs(world, task), strict=True)
        }
    commands = Counter(command.split()[0] for command, _ in pairs)
    assert len(heldout) >= 40
    assert len(pairs) >= 40
    assert sum(len(output) for _, output in pairs) >= least_bytes
    assert set(commands) == {"ls", "cat", "head", "tail", "wc", "grep"}
    assert commands["grep"] >= len(pairs) / 3


def test_task_ids_are_unique_over_worlds() -> None:
    worlds = ToyWorlds(SEEDS, (), 5)
    assert len(worlds.tasks.heldout) == sum(
        task.split == "heldout" for seed in SEEDS for task in world_and_tasks(seed)[1].values()
    )


# --- Scripted actors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_an_explorer_never_types_what_solves_a_validation_or_heldout_task(seed: int) -> None:
    world, tasks = world_and_tasks(seed)
    forbidden = solving_commands(task for task in tasks.values() if task.split != "train")
    kinds = explorer_commands(world, forbidden)
    commands = {command for kind in kinds.values() for command in kind}
    assert all(kinds[kind] for kind in EXPLORER_WEIGHTS)
    assert not commands & forbidden
    for command in commands:
        name, *words = command.split()
        # `-c` prints a number and no lines.
        if name == "grep" and words[0].startswith("-") and words[0] != "-c":
            assert " ".join([name, *words[1:]]) not in forbidden


def test_without_the_filter_an_explorer_would() -> None:
    world, tasks = world_and_tasks(0)
    forbidden = solving_commands(task for task in tasks.values() if task.split != "train")
    commands = {command for kind in explorer_commands(world, frozenset()).values() for command in kind}
    assert len(forbidden - commands) == 0


def test_the_explorer_of_a_run_never_types_a_forbidden_command() -> None:
    worlds = ToyWorlds((0, 1), (), 5)
    forbidden = {
        seed: solving_commands(task for task in world_and_tasks(seed)[1].values() if task.split != "train")
        for seed in (0, 1)
    }
    rng = random.Random(0)
    for seed in (0, 1):
        task = next(task for task in worlds.tasks.train if task.reset_arguments["seed"] == seed)
        typed = worlds.explorer(task, 3000, rng)
        assert not set(typed) & forbidden[seed]
        paths = {word for command in typed for word in command.split() if word.endswith((".yaml", ".csv", ".log"))}
        assert paths == set(world_and_tasks(seed)[0].files), "an explorer wanders in the world of its task"


def test_explorers_type_working_commands_of_every_kind() -> None:
    world, _ = world_and_tasks(0)
    typed = explorer_actions(explorer_commands(world, frozenset()), 500, random.Random(0))
    assert {command.split()[0] for command in typed} == {"ls", "cat", "head", "tail", "wc", "grep"}
    # Only `grep -c` of a level that is not in the log exits with 1.
    assert all(run(world.files, command).exit_code == 0 for command in typed if not command.startswith("grep -c"))


def test_mistakes_fail() -> None:
    world, _ = world_and_tasks(0)
    rng = random.Random(0)
    assert all(run(world.files, mistaken_action(world, rng)).exit_code != 0 for _ in range(200))


@pytest.mark.parametrize("seed", SEEDS[:2])
def test_a_searching_expert_ends_with_the_solution(seed: int) -> None:
    world, tasks = world_and_tasks(seed)
    rng = random.Random(seed)
    for task in tasks.values():
        actions = searching_actions(world, task, rng)
        assert actions[-2:] == [task.solution[-1], f"answer: {task.answer}"]
        assert len(actions) <= 8


# --- Pretraining and configs -----------------------------------------------------------------------------------------


def test_pretraining_worlds_are_in_no_config() -> None:
    path = ROOT / "scripts" / "pretrain_tiny_base.py"
    spec = importlib.util.spec_from_file_location("pretrain_tiny_base", path)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    configs = sorted((ROOT / "configs").glob("*.yaml"))
    assert configs
    for config in configs:
        worlds = load_config(config).environment.toy_worlds
        if worlds is None:
            continue
        # The tokenizer is fitted on 1500 worlds below the first.
        assert max(*worlds.world_seeds, *worlds.ood_world_seeds) < script.FIRST_WORLD_SEED - 1500
        assert not set(worlds.world_seeds) & set(worlds.ood_world_seeds)
