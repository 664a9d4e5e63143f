"""Scripted actors: an expert that solves tasks and an explorer that wanders. Neither looks at held-out commands."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

from toy_terminal_env.shell import run
from toy_terminal_env.tasks import ToyTask
from toy_terminal_env.world import LEVELS, REGISTRY, World


def expert_actions(task: ToyTask) -> list[str]:
    """The shortest known solution of `task`, its answer last."""
    return [*task.solution, f"answer: {task.answer}"]


def searching_actions(world: World, task: ToyTask, rng: random.Random) -> list[str]:
    """A solution by somebody new to `world`: where the question names no file, list the folder and try one by one."""
    if task.family not in ("key", "cell"):
        return expert_actions(task)
    (lookup,) = task.solution
    _, pattern, path = lookup.split(" ")
    folder, paths = ("/etc", list(world.service_of)) if task.family == "key" else ("/srv", world.paths(".csv"))
    candidates = [candidate for candidate in paths if candidate != REGISTRY]
    rng.shuffle(candidates)
    tried = candidates[: candidates.index(path) + 1]
    return [f"ls {folder}", *(f"grep {pattern} {candidate}" for candidate in tried), f"answer: {task.answer}"]


def solving_commands(tasks: Iterable[ToyTask]) -> frozenset[str]:
    """The commands that the expert runs on `tasks`."""
    return frozenset(command for task in tasks for command in task.solution)


def explorer_commands(world: World, forbidden: frozenset[str]) -> list[list[str]]:
    """What an explorer may type in `world`, one list for each kind of command, without the `forbidden` ones.

    A forbidden `grep PATTERN FILE` is left out with every option (`-n`, `-i`, ...), so that its lines are met only
    through other commands.
    """
    greps = {command for command in forbidden if command.startswith("grep ") and not command.startswith("grep -")}
    plain, numbered, windows, counts, listings, whole = [], [], [], [], [], []
    for path in world.files:
        whole.append(f"cat {path}")
        counts += [f"wc {path}", f"wc -l {path}", f"wc -c {path}", f"wc -w {path}"]
        for number in range(1, len(world.lines(path)) + 1):
            windows += [f"head -n {number} {path}", f"tail -n {number} {path}"]
        for pattern in _patterns(world, path):
            command = f"grep {pattern} {path}"
            if command not in greps:
                plain.append(command)
                numbered.append(f"grep -n {pattern} {path}")
        if path.endswith(".log"):
            counts += [f"grep -c {level} {path}" for level in LEVELS]
    for folder in ("/", "/etc", "/srv", "/var", "/var/log"):
        listings += [f"ls {folder}", f"ls -l {folder}"]
    kinds = (whole, plain, numbered, windows, counts, listings)
    return [[command for command in kind if command not in forbidden] for kind in kinds]


EXPLORER_WEIGHTS = (3, 6, 1, 6, 2, 1)
"""How often an explorer picks each kind of `explorer_commands`: cat, grep, grep -n, head/tail, wc and counts, ls."""


def explorer_actions(kinds: Sequence[Sequence[str]], count: int, rng: random.Random) -> list[str]:
    """`count` commands of `explorer_commands`, drawn kind first."""
    chosen = rng.choices(range(len(kinds)), EXPLORER_WEIGHTS, k=count)
    return [rng.choice(kinds[kind]) for kind in chosen]


def mistaken_action(world: World, rng: random.Random) -> str:
    """A command that fails in one of the ways people make commands fail."""
    path = rng.choice(list(world.files))
    wrong = path[:-1] if rng.random() < 0.5 else path.replace("/", "/old-", 1)
    return rng.choice(
        [
            f"cat {wrong}",
            f"head -n 3 {wrong}",
            f"tail -n 2 {wrong}",
            f"wc -l {wrong}",
            f"ls {wrong}",
            f"grep {rng.choice(LEVELS)} {wrong}",
            f"grep {rng.choice(LEVELS)}",
            f"{rng.choice(('sed', 'awk', 'find', 'less', 'vim', 'cd'))} {path}",
            f"cat {path.rsplit('/', 1)[0]}",
        ]
    )


def _patterns(world: World, path: str) -> list[str]:
    """Words of the file that select one or a few of its lines."""
    if path.endswith(".yaml"):
        found = [word for line in world.lines(path) for word in line.split(": ")]
    elif path.endswith(".csv"):
        found = [cell for line in world.lines(path) for cell in line.split(",")]
    else:
        found = [word for line in world.lines(path) for word in line.split(" ")]
    return sorted(set(found))


def output_of(world: World, command: str) -> str:
    """The terminal's text after `command`."""
    result = run(world.files, command)
    return result.stdout + result.stderr
