"""Rollouts of tasks of one or several environments, one environment after another.

An environment that is down is left out: its rollouts are missing from the result, and the others' are played.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from echo_cli.environments.protocol import TaskSuite
from echo_cli.environments.several import SeveralWorlds, labelled
from echo_cli.environments.tasks import Task
from echo_cli.models.distributed.ranks import ALONE, Ranks
from echo_cli.models.renderer import Renderer
from echo_cli.rollouts import rollout
from echo_cli.rollouts.limits import EpisodeLimits
from echo_cli.rollouts.rollout import Sampler
from echo_cli.trajectory import Source, Trajectory


def play_scripts(
    renderer: Renderer,
    worlds: TaskSuite,
    scripts: Sequence[tuple[Task, Sequence[str]]],
    limits: EpisodeLimits,
    source: Source,
    *,
    verify: bool = False,
    world_model_only: bool = False,
    ranks: Ranks = ALONE,
) -> list[Trajectory]:
    """Play episodes whose actions are given as text, as `rollout.play_scripts` does in one environment.

    Raises:
        EchoError: as there; in several environments, only for an error that leaves none of them out.
    """
    options: dict[str, Any] = {"verify": verify, "world_model_only": world_model_only, "ranks": ranks}
    if not isinstance(worlds, SeveralWorlds):
        return rollout.play_scripts(renderer, worlds, scripts, limits, source, **options)
    played: list[Trajectory] = []
    for name in worlds.up:
        own = [(task, lines) for of, lines in scripts for where, task in [worlds.own(of)] if where == name]
        with worlds.leaving_out(name):
            found = rollout.play_scripts(renderer, worlds.members[name], own, limits, source, **options)
            played += [labelled(name, trajectory) for trajectory in found]
    return played


def play_policy(
    new_sampler: Callable[[Sequence[int]], Sampler],
    renderer: Renderer,
    worlds: TaskSuite,
    wanted: Sequence[tuple[Task, str]],
    limits: EpisodeLimits,
    *,
    verify: bool,
    training: bool = False,
    ranks: Ranks = ALONE,
) -> list[Trajectory]:
    """Play a rollout for each (task, group id), as `rollout.play_policy` does in one environment.

    The draws of a rollout depend on its index in `wanted` alone, whatever its environment.

    Raises:
        EchoError: as there; in several environments, only for an error that leaves none of them out.
    """
    options: dict[str, Any] = {"verify": verify, "training": training, "ranks": ranks}
    if not isinstance(worlds, SeveralWorlds):
        return rollout.play_policy(new_sampler, renderer, worlds, wanted, limits, **options)
    played: list[Trajectory] = []
    for name in worlds.up:
        numbers = [number for number, (task, _) in enumerate(wanted) if worlds.own(task)[0] == name]
        own = [(worlds.own(wanted[number][0])[1], wanted[number][1]) for number in numbers]
        with worlds.leaving_out(name):
            sampler = _renumbered(new_sampler, numbers)
            found = rollout.play_policy(sampler, renderer, worlds.members[name], own, limits, **options)
            played += [labelled(name, trajectory) for trajectory in found]
        if training and ranks.is_first and name in worlds.outage.down:
            for _ in {group_id for _, group_id in own}:
                worlds.members[name].hosting.faults.count("groups_dropped")
    return played


def _renumbered(
    new_sampler: Callable[[Sequence[int]], Sampler], numbers: Sequence[int]
) -> Callable[[Sequence[int]], Sampler]:
    """Return a function that makes samplers for the rollouts `numbers`, which it calls 0, 1, 2, …."""
    return lambda rows: _Renumbered(new_sampler([numbers[row] for row in rows]), numbers)


class _Renumbered:
    """A sampler whose rollout n is rollout `numbers[n]` of another."""

    def __init__(self, sampler: Sampler, numbers: Sequence[int]) -> None:
        self._numbers = numbers
        self._sampler = sampler
        self.append, self.rewind, self.sample, self.keep = sampler.append, sampler.rewind, sampler.sample, sampler.keep

    def add(self, rollouts: Sequence[int]) -> None:
        self._sampler.add([self._numbers[number] for number in rollouts])
