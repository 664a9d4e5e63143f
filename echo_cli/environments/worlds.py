"""Open the task suite and the environment source that a config names."""

from __future__ import annotations

import importlib.util
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from functools import partial
from typing import TYPE_CHECKING

from echo_cli.config.environment import EnvironmentConfig
from echo_cli.config.episodes.reward import ANSWER
from echo_cli.config.episodes.several import in_environment
from echo_cli.config.schema import Config
from echo_cli.environments.actions import check_action, check_payload, wrap_action
from echo_cli.environments.grading.grader import open_grader
from echo_cli.environments.protocol import Description, Environment, EnvironmentSource, HostLimits, TaskSuite
from echo_cli.environments.several import SeveralWorlds, side_by_side
from echo_cli.environments.tasks import OTHER_WORLD, Task, TaskList, TaskSplits, load_tasks
from echo_cli.environments.terminal.client import open_terminal
from echo_cli.environments.terminal.tasks.task_set import load_terminal_tasks
from echo_cli.environments.text_environment import EnvironmentFactory
from echo_cli.environments.toy import ToyWorlds, toy_factory, toy_settings
from echo_cli.errors import EchoError, missing_package
from echo_cli.processes import hide_memory
from echo_cli.text import escape_unprintable

if TYPE_CHECKING:
    from echo_cli.environments.openenv.provider import Provided

_NO_TASKS = TaskSplits((), (), ())


def list_tasks(config: Config) -> tuple[TaskSplits, TaskSplits]:
    """Return the tasks of `config`, and of its out-of-distribution suite, without opening the environment.

    Raises:
        EchoError: the tasks cannot be read.
    """
    found = {}
    for name, alone in config.of_each.items():
        with in_environment(name):
            found[name] = _list_tasks(alone)
    return tuple(side_by_side({name: of[place] for name, of in found.items()}) for place in (0, 1))  # type: ignore[return-value]


def _list_tasks(config: Config) -> tuple[TaskSplits, TaskSplits]:
    environment, toy = config.environment, config.environment.toy_worlds
    if toy is not None:
        worlds = ToyWorlds(toy.world_seeds, toy.ood_world_seeds, toy.max_turns, toy.families, kind=toy.kind)
        return worlds.tasks, worlds.out_of_distribution().tasks
    if environment.terminal is not None:
        tasks = load_terminal_tasks(environment.terminal).task_list(environment.terminal)
    elif environment.tasks is None:
        return _NO_TASKS, _NO_TASKS
    else:
        tasks = load_tasks(environment.tasks, fetch=environment.grants.fetch)
    return tasks.splits, TaskSplits((), (), tasks.ood)


@contextmanager
def open_worlds(config: Config) -> Iterator[TaskSuite]:
    """Yield the task suite of `config`; a server that is started for it stops at the end of the block.

    Raises:
        EchoError: an environment cannot be reached or started (exit code 1), does not speak OpenEnv, does not accept
            the config's actions, the tasks cannot be read, or no line is left for the explorers.
    """
    with ExitStack() as opened:
        members = {}
        for name, alone in config.of_each.items():
            with in_environment(name):
                members[name] = opened.enter_context(_open_worlds(alone))
        weights = {entry.name: entry.weight for entry in config.environments or ()}
        yield SeveralWorlds(members, weights) if weights else members[""]


@contextmanager
def _open_worlds(config: Config) -> Iterator[TaskSuite]:
    """Yield the task suite of a config with one environment."""
    environment, toy = config.environment, config.environment.toy_worlds
    worlds_of: Callable[[EnvironmentFactory], TaskSuite]
    every_task: Sequence[Task]
    if environment.none:
        yield NoWorlds()
        return
    if toy is not None:
        here = toy_factory(toy.max_turns, _hosting(environment, environment.sessions))
        worlds = ToyWorlds(
            toy.world_seeds,
            toy.ood_world_seeds,
            toy.max_turns,
            toy.families,
            here,
            kind=toy.kind,
            other_world_seeds=toy.placebo_seeds,
        )
        if environment.toy_terminal is not None:
            yield worlds
            return
        splits, every_task, worlds_of = worlds.tasks, (), worlds.made_by
    elif environment.terminal is not None:
        with open_terminal(environment, partial(rollouts_at_once, config)) as (terminal, tasks):
            _check_other_world(config, tasks)
            _check_answers(config, tasks)
            with _suite(config, terminal, partial(TaskWorlds, tasks)) as suite:
                yield suite
        return
    else:
        assert environment.tasks is not None
        tasks = load_tasks(environment.tasks, fetch=environment.grants.fetch)
        _check_other_world(config, tasks)
        _check_answers(config, tasks)
        splits, every_task, worlds_of = tasks.splits, tasks.all, partial(TaskWorlds, tasks)
    with (
        open_source(environment, rollouts_at_once(config, splits), every_task) as source,
        _suite(config, source, worlds_of) as suite,
    ):
        yield suite


