"""Scripted actors: an expert, a newcomer who searches, a hasty actor who guesses, and a random explorer."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from toy_terminal_env.tasks import Split, ToyTask
from toy_terminal_env.world import LEVELS, REGISTRY, World


def expert_actions(task: ToyTask) -> list[str]:
    """Return the shortest known solution of `task`, ending with its answer."""
    return [*task.solution, f"answer: {task.answer}"]


def searching_actions(world: World, task: ToyTask, rng: random.Random) -> list[str]:
    """Return a solution by a newcomer to `world`: if the question names no file, list the folder and try each file.

    On a machine, find the service by its name, in the files or in the registry.
    """
    if world.kind == "machine":
        service = world.service_of[task.solution[0].rpartition(" ")[2]]
        search = f"grep -rl {service} /etc" if rng.random() < 2 / 3 else f"grep {service} {REGISTRY}"
        return [search, *expert_actions(task)]
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


@dataclass(frozen=True)
class Reserved:
    """Commands of a machine that explorers never type, so that its pools hold more than the solutions of tasks."""

    pools: Mapping[Split, tuple[str, ...]] = field(default_factory=dict)
    """Commands to play for the pool of a split. Explorers see most of their lines under other commands."""
    hiding: frozenset[str] = frozenset()
    """Commands that print a hidden line: nothing that an explorer types prints it."""

    @property
    def commands(self) -> frozenset[str]:
        return self.hiding.union(*self.pools.values())


def reserved_commands(world: World, tasks: Iterable[ToyTask]) -> Reserved:
    """Reserve a share of each kind of an explorer's commands on a machine; of other worlds, none.

    At most one of the three kinds of `grep` that show where a service lies is reserved for each service. The last line
    of half of the config files is hidden; no training task asks for it.
    """
    if world.kind != "machine":
        return Reserved()
    rng = random.Random(f"toy-terminal-reserved-{world.seed}")
    pools: dict[Split, list[str]] = {split: [] for split in HIDDEN}
    hiding, kept = set[str](), set[str]()
    for split, paths in _hidden_ends(world, tasks, rng).items():
        for path in paths:
            rows = len(world.lines(path))
            showing = [*(f"tail -n {number} {path}" for number in range(1, rows + 1)), f"head -n {rows} {path}"]
            hiding |= set(showing)
            kept.add(f"head -n {rows - 1} {path}")  # nothing else shows the last line but one
            pools[split] += showing[:HIDDEN_WINDOWS]
    kinds = _machine_commands(world)
    services = rng.sample(range(len(world.service_of)), len(world.service_of))
    for kind in ("grep -rl", "grep -r", "registry", "registry window", "window"):
        usable = [command for command in kinds[kind] if command not in hiding | kept]
        count = round(RESERVED_SHARE * len(usable))
        if "window" in kind:
            chosen = rng.sample(usable, count)
        else:
            chosen = [usable[service] for service in services[:count]]
            del services[:count]
        validation = round(len(chosen) / 3)
        pools["validation"] += chosen[:validation]
        pools["heldout"] += chosen[validation:]
    # Shuffled, so that commands which follow each other in an episode seldom print the same lines.
    shuffled = {split: tuple(rng.sample(commands, len(commands))) for split, commands in pools.items()}
    return Reserved(shuffled, frozenset(hiding))


def _hidden_ends(world: World, tasks: Iterable[ToyTask], rng: random.Random) -> dict[Split, list[str]]:
    """Draw the config files whose last line is hidden, by the split of the task that asks for this line."""
    split_of = {command: task.split for task in tasks for command in task.solution}
    found: dict[Split, list[str]] = {split: [] for split in HIDDEN}
    settings = [line for path in world.service_of for line in world.lines(path)]
    for path in world.service_of:
        last = world.lines(path)[-1]
        split = split_of[f"grep {last.partition(': ')[0]} {path}"]
        if split in found and settings.count(last) == 1:  # an equal line of another file would show it
            found[split].append(path)
    return {split: rng.sample(paths, min(HIDDEN[split], len(paths))) for split, paths in found.items()}


def explorer_commands(world: World, forbidden: frozenset[str]) -> dict[str, list[str]]:
    """Return an explorer's commands in `world` by kind (the keys of `EXPLORER_WEIGHTS`), without `forbidden` ones.

    A forbidden `grep PATTERN FILE` is omitted with every option (`-n`, `-i`, ...), so that its lines appear only in
    outputs of commands that print other lines as well, or that search for something else.
    """
    kinds = _machine_commands(world) if world.kind == "machine" else _file_commands(world, forbidden)
    return {kind: [command for command in found if command not in forbidden] for kind, found in kinds.items()}


def _file_commands(world: World, forbidden: frozenset[str]) -> dict[str, list[str]]:
    greps = {command for command in forbidden if command.startswith("grep ") and not command.startswith("grep -")}
    kinds: dict[str, list[str]] = {kind: [] for kind in EXPLORER_WEIGHTS}
    for path in world.files:
        kinds["cat"].append(f"cat {path}")
        kinds["wc"] += [f"wc {path}", f"wc -l {path}", f"wc -c {path}", f"wc -w {path}"]
        kinds["window"] += _windows(path, len(world.lines(path)))
        words = [word for word in _words(world, path) if f"grep {word} {path}" not in greps]
        kinds["grep"] += [f"grep {word} {path}" for word in words]
        kinds["grep -n"] += [f"grep -n {word} {path}" for word in words]
        kinds["grep part"] += [f"grep {part} {path}" for part in _parts(world, path)]
        if path.endswith(".log"):
            kinds["grep -c"] += [f"grep -c {level} {path}" for level in LEVELS]
    folders = ["/", "/etc", "/srv", "/var", "/var/log"]
    kinds["ls"] += [f"ls {folder}" for folder in folders] + [f"ls -l {folder}" for folder in folders]
    kinds["ls"] += [f"ls {first} {second}" for first in folders for second in folders if first != second]
    return kinds


def _machine_commands(world: World) -> dict[str, list[str]]:
    services, rows = world.service_of.values(), len(world.lines(REGISTRY))
    kinds: dict[str, list[str]] = {kind: [] for kind in MACHINE_WEIGHTS}
    kinds["grep -rl"] = [f"grep -rl {service} /etc" for service in services]
    kinds["grep -r"] = [f"grep -r {service} /etc" for service in services]
    kinds["registry"] = [f"grep {service} {REGISTRY}" for service in services]
    kinds["registry window"] = _windows(REGISTRY, rows)
    for path in world.service_of:
        lines = world.lines(path)
        kinds["window"] += _windows(path, len(lines))
        kinds["grep"] += [f"grep {line.partition(': ')[0]} {path}" for line in lines[1:]]
    kinds["ls"] = ["ls /etc", "ls -l /etc", "ls /", "ls /srv"]
    return kinds


def _windows(path: str, lines: int) -> list[str]:
    """Return the commands that print the first or last 1 to `lines` lines of a file."""
    return [f"{command} -n {number} {path}" for number in range(1, lines + 1) for command in ("head", "tail")]


RESERVED_SHARE = 0.2
"""Share of each kind of an explorer's commands on a machine that is reserved for pools, a third for validation."""
HIDDEN: Mapping[Split, int] = {"validation": 2, "heldout": 6}
"""Maximum number of config files of a machine whose last line is hidden, by the split that asks for it."""
HIDDEN_WINDOWS = 3
"""Number of windows that print a hidden line, shortest first, in its pool."""

MACHINE_WEIGHTS: Mapping[str, int] = {
    "grep -rl": 10,
    "grep -r": 4,
    "registry": 8,
    "registry window": 2,
    "window": 8,
    "grep": 6,
    "ls": 1,
}
"""Relative frequency of each kind of an explorer's commands on a machine. Several kinds show where a service lies; the
longest outputs are rare, so that a step of explorers stays short."""

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


def explorer_actions(
    kinds: Mapping[str, Sequence[str]], count: int, rng: random.Random, weights: Mapping[str, int] | None = None
) -> list[str]:
    """Draw `count` commands of `explorer_commands`, each by drawing its kind first.

    Args:
        weights: relative frequency of each kind; by default `EXPLORER_WEIGHTS` or `MACHINE_WEIGHTS`.
    """
    if weights is None:
        weights = EXPLORER_WEIGHTS if "cat" in kinds else MACHINE_WEIGHTS
    chosen = rng.choices(list(weights), list(weights.values()), k=count)
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
