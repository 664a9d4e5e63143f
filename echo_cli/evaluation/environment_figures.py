"""Figures of an environment for training: how much of it can be learned, what it copies, and what its reward tells.

Tasks are played as training plays scripts: twice with the actions that solve them, where these are known, and several
times with explorers' lines or random ones.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, median
from typing import Any

from rapidfuzz.distance import Levenshtein

from echo_cli.config.environment import EnvironmentConfig
from echo_cli.environments.protocol import TaskSuite
from echo_cli.environments.tasks import Task
from echo_cli.evaluation.data.byte_ngram import bits_per_byte
from echo_cli.models.renderer import Renderer
from echo_cli.rollouts.limits import EpisodeLimits
from echo_cli.rollouts.random_actions import random_line
from echo_cli.rollouts.watched_episode import Play, play_watched
from echo_cli.text import share
from echo_cli.trajectory import Role

RANDOM_PLAYS = 4
"""Number of random plays of a task, which make a group."""
COPIED_BYTES = 8
"""Length of the shortest text that counts as copied, bytes."""
_MOST_LINES = 8
_LONGEST_COMPARED = 20_000
"""Number of bytes of an episode's outputs that are compared with those of an equal play."""


@dataclass(frozen=True)
class Rewards:
    """Rewards of plays of one kind."""

    plays: int
    scored: int
    """Number of plays with a reward."""
    low: float | None
    mean: float | None
    high: float | None


@dataclass(frozen=True)
class EnvironmentFigures:
    """Figures of some plays of an environment. A figure is None if no play shows it."""

    tasks: int
    plays: int
    output_bytes: int
    """Size of all env_output, in UTF-8."""
    ngram_bits_per_byte: float | None
    """Code length of env_output under a 5-gram of bytes fitted on the tasks of the other half, bits per byte."""
    copied_fraction: float | None
    """Fraction of env_output, by bytes, in texts of at least `COPIED_BYTES` bytes that occur earlier in the episode."""
    differing_fraction: float | None
    """Edit distance between the env_output of two equal plays, as a fraction of its length."""
    rewards: Mapping[str, Rewards]
    """Rewards of the plays by kind: `scripted` and `random`."""
    no_contrast_fraction: float | None
    """Fraction of the groups of random plays of one task in which all rewards are equal."""
    reset_seconds: float
    """Median duration of a reset, seconds."""
    step_seconds: float | None
    """Median duration of a step, seconds."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def environment_figures(
    worlds: TaskSuite,
    renderer: Renderer,
    limits: EpisodeLimits,
    settings: EnvironmentConfig,
    *,
    tasks: int,
    seed: int = 0,
) -> EnvironmentFigures:
    """Play up to `tasks` training tasks, and return the figures of the plays.

    Args:
        seed: seed of the random plays.

    Raises:
        EchoError: an episode does not complete (exit code 1).
    """
    chosen = (*worlds.tasks.train, *worlds.tasks.validation, *worlds.tasks.heldout)[:tasks]
    rng = random.Random(seed)

    def play(task: Task, lines: Sequence[str]) -> Play:
        return play_watched(worlds, renderer, limits, task, lines, "explorer")

    played = []
    for task in chosen:
        scripts = [_random_script(worlds, task, settings, rng) for _ in range(RANDOM_PLAYS)]
        wandering = [play(task, script) for script in scripts]
        solution = worlds.expert(task)
        first = wandering[0] if solution is None else play(task, solution)
        again = play(task, scripts[0] if solution is None else solution)
        played.append(_TaskPlays(first, again, wandering, solved=solution is not None))
    return _figures(played)


@dataclass(frozen=True)
class _TaskPlays:
    """Plays of one task: two with the same actions, and a group of random ones."""

    first: Play
    again: Play
    wandering: Sequence[Play]
    solved: bool
    """Whether `first` and `again` have the actions that solve the task; else they are a random play, played twice."""

    @property
    def distinct(self) -> list[Play]:
        """Plays without the repetition of one of them."""
        return [*([self.first] if self.solved else []), *self.wandering]


def _random_script(worlds: TaskSuite, task: Task, settings: EnvironmentConfig, rng: random.Random) -> list[str]:
    count = min(settings.max_turns, _MOST_LINES)
    if lines := worlds.explorer(task, count, rng):
        return lines
    return [random_line(settings.action, worlds.description.action_schema, rng) for _ in range(count)]


def _figures(played: Sequence[_TaskPlays]) -> EnvironmentFigures:
    distinct = [play for of in played for play in of.distinct]
    everything = [play for of in played for play in (of.first, of.again, *of.wandering)]
    texts = [[_output(play) for play in of.distinct] for of in played]
    half = len(texts) // 2
    fitted, scored = ([text for of in part for text in of] for part in (texts[:half], texts[half:]))
    outputs = sum(len(text) for of in texts for text in of)
    steps = [seconds for play in everything for seconds in play.step_seconds]
    contrast = [found for of in played if (found := _has_contrast(of.wandering)) is not None]
    solutions = [of.first for of in played if of.solved]
    return EnvironmentFigures(
        tasks=len(played),
        plays=len(distinct) + len(played),
        output_bytes=outputs,
        ngram_bits_per_byte=bits_per_byte(fitted, scored) if half else None,
        copied_fraction=share(sum(map(_copied_bytes, distinct)), outputs),
        differing_fraction=_differing(played),
        rewards={"scripted": _rewards(solutions), "random": _rewards([play for of in played for play in of.wandering])},
        no_contrast_fraction=share(contrast.count(False), len(contrast)),
        reset_seconds=median(play.reset_seconds for play in everything),
        step_seconds=median(steps) if steps else None,
    )


def _output(play: Play) -> bytes:
    return "".join(play.outputs).encode(errors="replace")


def _copied_bytes(play: Play) -> int:
    """Return the number of bytes of env_output in long texts that occur earlier in the episode."""
    copied, before = 0, b""
    for segment in play.trajectory.segments:
        text = segment.text.encode(errors="replace")
        if segment.role is Role.ENV_OUTPUT:
            copied += sum(length for length in _matches(text, before) if length >= COPIED_BYTES)
        before += text
    return copied


def _matches(text: bytes, before: bytes) -> Iterator[int]:
    """Yield the length of each longest match that covers `text`, in order, with what precedes it; 0 for a new byte."""
    index = 0
    while index < len(text):
        seen, length = before + text[:index], 0
        while index + length < len(text) and text[index : index + length + 1] in seen:
            length += 1
        yield length
        index += max(length, 1)


def _differing(played: Sequence[_TaskPlays]) -> float | None:
    pairs = [[_output(play)[:_LONGEST_COMPARED] for play in (of.first, of.again)] for of in played]
    edits = sum(Levenshtein.distance(one, other) for one, other in pairs)
    return share(edits, sum(max(map(len, pair)) for pair in pairs))


def _rewards(plays: Sequence[Play]) -> Rewards:
    known = [play.trajectory.reward for play in plays if play.trajectory.reward is not None]
    if not known:
        return Rewards(len(plays), 0, None, None, None)
    return Rewards(len(plays), len(known), min(known), fmean(known), max(known))


def _has_contrast(group: Sequence[Play]) -> bool | None:
    """Return whether the rewards of a group differ; None if fewer than two are known."""
    known = [play.trajectory.reward for play in group if play.trajectory.reward is not None]
    return None if len(known) < 2 else min(known) < max(known)