@contextmanager
def _suite(
    config: Config, source: EnvironmentSource, worlds_of: Callable[[EnvironmentFactory], TaskSuite]
) -> Iterator[TaskSuite]:
    """Yield the suite of an open source, whose schema fits the config's actions."""
    environment, description = config.environment, source.describe()
    check_action(environment.action, description.action_schema)
    for number, final in enumerate(environment.reward.final):
        check_payload(final.action, description.action_schema, f"environment.reward.final[{number}].action")
    hosting = _hosting(environment, environment.sessions or description.sessions or 1)
    with open_grader(environment.reward, hosting.faults, environment.grants.import_from) as grader:
        suite = worlds_of(EnvironmentFactory(source, environment, hosting, description, grader))
        _check_explorers(config, suite)
        yield suite


def _check_explorers(config: Config, suite: TaskSuite) -> None:
    if config.rollout.explorers and isinstance(suite, TaskWorlds) and not suite.can_explore:
        raise EchoError(
            "every line of environment.explorer solves a validation or held-out task, so explorers may not type it",
            "list other lines in environment.explorer, or set rollout.explorers=0",
        )


def _check_other_world(config: Config, tasks: TaskList) -> None:
    if config.objective.env_targets == "other_world" and not tasks.other_world:
        raise EchoError(
            "objective.env_targets is other_world and environment.tasks has no task of another world",
            f"list tasks with 'split: {OTHER_WORLD}', or set env_targets to shuffled or random",
        )


def _check_answers(config: Config, tasks: TaskList) -> None:
    """Raise an EchoError if a pattern of the rubric needs the answer of a task that has none."""
    needy = [each.name for each in config.environment.reward.rubric or () if each.pattern and ANSWER in each.pattern]
    every = (*tasks.splits.train, *tasks.splits.validation, *tasks.splits.heldout, *tasks.ood)
    without = next((task.task_id for task in every if needy and task.answer is None), None)
    if without is not None:
        raise EchoError(
            f"the pattern of criterion {needy[0]} has {ANSWER}, and the task {escape_unprintable(without)} has none",
            "give every task an answer in environment.tasks",
        )


def text_settings(environment: EnvironmentConfig) -> EnvironmentConfig:
    """Return the settings that map payloads to text: the config's, or the toy terminal's."""
    toy = environment.toy_terminal
    return environment if toy is None else toy_settings(toy.max_turns)


def _hosting(environment: EnvironmentConfig, sessions: int | None) -> HostLimits:
    return HostLimits(sessions, environment.batch_wait_s, environment.attempts)


def rollouts_at_once(config: Config, splits: TaskSplits) -> int:
    """Return the maximum number of rollouts that a run plays at once: it cannot use more sessions."""
    rollout, evaluation = config.rollout, config.evaluation
    return max(
        rollout.tasks_per_step * rollout.group_size,
        rollout.explorers,
        len(splits.validation) * max(evaluation.validation_rollouts, 1),
        len(splits.heldout) * max(evaluation.heldout_rollouts, 1),
    )


@contextmanager
def open_source(
    environment: EnvironmentConfig, wanted_sessions: int, tasks: Sequence[Task] = ()
) -> Iterator[EnvironmentSource]:
    """Yield the source that `environment` names; its module is imported only here.

    Args:
        tasks: tasks that the source checks before the first episode, if it knows their reset arguments.
    """
    grants = environment.grants
    if grants.import_from is not None:
        from echo_cli.environments.openenv.package import import_from

        import_from(grants.import_from)
    if environment.object is not None:
        from echo_cli.environments.openenv.in_process_client import ObjectSource

        hide_memory()  # the class may run commands of the policy
        with redirect_stdout(sys.stderr):  # its prints must not mix with our output, which may be JSON
            yield ObjectSource(
                environment.object,
                environment.object_options,
                step_timeout_s=environment.step_timeout_s,
                sessions_wanted=wanted_sessions,
            )
    elif environment.mcp is not None:
        if importlib.util.find_spec("mcp") is None:
            raise missing_package("environment.mcp", "the MCP SDK", "mcp")
        from echo_cli.environments.mcp.source import open_mcp

        with open_mcp(environment, tasks) as servers:
            yield servers
    elif environment.url is not None:
        yield _server(environment, environment.url, wanted_sessions)
    else:
        from echo_cli.environments.openenv.provider import running_server

        assert environment.provider is not None
        with running_server(environment.provider, grants.import_from) as server:
            yield _server(environment, server.url, wanted_sessions, server)


