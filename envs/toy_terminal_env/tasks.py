"""Questions with checkable answers about a world, in families of graded difficulty, split by fact.

A fact (one config key, one table row, one file's line count, ...) belongs to exactly one split, so no
question and no solving command of `validation` or `heldout` occurs in `train`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from toy_terminal_env.shell import run
from toy_terminal_env.world import LEVELS, REGISTRY, Kind, World

Split = Literal["train", "validation", "heldout"]
SPLITS: tuple[Split, ...] = ("train", "validation", "heldout")
FAMILIES_OF: Mapping[Kind, tuple[str, ...]] = {
    "files": (
        *("key", "key_named", "two_step", "cell", "cell_named", "count", "match_time"),
        *("line_count", "line_from_end", "nth_line", "next_line", "file_count"),
    ),
    "machine": ("setting", "setting_elsewhere"),
}
FAMILIES = tuple(family for families in FAMILIES_OF.values() for family in families)
ELSEWHERE: Mapping[Split, int] = {"validation": 2, "heldout": 6}
"""Services of a machine that no training task asks about."""
HELDOUT_SHARE, VALIDATION_SHARE = 0.34, 0.16


@dataclass(frozen=True)
class ToyTask:
    """A question, its answer, and the commands with which the scripted expert finds it."""

    task_id: str
    family: str
    split: Split
    question: str
    answer: str
    solution: tuple[str, ...]


Fact = TypeVar("Fact")


def _assign(rng: random.Random, facts: Sequence[Fact]) -> list[tuple[Fact, Split]]:
    """Shuffle `facts` and split them into held-out, validation and train; with three or more, no split is empty."""
    shuffled = list(facts)
    rng.shuffle(shuffled)
    heldout = max(1, round(HELDOUT_SHARE * len(shuffled)))
    validation = max(1, round(VALIDATION_SHARE * len(shuffled)))

    def split_of(position: int) -> Split:
        return "heldout" if position < heldout else "validation" if position < heldout + validation else "train"

    return [(fact, split_of(position)) for position, fact in enumerate(shuffled)]


def generate_tasks(world: World) -> tuple[ToyTask, ...]:
    """Return every task of `world`, in a fixed order. Two calls return equal tasks."""
    if world.kind == "machine":
        letter, drafts = "m", list(_setting_tasks(world, random.Random(f"toy-terminal-settings-{world.seed}")))
    else:
        rng = random.Random(f"toy-terminal-tasks-{world.seed}")
        drafts = [
            *_config_tasks(world, rng),
            *_table_tasks(world, rng),
            *_log_tasks(world, rng),
            *_file_tasks(world, rng),
        ]
        letter = "w"
    return tuple(
        ToyTask(f"{letter}{world.seed}-{number:03d}-{family}", family, split, question, answer, solution)
        for number, (family, split, question, answer, solution) in enumerate(drafts)
    )


Draft = tuple[str, Split, str, str, tuple[str, ...]]


def _config_tasks(world: World, rng: random.Random) -> Iterator[Draft]:
    facts = [(path, *line.split(": ")) for path in world.service_of for line in world.lines(path)[1:]]
    service_split = dict(_assign(rng, list(world.service_of)))
    for number, ((path, key, value), split) in enumerate(_assign(rng, facts)):
        service, lookup = world.service_of[path], f"grep {key} {path}"
        yield "key", split, f"what is the {key} of {service}?", value, (lookup,)
        if number % 3 == 0:
            yield "key_named", split, f"what is {key} in {path}?", value, (lookup,)
        if split == service_split[path]:
            question = f"what is the {key} of {service}? its config is listed in {REGISTRY}"
            yield "two_step", split, question, value, (f"grep {service} {REGISTRY}", lookup)


def _setting_tasks(world: World, rng: random.Random) -> Iterator[Draft]:
    """Yield questions about settings: a split by setting of half of the services, and whole services in one split."""

    def draft(family: str, split: Split, path: str, line: str) -> Draft:
        key, value = line.split(": ")
        return family, split, f"what is the {key} of {world.service_of[path]}?", value, (f"grep {key} {path}",)

    paths = rng.sample(list(world.service_of), len(world.service_of))
    elsewhere = [split for split, count in ELSEWHERE.items() for _ in range(count)]
    asked = paths[len(elsewhere) :]
    settings = [(path, line) for path in sorted(asked) for line in world.lines(path)[1:]]
    for (path, line), split in _assign(rng, settings):
        yield draft("setting", split, path, line)
    for path, split in zip(paths, elsewhere, strict=False):
        for line in world.lines(path)[1:]:
            yield draft("setting_elsewhere", split, path, line)


def _tables(world: World) -> list[str]:
    return [path for path in world.paths(".csv") if path != REGISTRY]


def _table_tasks(world: World, rng: random.Random) -> Iterator[Draft]:
    rows = [(path, row.split(",")) for path in _tables(world) for row in world.lines(path)[1:]]
    for number, ((path, cells), split) in enumerate(_assign(rng, rows)):
        column = rng.choice((1, 2))
        name, host = world.lines(path)[0].split(",")[column], cells[0]
        yield "cell", split, f"what is the {name} of {host}?", cells[column], (f"grep {host} {path}",)
        if number % 3 == 0:
            question = f"what is the {name} of {host} in {path}?"
            yield "cell_named", split, question, cells[column], (f"grep {host} {path}",)


def _log_tasks(world: World, rng: random.Random) -> Iterator[Draft]:
    present = [(path, level) for path in world.paths(".log") for level in LEVELS if f" {level} " in world.files[path]]
    for (path, level), split in _assign(rng, present):
        count = sum(f" {level} " in line for line in world.lines(path))
        yield "count", split, f"how many {level} lines are in {path}?", str(count), (f"grep -c {level} {path}",)
    for (path, level), split in _assign(rng, present):
        which = rng.choice(("first", "last"))
        lines = [line for line in world.lines(path) if f" {level} " in line]
        time = lines[0 if which == "first" else -1].split()[0]
        yield "match_time", split, f"when was the {which} {level} in {path}?", time, (f"grep {level} {path}",)


def _file_tasks(world: World, rng: random.Random) -> Iterator[Draft]:
    """Yield questions about a whole file or folder; each family is solved with a different command."""
    for path, split in _assign(rng, list(world.files)):
        yield "line_count", split, f"how many lines has {path}?", str(len(world.lines(path))), (f"wc -l {path}",)
    for path, split in _assign(rng, list(world.files)):
        number = rng.randrange(1, min(9, len(world.lines(path)) + 1))
        question = f"what does line {number} from the end of {path} begin with?"
        yield "line_from_end", split, question, _first_field(world.lines(path)[-number]), (f"tail -n {number} {path}",)
    for path, split in _assign(rng, list(world.files)):
        number = rng.randrange(3, min(11, len(world.lines(path)) + 1))
        question = f"what does line {number} of {path} begin with?"
        yield "nth_line", split, question, _first_field(world.lines(path)[number - 1]), (f"head -n {number} {path}",)
    for path, split in _assign(rng, [*world.service_of, *_tables(world), *world.paths(".log")]):
        lines = world.lines(path)
        number = rng.randrange(1, len(lines) - 1)
        before, after = _first_field(lines[number]), _first_field(lines[number + 1])
        yield "next_line", split, f"what comes after {before} in {path}?", after, (f"cat {path}",)
    for folder, split in _assign(rng, ["/etc", "/srv", "/var/log"]):
        listing = run(world.files, f"ls {folder}").stdout.splitlines()
        yield "file_count", split, f"how many files are in {folder}?", str(len(listing)), (f"ls {folder}",)


def _first_field(line: str) -> str:
    """Return the time of a log line, the key of a config line, or the first cell of a table row."""
    return line.split(" ")[0].split(",")[0].rstrip(":")
