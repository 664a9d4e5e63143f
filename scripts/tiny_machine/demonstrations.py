"""Demonstrations that `tiny-machine` is pretrained on, and the tokens of each that it learns.

A base that sees only ever-fresh worlds learns to copy from its context, and nothing that the env term later stores in
its weights is wired to its actions. Home machines recur: of half of them the base sees both outputs and the actions
that use them, of the other half outputs only, so that it has to use what it has only read (Allen-Zhu and Li, *Physics
of Language Models 3.1*, arXiv 2309.14316).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from echo_cli.environments.tasks import Task
from echo_cli.environments.toy import ToyWorlds
from echo_cli.models.renderer import PlainRenderer
from echo_cli.models.tokenizer import Tokenizer
from echo_cli.rollouts.limits import EpisodeLimits
from echo_cli.rollouts.rollout import play_scripts
from echo_cli.trajectory import Role, Trajectory
from toy_terminal_env.environment import world_and_tasks
from toy_terminal_env.machine import SEEDS
from toy_terminal_env.scripted import (
    expert_actions,
    explorer_actions,
    explorer_commands,
    hasty_actions,
    mistaken_action,
    searching_actions,
)
from toy_terminal_env.shell import run
from toy_terminal_env.tasks import ToyTask
from toy_terminal_env.world import Kind, World

FIRST_WORLD_SEED = 1_000_000
TURNS = 12
LIMITS = EpisodeLimits(action_tokens=32, output_tokens=256, episode_tokens=640)
ACTING = frozenset({Role.ACTION, Role.ENV_OUTPUT, Role.WARNING})
OBSERVING = frozenset({Role.ENV_OUTPUT})
"""Of an episode that only observes, the base learns no action: otherwise it would learn to type without a goal."""

SHARES: Mapping[str, float] = {"files": 0.5, "fresh": 0.15, "shown": 0.175, "read": 0.175}
"""Shares of demonstrations in worlds of files, on fresh machines, on home machines of which acting is shown, and on
home machines that are only read."""
WITHOUT_HOME: Mapping[str, float] = {"files": 0.5, "fresh": 0.5}
"""Shares for a base that meets no machine twice, as a control."""
EXPLORERS, HASTY = 0.2, 0.5
WANDERING, STRAIGHT = 0.2, 0.1
SHOWN_ACTING, SHOWN_STRAIGHT = 0.6, 0.8
LOOKS: Mapping[str, int] = {
    "grep -rl": 5,
    "grep -r": 2,
    "registry": 3,
    "registry window": 3,
    "window": 5,
    "grep": 4,
    "ls": 1,
}
"""Relative frequency of each kind of command of an episode that observes a machine or wanders on it."""
SHOWN, READ = SEEDS["home"][::2], SEEDS["home"][1::2]
"""Home machines of which acting is shown, and those that are only read."""


@dataclass(frozen=True)
class Demonstration:
    """An episode and the roles of its tokens that are learned."""

    trajectory: Trajectory
    learned: frozenset[Role]


@lru_cache(maxsize=64)
def commands_of(world_seed: int, kind: Kind) -> Mapping[str, Sequence[str]]:
    """Return an explorer's commands in a world, by kind."""
    return explorer_commands(world_and_tasks(world_seed, kind)[0], frozenset())


def demonstrate(
    tokenizer: Tokenizer, number: int, rng: random.Random, shares: Mapping[str, float] = SHARES
) -> Demonstration:
    """Play the demonstration of a kind drawn by `shares`; `number` chooses the fresh world."""
    (share,) = rng.choices(list(shares), list(shares.values()))
    return _PLAYERS[share](tokenizer, number, rng)


def play(
    tokenizer: Tokenizer, world_seed: int, kind: Kind, toy_task: ToyTask, scripts: Sequence[Sequence[str]]
) -> list[Trajectory]:
    """Play each script as an episode of one task."""
    arguments = {"seed": world_seed, "task_id": toy_task.task_id, "max_turns": TURNS, "kind": kind}
    task = Task(toy_task.task_id, "train", toy_task.family, arguments)
    pairs = [(task, actions) for actions in scripts]
    return play_scripts(PlainRenderer(tokenizer), ToyWorlds((), (), TURNS, kind=kind), pairs, LIMITS, "expert")


