"""What answers: the environment protocol, and the toy terminal behind it.

An environment turns the policy's text into role-tagged text. It decides the roles, because only it knows which
bytes came from the world and which are the harness's own.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from echo_cli.error import EchoError
from echo_cli.task import Split, Task, TaskSplits
from echo_cli.trajectory import Role
from toy_terminal_env.environment import ToyTerminalEnvironment, world_and_tasks
from toy_terminal_env.models import ToyTerminalAction
from toy_terminal_env.scripted import expert_actions, explorer_actions, explorer_commands, solving_commands
from toy_terminal_env.tasks import ToyTask

PROMPT = "$ "


@dataclass(frozen=True)
class Piece:
    """Text of one role. `channel` names where it came from (stdout, stderr, exit_status)."""

    role: Role
    text: str
    channel: str | None = None


@dataclass(frozen=True)
class Reply:
    """An environment's answer to one action; `exit_code` is None where the action ran no command."""

    pieces: tuple[Piece, ...]
    done: bool = False
    exit_code: int | None = None
    valid_action: bool = True


class Environment(Protocol):
    """One episode at a time. The text of an action is what the policy wrote, without its stop token."""

    def reset(self, task: Task) -> tuple[Piece, ...]:
        """Start the episode of `task` and return its opening context."""
        ...

    def step(self, action: str) -> Reply:
        """Let the world answer `action`."""
        ...

    def verify(self) -> float:
        """Call the verifier: the reward of the episode as it stands."""
        ...

    def close(self) -> None:
        """Release what the episode holds."""
        ...


class Worlds(Protocol):
    """What a run needs of its environment: episodes, tasks and scripted actors."""

    tasks: TaskSplits

    def environment(self) -> Environment:
        """A new environment for one episode at a time."""
        ...

    def expert(self, task: Task) -> list[str]:
        """The actions that solve `task`."""
        ...

    def explorer(self, task: Task, count: int, rng: random.Random) -> list[str]:
        """`count` exploring actions in the world of `task`, none of which solves a validation or held-out task."""
        ...

    def out_of_distribution(self) -> Worlds:
        """The same kind of tasks where training has never been."""
        ...


class ToyTerminal:
    """The toy terminal behind the environment protocol."""

    def __init__(self, max_turns: int) -> None:
        self._inner = ToyTerminalEnvironment(max_turns)

    def reset(self, task: Task) -> tuple[Piece, ...]:
        self._last = observation = self._inner.reset(**task.reset_arguments)
        return (Piece(Role.CONTEXT, f"task: {observation.instruction}\n{PROMPT}"),)

    def step(self, action: str) -> Reply:
        self._last = observation = self._inner.step(ToyTerminalAction(action))
        pieces = [
            Piece(Role.ENV_OUTPUT, text, channel)
            for text, channel in ((observation.stdout, "stdout"), (observation.stderr, "stderr"))
            if text
        ]
        if observation.exit_code:
            pieces.append(Piece(Role.WARNING, f"[exit {observation.exit_code}]\n", "exit_status"))
        if not observation.done:
            pieces.append(Piece(Role.CONTEXT, PROMPT))
        return Reply(
            tuple(pieces),
            observation.done,
            observation.exit_code,
            # What the shell itself refused never ran; a command that ran and failed is still a valid action.
            valid_action=bool(action.strip()) and not observation.stderr.startswith("sh: "),
        )

    def verify(self) -> float:
        return self._last.reward or 0.0

    def close(self) -> None:
        self._inner.close()


class ToyWorlds:
    """Tasks and scripted actors of one or more toy worlds.

    Args:
        families: the tasks' kinds; empty means all. What explorers may type does not depend on it.

    Raises:
        EchoError: no world has a training task of these families.
    """

    def __init__(
        self, world_seeds: Sequence[int], ood_world_seeds: Sequence[int], max_turns: int, families: Sequence[str] = ()
    ) -> None:
        self._world_seeds = tuple(world_seeds)
        self._ood_world_seeds = tuple(ood_world_seeds)
        self._max_turns = max_turns
        self._families = tuple(families)
        self._toy_tasks: dict[str, ToyTask] = {}
        splits: dict[Split, list[Task]] = {"train": [], "validation": [], "heldout": []}
        self._explorer_kinds = {}
        for seed in self._world_seeds:
            world, tasks = world_and_tasks(seed)
            self._toy_tasks |= tasks
            for task in tasks.values():
                if families and task.family not in families:
                    continue
                arguments = {"seed": seed, "task_id": task.task_id}
                splits[task.split].append(Task(task.task_id, task.split, task.family, arguments))
            forbidden = solving_commands(task for task in tasks.values() if task.split != "train")
            self._explorer_kinds[seed] = explorer_commands(world, forbidden)
        if world_seeds and not splits["train"]:
            raise EchoError(
                f"no training task of the families {list(families)} in worlds {list(self._world_seeds)}",
                "name more families, or other world_seeds",
            )
        self.tasks = TaskSplits(**splits)

    def environment(self) -> Environment:
        return ToyTerminal(self._max_turns)

    def expert(self, task: Task) -> list[str]:
        return expert_actions(self._toy_tasks[task.task_id])

    def explorer(self, task: Task, count: int, rng: random.Random) -> list[str]:
        return explorer_actions(self._explorer_kinds[task.reset_arguments["seed"]], count, rng)

    def out_of_distribution(self) -> ToyWorlds:
        return ToyWorlds(self._ood_world_seeds, (), self._max_turns, self._families)
