"""Terminal tasks as a source of environments: one shell per episode, whose tests give the reward."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

from echo_cli.concurrency import WorkerThread, wait_at_most
from echo_cli.config.environment import EnvironmentConfig
from echo_cli.environments.faults import BadAction, EnvironmentFault, SessionLost, Unavailable, fault_line
from echo_cli.environments.protocol import Description, JsonObject, Payload
from echo_cli.environments.tasks import TaskList, TaskSplits
from echo_cli.environments.terminal.docker_site import DockerSite
from echo_cli.environments.terminal.local_site import LocalSite
from echo_cli.environments.terminal.reading import Ran
from echo_cli.environments.terminal.shell import Shell, ShellError
from echo_cli.environments.terminal.site import CannotPlay, Episode, Site
from echo_cli.environments.terminal.tasks.task_folder import TerminalTask
from echo_cli.environments.terminal.tasks.task_set import TerminalTasks, load_terminal_tasks
from echo_cli.environments.terminal.verifier import VerifierFault
from echo_cli.processes import hide_memory

NAME = "terminal"
_ACTION: JsonObject = {
    "type": "object",
    "properties": {"command": {"type": "string"}, "verify": {"type": "boolean"}},
    "additionalProperties": False,
}
_FIELDS = ("instruction", "output", "exit_code", "notice", "echo", "prompt")
_SESSIONS_PER_CPU = 8
_CLOSE_SECONDS = 10.0
_BYTES_PER_CHAR = 4
_T = TypeVar("_T")


def open_site(settings: EnvironmentConfig) -> Site:
    """Return the place of the episodes of a config's runtime.

    Raises:
        EchoError: bubblewrap or Docker does not work.
    """
    terminal = settings.terminal
    assert terminal is not None
    if terminal.runtime == "docker":
        return DockerSite(terminal.limits, terminal.network)
    return LocalSite(terminal.runtime == "bwrap", terminal.limits)


@contextmanager
def open_terminal(
    settings: EnvironmentConfig, wanted_sessions: Callable[[TaskSplits], int]
) -> Iterator[tuple[TerminalSource, TaskList]]:
    """Yield the source of a config's terminal tasks, and the tasks that can be played.

    Args:
        wanted_sessions: returns the number of episodes that a run plays at once.

    Raises:
        EchoError: the tasks cannot be read, none can be played, or the runtime does not work.
    """
    assert settings.terminal is not None
    tasks = load_terminal_tasks(settings.terminal, may_fetch=True)
    hide_memory()  # shells run commands of the policy
    site = open_site(settings)
    try:
        tasks = _prepared(site, tasks)
        task_list = tasks.task_list(settings.terminal)
        yield TerminalSource(settings, site, tasks, wanted_sessions(task_list.splits)), task_list
    finally:
        site.close()


def _prepared(site: Site, tasks: TerminalTasks) -> TerminalTasks:
    """Make what the tasks' episodes need, and return the tasks without those for which that is impossible."""
    reasons: dict[str, str] = {}
    for name, task in tasks.tasks.items():
        try:
            site.prepare(task)
        except CannotPlay as error:
            reasons[name] = str(error)
    return tasks.without(reasons)


class TerminalSource:
    """A `protocol.EnvironmentSource` of terminal tasks that were prepared."""

    def __init__(self, settings: EnvironmentConfig, site: Site, tasks: TerminalTasks, wanted_sessions: int) -> None:
        self._settings, self._site, self._tasks, self._wanted = settings, site, tasks, wanted_sessions

    def describe(self) -> Description:
        return Description(
            NAME,
            _ACTION,
            {"type": "object", "properties": {name: {} for name in _FIELDS}},
            sessions=min(self._wanted, _SESSIONS_PER_CPU * (os.cpu_count() or 1)),
            notices=self._tasks.notices(),
        )

    def client(self) -> TerminalClient:
        return TerminalClient(self._settings, self._site, self._tasks)

    def ended(self) -> str | None:
        return None


