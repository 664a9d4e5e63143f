"""Several environments as one task suite: their tasks side by side, each played in its own environment.

A task's id is `NAME/ID`, a trajectory's `meta.environment` is its environment's name. Whoever plays goes through
`play_policy` and `play_scripts` of rollouts/several.py, which hand each task to its own environment's suite.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from echo_cli.environments.faults import FAULT_KEYS, EnvironmentDown, FaultCounts
from echo_cli.environments.protocol import Description, Environment, HostLimits, TaskSuite
from echo_cli.environments.tasks import Split, Task, TaskSplits
from echo_cli.errors import EchoError
from echo_cli.seeds import generator
from echo_cli.trajectory import Trajectory

LABEL = "environment"
"""Key of the environment's name in a trajectory's `meta`."""


def environment_of(trajectory: Trajectory) -> str:
    """Return the name of a trajectory's environment; "" in a run with one, and for a trace, whoever recorded it."""
    name = trajectory.meta.get(LABEL, "")
    return name if isinstance(name, str) and trajectory.source != "trace" else ""


def labelled(name: str, trajectory: Trajectory) -> Trajectory:
    """Return a trajectory of the environment `name` as one of several environments'; "" changes nothing."""
    if not name:
        return trajectory
    return replace(trajectory, task_id=f"{name}/{trajectory.task_id}", meta={**trajectory.meta, LABEL: name})


def members_of(worlds: TaskSuite) -> Mapping[str, TaskSuite]:
    """Return the suites of several environments by name, or `worlds` itself as ""."""
    return worlds.members if isinstance(worlds, SeveralWorlds) else {"": worlds}


def up_in(worlds: TaskSuite) -> list[str]:
    """Return the names of the environments that are not left out, of which one at least is trained in; [""] for one.

    Raises:
        EchoError: none to train in is left; the message has the reason of the last (exit code 1).
    """
    if not isinstance(worlds, SeveralWorlds):
        return [""]
    if any(worlds.weights[name] for name in worlds.up):
        return worlds.up
    name, error = list(worlds.outage.down.items())[-1]
    message = f"no environment to train in is left; the last, {name}: {error.message}"
    raise EchoError(message, error.tip, exit_code=1)


def side_by_side(tasks: Mapping[str, TaskSplits]) -> TaskSplits:
    """Return the tasks of several environments, each with its environment's name in its id; "" adds no name."""

    def of(split: Split) -> tuple[Task, ...]:
        return tuple(
            replace(task, task_id=f"{name}/{task.task_id}") if name else task
            for name, splits in tasks.items()
            for task in splits.by_name[split]
        )

    repeated = sum(splits.repeated for splits in tasks.values())
    return TaskSplits(of("train"), of("validation"), of("heldout"), repeated=repeated)


@dataclass
class Outage:
    """Environments that are left out because no episode can be played in them, by name, with the reason."""

    down: dict[str, EnvironmentDown]
    lost: Counter[str]
    """Number of times that an environment was left out since the last call of `SeveralFaults.take`."""
    told: set[str]
    """Names of the environments whose outage the user was told."""


class SeveralWorlds:
    """The task suites of several environments as one.

    Args:
        members: suites by environment name.
        weights: weights by name, with which training draws tasks.
        outage: record of the environments that are left out, shared with the suite's other worlds.
    """

    replayable = False

    def __init__(
        self, members: Mapping[str, TaskSuite], weights: Mapping[str, float], outage: Outage | None = None
    ) -> None:
        self.members, self.weights = members, weights
        self.outage = outage or Outage({}, Counter(), set())
        self.hosting = HostLimits(faults=SeveralFaults(members, self.outage))
        self.description = _describe(members)
        self.tasks = side_by_side({name: member.tasks for name, member in members.items()})
        self._own = {
            f"{name}/{task.task_id}": (name, task)
            for name, member in members.items()
            for tasks in member.tasks.by_name.values()
            for task in tasks
        }

    @property
    def up(self) -> list[str]:
        """Names of the environments that are not left out."""
        return [name for name in self.members if name not in self.outage.down]

    def own(self, task: Task) -> tuple[str, Task]:
        """Return the name of a task's environment, and the task as this environment knows it."""
        return self._own[task.task_id]

    def tasks_in(self, name: str, tasks: Iterable[Task]) -> list[Task]:
        """Return those of `tasks` that are of the environment `name`."""
        return [task for task in tasks if self.own(task)[0] == name]

    def environment(self) -> Environment:
        raise AssertionError("an episode is played in one of the environments, by its own suite")

    def expert(self, task: Task) -> list[str] | None:
        name, own = self.own(task)
        return self.members[name].expert(own)

    def explorer(self, task: Task, count: int, rng: random.Random) -> list[str]:
        name, own = self.own(task)
        return self.members[name].explorer(own, count, rng)

    def reserved(self, tasks: Sequence[Task]) -> list[tuple[Task, list[str]]]:
        by_id = {task.task_id: task for task in tasks}
        return [
            (by_id[f"{name}/{task.task_id}"], lines)
            for name, member in self.members.items()
            for task, lines in member.reserved([self.own(of)[1] for of in self.tasks_in(name, tasks)])
        ]

    def out_of_distribution(self) -> SeveralWorlds:
        elsewhere = {name: member.out_of_distribution() for name, member in self.members.items()}
        return SeveralWorlds(elsewhere, self.weights, self.outage)

    def other_world(self) -> SeveralWorlds | None:
        others = {name: member.other_world() for name, member in self.members.items()}
        found = {name: other for name, other in others.items() if other is not None}
        return SeveralWorlds(found, self.weights, self.outage) if found else None

    @contextmanager
    def leaving_out(self, name: str) -> Iterator[None]:
        """Leave the environment `name` out from here on if it is down in the block."""
        try:
            yield
        except EnvironmentDown as error:
            self.outage.down[name] = error
            self.outage.lost[name] += 1