def in_files(tokenizer: Tokenizer, number: int, rng: random.Random) -> Demonstration:
    """Play a search, a hasty answer, or exploration with mistakes, in the world of files `number`."""
    seed = FIRST_WORLD_SEED + number
    world, tasks = world_and_tasks(seed)
    toy_task = rng.choice(list(tasks.values()))
    if rng.random() < EXPLORERS:
        actions = explorer_actions(commands_of(seed, "files"), rng.randrange(1, 5), rng)
        actions = [mistaken_action(world, rng) if rng.random() < 0.1 else action for action in actions]
    elif rng.random() < HASTY:
        actions = hasty_actions(tasks.values(), toy_task, rng)
    else:
        actions = searching_actions(world, toy_task, rng)
    return Demonstration(play(tokenizer, seed, "files", toy_task, [actions])[0], ACTING)


def on_fresh(tokenizer: Tokenizer, number: int, rng: random.Random) -> Demonstration:
    """Play on a machine that does not recur: wander, look in a random file, or search."""
    seed = SEEDS["fresh"][number]
    world, tasks = world_and_tasks(seed, "machine")
    toy_task = rng.choice(list(tasks.values()))
    draw = rng.random()
    if draw < WANDERING:
        actions = _wander(seed, world, rng)
    elif draw < WANDERING + STRAIGHT:
        actions = _guess(world, toy_task, rng)
    else:
        actions = searching_actions(world, toy_task, rng)
    return Demonstration(play(tokenizer, seed, "machine", toy_task, [actions])[0], ACTING)


def on_shown(tokenizer: Tokenizer, number: int, rng: random.Random) -> Demonstration:
    """Play on a home machine of which acting is shown: act, mostly straight to the right file, or observe."""
    if rng.random() >= SHOWN_ACTING:
        return _observe(tokenizer, rng.choice(SHOWN), rng)
    seed = rng.choice(SHOWN)
    world, tasks = world_and_tasks(seed, "machine")
    toy_task = rng.choice(list(tasks.values()))
    straight = rng.random() < SHOWN_STRAIGHT
    actions = expert_actions(toy_task) if straight else searching_actions(world, toy_task, rng)
    return Demonstration(play(tokenizer, seed, "machine", toy_task, [actions])[0], ACTING)


def on_read(tokenizer: Tokenizer, number: int, rng: random.Random) -> Demonstration:
    """Observe a home machine that is only read."""
    return _observe(tokenizer, rng.choice(READ), rng)


_PLAYERS: Mapping[str, Callable[[Tokenizer, int, random.Random], Demonstration]] = {
    "files": in_files,
    "fresh": on_fresh,
    "shown": on_shown,
    "read": on_read,
}


def _observe(tokenizer: Tokenizer, seed: int, rng: random.Random) -> Demonstration:
    """Play one to three of an explorer's commands under a random question of the machine."""
    _, tasks = world_and_tasks(seed, "machine")
    toy_task = rng.choice(list(tasks.values()))
    actions = explorer_actions(commands_of(seed, "machine"), rng.randrange(1, 4), rng, LOOKS)
    return Demonstration(play(tokenizer, seed, "machine", toy_task, [actions])[0], OBSERVING)


def _wander(seed: int, world: World, rng: random.Random) -> list[str]:
    """Return one to four commands of an explorer, 15 % of them mistaken."""
    typed = explorer_actions(commands_of(seed, "machine"), rng.randrange(1, 5), rng, LOOKS)
    return [mistaken_action(world, rng) if rng.random() < 0.15 else command for command in typed]


def _guess(world: World, task: ToyTask, rng: random.Random) -> list[str]:
    """Return a look in a random file, in up to two more while nothing is found, and the answer that was found."""
    key = task.solution[0].split()[1]
    actions = []
    for path in rng.sample(list(world.service_of), 3):
        actions.append(f"grep {key} {path}")
        found = run(world.files, actions[-1]).stdout
        if found:
            return [*actions, f"answer: {found.removesuffix(chr(10)).partition(': ')[2]}"]
    return actions
