"""No leak: what `tiny-machine` is pretrained on says nothing about the machines on which runs are measured.

The demonstrations are rebuilt as `scripts/pretrain_tiny_machine.py` draws them, except that no token is played: the
commands and answers of an episode are captured where they are chosen.
"""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from pool_samples import TOKENIZER
from tiny_machine import demonstrations

from toy_terminal_env.environment import world_and_tasks
from toy_terminal_env.machine import SEEDS, STEMS, generate_machine, service_names
from toy_terminal_env.scripted import reserved_commands
from toy_terminal_env.shell import run
from toy_terminal_env.tasks import ToyTask
from toy_terminal_env.world import Kind, World

DRAWN = 2_500
"""Number of demonstrations rebuilt; a base is pretrained on more, drawn in the same way."""
NAME = re.compile(r"\b[a-z]+-[a-z]+\b")
"""Two words with a hyphen: a machine's service, and nothing else in the worlds' texts but host-like words of files."""


class Episode:
    """The world, the task and the lines of one demonstration, with what the terminal prints."""

    def __init__(self, seed: int, kind: Kind, task: ToyTask, lines: Sequence[str]) -> None:
        self.seed, self.kind, self.lines = seed, kind, list(lines)
        self.world: World = world_and_tasks(seed, kind)[0]
        self.question = task.question

    @property
    def text(self) -> str:
        """Everything that the base reads: question, lines and outputs."""
        return "\n".join([self.question, *(text for line in self.lines for text in (line, *self.printed(line)))])

    def printed(self, line: str) -> tuple[str, str]:
        result = run(self.world.files, line)
        return result.stdout, result.stderr