class TerminalClient:
    """A `protocol.Client` of one episode. `{command}` is typed into the shell; `{verify: true}` runs the task's tests.

    A shell that ends, exceeds a limit or uses up the task's time ends the episode: no later command can run.
    """

    def __init__(self, settings: EnvironmentConfig, site: Site, tasks: TerminalTasks) -> None:
        self._settings, self._site, self._tasks = settings, site, tasks
        self._task: TerminalTask | None = None
        self._thread: WorkerThread | None = None
        self._episode: Episode | None = None
        self._shell: Shell | None = None
        self._used_s = 0.0
        self._lost: str | None = None

    async def reset(self, arguments: JsonObject) -> Payload:
        name = arguments.get("task")
        task = self._tasks.tasks.get(name) if isinstance(name, str) else None
        if task is None or len(arguments) > 1:
            raise BadAction(f"no terminal task has these reset arguments: {fault_line(str(dict(arguments)))}")
        self._task, self._thread = task, WorkerThread(f"terminal {task.name}")
        try:
            await self._ask(self._begin)
        except (ShellError, OSError) as error:
            raise Unavailable(fault_line(str(error))) from None
        return Payload({"instruction": task.instruction})

    async def step(self, action: JsonObject) -> Payload:
        command = action.get("command")
        if action.get("verify") is True:
            try:
                return Payload({}, await self._ask(self._verify), done=True)
            except VerifierFault as error:
                raise EnvironmentFault(fault_line(str(error))) from None
        if not isinstance(command, str):
            raise BadAction("an action has a command, one text")
        return await self._ask(lambda: self._run(command))

    async def close(self) -> None:
        self._lost = self._lost or "the session is closed"
        if self._shell is not None:
            self._shell.stop()
        thread, self._thread = self._thread, None
        if thread is None:
            return
        closed = asyncio.wrap_future(thread.start(self._close))
        thread.end()
        with suppress(Exception):  # the session is over all the same; its folder is removed with the run's
            await wait_at_most(_CLOSE_SECONDS, closed)

    async def _ask(self, function: Callable[[], _T]) -> _T:
        """Run a function in the session's thread; a session that takes too long is lost."""
        if self._lost is not None or self._thread is None:
            raise SessionLost(self._lost or "the session has not begun")
        limit = self._settings.step_timeout_s
        try:
            return await wait_at_most(limit, self._thread.run(function))
        except asyncio.TimeoutError:
            self._lost = f"the terminal did not answer within {limit:g} s"
            raise SessionLost(self._lost) from None
        except asyncio.CancelledError:
            self._lost = "a request was cancelled"
            raise

    def _begin(self) -> None:
        assert self._task is not None
        self._episode = self._site.begin(self._task)
        self._shell = self._episode.open_shell(self._settings.prompt)

    def _run(self, command: str) -> Payload:
        assert self._task is not None and self._shell is not None and self._settings.terminal is not None
        stated = self._task.limits
        most = self._settings.max_observation_chars
        own = None if stated.max_output_chars is None or stated.max_output_chars >= most else stated.max_output_chars
        left = stated.agent_s - self._used_s
        limits = stated.within(self._settings.terminal.limits)
        begun = time.monotonic()
        ran = self._shell.run(command, min(limits.command_s, max(left, 0.1)), _BYTES_PER_CHAR * (most + 1))
        self._used_s += time.monotonic() - begun
        over = self._used_s >= stated.agent_s and not ran.ended
        return _payload(ran, own, f"the task's {stated.agent_s:g} s are over" if over else "")

    def _verify(self) -> float:
        assert self._episode is not None
        return self._episode.verify()

    def _close(self) -> None:
        if self._episode is not None:
            self._episode.close()


def _payload(ran: Ran, task_chars: int | None, over: str) -> Payload:
    """Return what a command did, with its output cut to the task's own limit; the config's is applied later."""
    output = ran.output.decode(errors="replace")
    is_cut = task_chars is not None and len(output) > task_chars
    notices = [ran.notice, f"output cut at {task_chars} characters" if is_cut else "", over]
    fields = {
        "output": output[:task_chars] if is_cut else output,
        "exit_code": ran.exit_code,
        "notice": "; ".join(filter(None, notices)),
        "echo": ran.echo.decode(errors="replace"),
        "prompt": ran.prompt.decode(errors="replace"),
    }
    return Payload(fields, done=ran.ended or bool(over))