def _server(
    environment: EnvironmentConfig, url: str, wanted_sessions: int, started: Provided | None = None
) -> EnvironmentSource:
    """Return the source of a server at `url`, perhaps `started` by us, with our client or the configured typed one."""
    from echo_cli.environments.openenv.session import SessionLimits
    from echo_cli.environments.openenv.websocket_client import WireSource

    limits = SessionLimits(environment.connect_timeout_s, environment.step_timeout_s, environment.max_message_mb)
    wire = WireSource(
        url,
        environment.headers,
        limits,
        sessions_wanted=0 if environment.sessions else wanted_sessions,
        ended=started.ended if started else lambda: None,
        plain_http=environment.grants.plain_http,
        token=started.token if started else "",
        known=started.secrets if started else {},
    )
    if environment.client is None:
        return wire
    from echo_cli.environments.openenv.typed_client import TypedSource

    headers, secrets = wire.address.headers, wire.address.secrets
    needed = bool(environment.headers)
    return TypedSource(environment.client, url, wire, limits, headers=headers, secrets=secrets, headers_needed=needed)


class TaskWorlds:
    """The task suite of a user's environment."""

    replayable = False

    def __init__(self, tasks: TaskList, factory: EnvironmentFactory) -> None:
        self._list = tasks
        self._factory = factory
        self.tasks = tasks.splits
        self.hosting = factory.hosting
        self.description = factory.description
        forbidden = set(map(self._wrapped, _solving_lines(tasks)))
        self._explorer_lines = [line for line in map(self._wrapped, factory.settings.explorer) if line not in forbidden]

    @property
    def can_explore(self) -> bool:
        """Whether an explorer line remains that solves no validation or held-out task."""
        return bool(self._explorer_lines)

    def environment(self) -> Environment:
        return self._factory.environment()

    def expert(self, task: Task) -> list[str] | None:
        actions = self._list.actions.get(task.task_id)
        return None if actions is None else [self._wrapped(line) for line in actions]

    def explorer(self, task: Task, count: int, rng: random.Random) -> list[str]:
        return rng.choices(self._explorer_lines, k=count) if self._explorer_lines else []

    def reserved(self, tasks: Sequence[Task]) -> list[tuple[Task, list[str]]]:
        return []

    def out_of_distribution(self) -> TaskWorlds:
        elsewhere = TaskList(TaskSplits((), (), self._list.ood), self._list.actions, ())
        return TaskWorlds(elsewhere, self._factory)

    def other_world(self) -> TaskWorlds | None:
        if not self._list.other_world:
            return None
        elsewhere = TaskWorlds(TaskList(TaskSplits(self._list.other_world, (), ()), {}, ()), self._factory)
        elsewhere._explorer_lines = self._explorer_lines  # a placebo's explorers type the same lines
        return elsewhere

    def _wrapped(self, line: str) -> str:
        return wrap_action(self._factory.settings.action, line)


def _solving_lines(tasks: TaskList) -> frozenset[str]:
    """Return the lines that an explorer may not type, because they solve a validation or held-out task.

    These are the lines of such a task's `actions` that no training task has, and the line of a solution of one line.
    """
    trained = {line for task in tasks.splits.train for line in tasks.actions.get(task.task_id, ())}
    held = [tasks.actions.get(task.task_id, ()) for task in (*tasks.splits.validation, *tasks.splits.heldout)]
    return frozenset(line for lines in held for line in lines if len(lines) == 1 or line not in trained)


class NoWorlds:
    """A task suite without tasks or an environment."""

    replayable = False

    def __init__(self) -> None:
        self.tasks = _NO_TASKS
        self.hosting = HostLimits()
        self.description = Description("none", {}, {})

    def environment(self) -> Environment:
        raise EchoError(
            "environment.none is true: there is no environment to play in", "name an environment in the config"
        )

    def expert(self, task: Task) -> list[str] | None:
        return None

    def explorer(self, task: Task, count: int, rng: random.Random) -> list[str]:
        return []

    def reserved(self, tasks: Sequence[Task]) -> list[tuple[Task, list[str]]]:
        return []

    def out_of_distribution(self) -> NoWorlds:
        return self

    def other_world(self) -> None:
        return None