def _describe(members: Mapping[str, TaskSuite]) -> Description:
    """Return the environments' names and notices; schemas and tools are each environment's own."""
    about = {name: member.description for name, member in members.items()}
    notices = tuple(f"{name}: {line}" for name, of in about.items() for line in of.notices)
    lines = "; ".join(f"{name}: {of.about}" for name, of in about.items() if of.about)
    return Description(" + ".join(about), {}, {}, about=lines, notices=notices)


class SeveralFaults(FaultCounts):
    """Counts of faults of several environments: the sum of each, then each by environment."""

    def __init__(self, members: Mapping[str, TaskSuite], outage: Outage) -> None:
        super().__init__()
        self._members, self._outage = members, outage

    def tell_reasons(self, say: Callable[[str], object]) -> None:
        for name, member in self._members.items():
            member.hosting.faults.tell_reasons(lambda line, name=name: say(f"{name}: {line}"))  # type: ignore[misc]
        for name, error in self._outage.down.items():
            if name not in self._outage.told:
                self._outage.told.add(name)
                say(f"warning: environment {name} is left out from here on: {error.message}; --resume plays it again")

    def take(self) -> dict[str, int]:
        """Return the counts since the last call: `KEY`, and `NAME/KEY` of each environment; and reset them.

        The key `left_out` counts how often an environment was left out.
        """
        own = super().take()
        each = {name: member.hosting.faults.take() for name, member in self._members.items()}
        for name, found in each.items():
            found[LEFT_OUT] = self._outage.lost.pop(name, 0)
        total = {key: own.get(key, 0) + sum(found[key] for found in each.values()) for key in SEVERAL_FAULT_KEYS}
        return total | {f"{name}/{key}": count for name, found in each.items() for key, count in found.items()}


LEFT_OUT = "left_out"
SEVERAL_FAULT_KEYS = (*FAULT_KEYS, LEFT_OUT)
"""Names of the counters of a run in several environments."""


def shares(weights: Mapping[str, float], count: int, seed: int, purpose: str, step: int) -> dict[str, int]:
    """Return how many of `count` draws of the 0-based `step` fall to each name, in proportion to its weight.

    Systematic sampling: one random number places `count` equidistant points on the weights laid end to end, so that a
    name's number differs from `count` · weight / sum by less than 1 and equals it on average.

    Args:
        weights: at least one is above 0.
    """
    total, offset = sum(weights.values()), generator(seed, purpose, step).random()
    found, low, taken = dict[str, int](), 0.0, 0
    last = [name for name, weight in weights.items() if weight][-1]
    for name, weight in weights.items():
        low += weight
        reached = count if name == last else min(max(int(low / total * count + offset), taken), count)
        found[name] = reached - taken if weight else 0
        taken += found[name]
    return found


def describe_members(worlds: TaskSuite, describe: Callable[[TaskSuite], dict[str, Any]]) -> dict[str, Any]:
    """Return `describe` of one environment, or of each of several, by name under `environments`."""
    if not isinstance(worlds, SeveralWorlds):
        return describe(worlds)
    each = {name: describe(member) for name, member in worlds.members.items()}
    return {"name": worlds.description.name, "environments": each}