@pytest.fixture(scope="module")
def episodes() -> list[Episode]:
    """Rebuild the demonstrations with their generator's random numbers, one fresh world each."""
    found: list[Episode] = []

    def record(_: Any, seed: int, kind: Kind, task: ToyTask, scripts: Sequence[Sequence[str]]) -> list[Any]:
        found.extend(Episode(seed, kind, task, script) for script in scripts)
        return [None] * len(scripts)

    rng = random.Random("pretraining-leaks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demonstrations, "play", record)
        for number in range(DRAWN):
            demonstrations.demonstrate(TOKENIZER, number, rng)
    assert len(found) == DRAWN
    return found


def use_of_seed(episode: Episode) -> str:
    return next((use for use, seeds in SEEDS.items() if episode.seed in seeds), "none")


def assignments(episode: Episode) -> Iterator[tuple[str, str]]:
    """Yield the facts (service, file) that an episode's outputs show, in any of their forms."""
    for line in episode.lines:
        stdout, _ = episode.printed(line)
        file = line.rpartition(" ")[2]
        for path in re.findall(r"/etc/[a-z]+\.yaml", stdout):
            yield from ((service, path) for service in NAME.findall(f"{line}\n{stdout}"))
        if file in episode.world.service_of:
            yield from ((service, file) for service in re.findall(r"^service: (.+)$", stdout, re.MULTILINE))


def test_episodes_are_of_home_and_fresh_machines_and_of_worlds_of_files_alone(episodes: list[Episode]) -> None:
    machines = [episode for episode in episodes if episode.kind == "machine"]
    uses = Counter(map(use_of_seed, machines))
    assert set(uses) == {"home", "fresh"} and min(uses.values()) > DRAWN / 20
    files = [episode.seed for episode in episodes if episode.kind == "files"]
    # Worlds of files have seeds of their own: 0 to 999,999 are left to runs.
    assert files and min(files) >= demonstrations.FIRST_WORLD_SEED
    assert len(files) + len(machines) == DRAWN


def test_no_name_of_an_evaluation_machine_is_read(episodes: list[Episode]) -> None:
    measured = {service for seed in SEEDS["evaluation"] for service in generate_machine(seed).service_of.values()}
    assert len(measured) == len(SEEDS["evaluation"]) * len(STEMS)
    read = {name for episode in episodes for name in NAME.findall(episode.text)}
    assert read & set(service_names("home")) and read & set(service_names("fresh")), "names are found at all"
    assert not read & measured
    assert not read & set(service_names("evaluation"))


def test_the_files_of_services_agree_with_evaluation_machines_no_better_than_chance(episodes: list[Episode]) -> None:
    """Guess the file of an evaluation service from the facts of pretraining, by its two words.

    No name recurs, so only its words could tell: the guess is the file in which most services with its first word, and
    with its second word, were read.
    """
    by_word: dict[tuple[int, str], Counter[str]] = {}
    for fact in {fact for episode in episodes if episode.kind == "machine" for fact in assignments(episode)}:
        service, path = fact
        for place, word in enumerate(service.split("-")):
            by_word.setdefault((place, word), Counter())[path] += 1
    assert sum(map(Counter.total, by_word.values())) > 1_000
    asked = [
        (service, path) for seed in SEEDS["evaluation"] for path, service in generate_machine(seed).service_of.items()
    ]
    right = 0
    for service, path in asked:
        votes = sum((by_word.get(pair, Counter()) for pair in enumerate(service.split("-"))), Counter[str]())
        right += max(sorted(votes), key=lambda each: votes[each], default="") == path
    assert is_chance(right, len(asked), 1 / len(STEMS))


def test_a_file_holds_no_service_more_often_than_chance_on_evaluation_and_home_machines() -> None:
    """Compare the layouts slot by slot: two machines share no name, so an agreement is one of words."""
    home = [generate_machine(seed).service_of for seed in SEEDS["home"]]
    same = compared = 0
    for seed in SEEDS["evaluation"]:
        measured = generate_machine(seed).service_of
        for other in home:
            place = {word: path for path, service in other.items() for word in service.split("-")}
            for path, service in measured.items():
                known = [place[word] for word in service.split("-") if word in place]
                same, compared = same + known.count(path), compared + len(known)
    assert compared > 1_000 and is_chance(same, compared, 1 / len(STEMS))


def test_held_out_answers_are_read_no_more_often_than_chance(episodes: list[Episode]) -> None:
    """Count the facts (key, file, value) of held-out solutions that some pretraining episode shows.

    A solving command such as `grep port /etc/web.yaml` occurs on every machine: only its answer is a secret. Each
    machine's values are drawn alike, so that a fact of another machine agrees as often with those of pretraining as one
    of this machine: evaluation machines are compared with fresh ones that pretraining never meets.
    """
    read = {fact for episode in episodes if episode.kind == "machine" for fact in settings(episode)}
    assert len(read) > 1_000

    def agreement(seeds: Sequence[int]) -> tuple[int, int]:
        facts = [
            (*task.solution[0].split()[1:], task.answer)
            for seed in seeds
            for task in world_and_tasks(seed, "machine")[1].values()
            if task.split == "heldout"
        ]
        return sum(fact in read for fact in facts), len(facts)

    measured = agreement(SEEDS["evaluation"])
    unmet = agreement(SEEDS["fresh"][-len(SEEDS["evaluation"]) :])
    share = unmet[0] / unmet[1]
    assert share < 0.25, "values are random: most agree with nothing"
    assert is_chance(*measured, share)


def test_no_reserved_command_of_an_evaluation_machine_prints_in_pretraining_what_it_prints_there(
    episodes: list[Episode],
) -> None:
    shown = {
        (line, episode.printed(line)[0]) for episode in episodes if episode.kind == "machine" for line in episode.lines
    }
    for seed in SEEDS["evaluation"][:20]:
        world, tasks = world_and_tasks(seed, "machine")
        reserved = [command for pool in reserved_commands(world, tasks.values()).pools.values() for command in pool]
        # A window of one or two settings may be equal by chance; whoever shows a service names it.
        named = [(command, run(world.files, command).stdout) for command in reserved]
        assert not {(command, output) for command, output in named if NAME.search(command + output)} & shown


def settings(episode: Episode) -> Iterator[tuple[str, str, str]]:
    """Yield the settings (key, file, value) that an episode shows under a command that names their file."""
    for line in episode.lines:
        file = line.rpartition(" ")[2]
        if file in episode.world.service_of:
            for key, value in re.findall(r"^(\w+): (\S+)$", episode.printed(line)[0], re.MULTILINE):
                if key != "service":
                    yield key, file, value


def is_chance(hits: int, trials: int, chance: float) -> bool:
    """Return whether a count is within four standard deviations of chance, and so not above it."""
    return hits - trials * chance <= 4 * math.sqrt(trials * chance * (1 - chance))
