"""Scripted actors: an expert, a newcomer who searches, a hasty actor who guesses, and a random explorer."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence

from toy_terminal_env.tasks import ToyTask
from toy_terminal_env.world import LEVELS, REGISTRY, World


def expert_actions(task: ToyTask) -> list[str]:
    """Return the shortest known solution of `task`, ending with its answer."""
    return [*task.solution, f"answer: {task.answer}"]


def searching_actions(world: World, task: ToyTask, rng: random.Random) -> list[str]:
    """Return a solution by a newcomer to `world`: if the question names no file, list the folder and try each file."""
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
    """Return the commands that the expert runs on `tasks`."""
    return frozenset(command for task in tasks for command in task.solution)


def explorer_commands(world: World, forbidden: frozenset[str]) -> dict[str, list[str]]:
    """Return an explorer's commands in `world` by kind (the keys of `EXPLORER_WEIGHTS`), without `forbidden` ones.

    A forbidden `grep PATTERN FILE` is omitted with every option (`-n`, `-i`, ...), so that its lines appear only in
    outputs of commands that print other lines as well, or that search for something else.
    """
    greps = {command for command in forbidden if command.startswith("grep ") and not command.startswith("grep -")}
    kinds: dict[str, list[str]] = {kind: [] for kind in EXPLORER_WEIGHTS}
    for path in world.files:
        kinds["cat"].append(f"cat {path}")
        kinds["wc"] += [f"wc {path}", f"wc -l {path}", f"wc -c {path}", f"wc -w {path}"]
        for number in range(1, len(world.lines(path)) + 1):
            kinds["window"] += [f"head -n {number} {path}", f"tail -n {number} {path}"]
        words = [word for word in _words(world, path) if f"grep {word} {path}" not in greps]
        kinds["grep"] += [f"grep {word} {path}" for word in words]
        kinds["grep -n"] += [f"grep -n {word} {path}" for word in words]
        kinds["grep part"] += [f"grep {part} {path}" for part in _parts(world, path)]
        if path.endswith(".log"):
            kinds["grep -c"] += [f"grep -c {level} {path}" for level in LEVELS]
    folders = ["/", "/etc", "/srv", "/var", "/var/log"]
    kinds["ls"] += [f"ls {folder}" for folder in folders] + [f"ls -l {folder}" for folder in folders]
    kinds["ls"] += [f"ls {first} {second}" for first in folders for second in folders if first != second]
    return {kind: [command for command in found if command not in forbidden] for kind, found in kinds.items()}


EXPLORER_WEIGHTS: Mapping[str, int] = {
    "cat": 1,
    "window": 12,
    "grep": 4,
    "grep part": 3,
    "grep -n": 1,
    "grep -c": 1,
    "wc": 1,
    "ls": 1,
}
"""Relative frequency of each kind of command. `window` is head and tail; `grep part` searches for two characters."""


def explorer_actions(kinds: Mapping[str, Sequence[str]], count: int, rng: random.Random) -> list[str]:
    """Draw `count` commands of `explorer_commands`, each by drawing its kind first."""
    chosen = rng.choices(list(EXPLORER_WEIGHTS), list(EXPLORER_WEIGHTS.values()), k=count)
    return [rng.choice(kinds[kind]) for kind in chosen]


def hasty_actions(tasks: Iterable[ToyTask], task: ToyTask, rng: random.Random) -> list[str]:
    """Return a guess without looking: the answer of a random task of the same family in `tasks`."""
    return [f"answer: {rng.choice([other.answer for other in tasks if other.family == task.family])}"]


def mistaken_action(world: World, rng: random.Random) -> str:
    """Return a command with a common mistake."""
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


def _words(world: World, path: str) -> list[str]:
    """Return the words of a file, each of which selects one or a few of its lines."""
    return sorted(set(world.files[path].replace(",", " ").replace(": ", " ").split()))


def _parts(world: World, path: str) -> list[str]:
    """Return the pairs of adjacent characters that select several lines of a file but not all."""
    lines = world.lines(path)
    parts = {line[i : i + 2] for line in lines for i in range(len(line) - 1)}
    usable = (part for part in parts if part.isalnum() and 2 <= sum(part in line for line in lines) < len(lines))
    return sorted(usable)
