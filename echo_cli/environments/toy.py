"""The toy terminal's tasks and scripted actors, and a source that runs it in this process."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache
from itertools import cycle
from typing import Any

from echo_cli.config.environment import EnvironmentConfig
from echo_cli.config.loader import environment_preset
from echo_cli.environments.protocol import Client, Description, Environment, HostLimits, JsonObject, Payload
from echo_cli.environments.tasks import Split, Task, TaskSplits
from echo_cli.environments.text_environment import EnvironmentFactory
from echo_cli.errors import EchoError
from toy_terminal_env.environment import ToyTerminalEnvironment, world_and_tasks
from toy_terminal_env.models import ToyTerminalAction, ToyTerminalObservation
from toy_terminal_env.scripted import (
    Reserved,
    expert_actions,
    explorer_actions,
    explorer_commands,
    reserved_commands,
    solving_commands,
)
from toy_terminal_env.tasks import ToyTask
from toy_terminal_env.world import Kind

COMMANDS_PER_EPISODE = 2
"""Maximum number of reserved commands that one episode of a pool plays."""


class ToyWorlds:
    """Tasks and scripted actors of one or more toy worlds.

    Args:
        families: task families; empty means all. The explorers' commands do not depend on them.
        kind: kind of every world.
        other_world_seeds: worlds of `other_world`.
        factory: creates the terminals; by default in this process.
        replayable: whether the terminals are in this process, so that a pool can be replayed at no cost.

    Raises:
        EchoError: no world has a training task of these families.
    """

    def __init__(
        self,
        world_seeds: Sequence[int],
        ood_world_seeds: Sequence[int],
        max_turns: int,
        families: Sequence[str] = (),
        factory: EnvironmentFactory | None = None,
        *,
        kind: Kind = "files",
        other_world_seeds: Sequence[int] = (),
        replayable: bool = True,
    ) -> None:
        self.replayable = replayable
        self._world_seeds = tuple(world_seeds)
        self._ood_world_seeds = tuple(ood_world_seeds)
        self._other_world_seeds = tuple(other_world_seeds)
        self._max_turns = max_turns
        self._families = tuple(families)
        self._kind = kind
        self._factory = factory or toy_factory(max_turns, HostLimits())
        self.hosting = self._factory.hosting
        self.description = self._factory.description
        self._toy_tasks: dict[str, ToyTask] = {}
        splits: dict[Split, list[Task]] = {"train": [], "validation": [], "heldout": []}
        self._explorer_kinds: dict[int, Mapping[str, Sequence[str]]] = {}
        self._reserved: dict[int, Reserved] = {}
        for seed in self._world_seeds:
            world, tasks = world_and_tasks(seed, kind)
            self._toy_tasks |= tasks
            for task in tasks.values():
                if families and task.family not in families:
                    continue
                arguments = {"seed": seed, "task_id": task.task_id, "max_turns": max_turns, **self._kind_argument()}
                splits[task.split].append(Task(task.task_id, task.split, task.family, arguments))
            forbidden = solving_commands(task for task in tasks.values() if task.split != "train")
            self._reserved[seed] = reserved_commands(world, tasks.values())
            self._explorer_kinds[seed] = explorer_commands(world, forbidden | self._reserved[seed].commands)
        if world_seeds and not splits["train"]:
            raise EchoError(
                f"no training task of the families {list(families)} in worlds {list(self._world_seeds)}",
                "name more families, or other world_seeds",
            )
        self.tasks = TaskSplits(splits["train"], splits["validation"], splits["heldout"])

    def made_by(self, factory: EnvironmentFactory) -> ToyWorlds:
        """Return the same worlds with terminals of a server, from `factory`, and the turn cap of these worlds."""
        settings = factory.settings.model_copy(update={"max_turns": self._max_turns})
        factory = replace(factory, settings=settings)
        seeds, other = (self._world_seeds, self._ood_world_seeds), self._other_world_seeds
        shared: dict[str, Any] = {"kind": self._kind, "other_world_seeds": other, "replayable": False}
        return ToyWorlds(*seeds, self._max_turns, self._families, factory, **shared)

    def environment(self) -> Environment:
        return self._factory.environment()

    def expert(self, task: Task) -> list[str]:
        return expert_actions(self._toy_tasks[task.task_id])

    def explorer(self, task: Task, count: int, rng: random.Random) -> list[str]:
        return explorer_actions(self._explorer_kinds[task.reset_arguments["seed"]], count, rng)

    def reserved(self, tasks: Sequence[Task]) -> list[tuple[Task, list[str]]]:
        scripts: list[tuple[Task, list[str]]] = []
        for seed, reserved in self._reserved.items():
            asked = [task for task in tasks if task.reset_arguments["seed"] == seed]
            commands = reserved.pools.get(asked[0].split, ()) if asked else ()
            size = min(self._max_turns, COMMANDS_PER_EPISODE)
            typed = [list(commands[first : first + size]) for first in range(0, len(commands), size)]
            scripts += zip(cycle(asked), typed, strict=False)
        return scripts

    def out_of_distribution(self) -> ToyWorlds:
        return self._elsewhere(self._ood_world_seeds)

    def other_world(self) -> ToyWorlds | None:
        return self._elsewhere(self._other_world_seeds) if self._other_world_seeds else None

    def _elsewhere(self, seeds: Sequence[int]) -> ToyWorlds:
        shared: dict[str, Any] = {"kind": self._kind, "replayable": self.replayable}
        return ToyWorlds(seeds, (), self._max_turns, self._families, self._factory, **shared)

    def _kind_argument(self) -> JsonObject:
        """Return the reset argument that names the kind; the default is left to the terminal."""
        return {} if self._kind == "files" else {"kind": self._kind}


def toy_factory(max_turns: int, hosting: HostLimits) -> EnvironmentFactory:
    """Return a factory of toy terminals in this process."""
    source = ToySource()
    return EnvironmentFactory(source, toy_settings(max_turns), hosting, source.describe())


@cache
def toy_settings(max_turns: int) -> EnvironmentConfig:
    """Return the settings that map a toy terminal in this process to role-tagged text."""
    values = {**environment_preset("toy_terminal"), "toy_terminal": {}, "max_turns": max_turns}
    return EnvironmentConfig.model_validate_json(json.dumps(values), strict=True)


_TEXT: Mapping[str, str] = {"type": "string"}


class ToySource:
    """A source of toy terminals in this process, one per episode."""

    def describe(self) -> Description:
        action = {"type": "object", "properties": {"command": _TEXT}, "required": ["command"]}
        fields: dict[str, Any] = {name: {} for name in ToyTerminalObservation.__dataclass_fields__}
        return Description("toy_terminal_env", action, {"type": "object", "properties": fields})

    def client(self) -> Client:
        return _ToyClient()

    def ended(self) -> str | None:
        return None


class _ToyClient:
    def __init__(self) -> None:
        self._environment = ToyTerminalEnvironment()

    async def reset(self, arguments: JsonObject) -> Payload:
        return _payload(self._environment.reset(**arguments))

    async def step(self, action: JsonObject) -> Payload:
        return _payload(self._environment.step(ToyTerminalAction(**action)))

    async def close(self) -> None:
        self._environment.close()


def _payload(observation: ToyTerminalObservation) -> Payload:
    fields: dict[str, Any] = asdict(observation)
    return Payload(fields, fields.pop("reward"), fields.pop("done"))
