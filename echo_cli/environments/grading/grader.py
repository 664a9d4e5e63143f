"""The grader of a run: it asks processes of its own for the value of each criterion, within a time limit.

`host.py` runs in these processes. Episodes are graded by as many threads as `workers`, each with a process, while the
policy samples and other episodes are played.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from echo_cli.config.episodes.reward import RewardConfig
from echo_cli.environments.faults import FaultCounts, fault_line
from echo_cli.environments.grading.grade import Grade, GraderFault, number_of, values_of, weighted
from echo_cli.environments.openenv.address import expand_all
from echo_cli.errors import EchoError
from echo_cli.processes import ChildProcess
from echo_cli.text import escape_unprintable

_START_SECONDS = 60.0
"""Maximum duration of the imports of a grader's functions."""


class RewardGrader:
    """The grader of `environment.reward`, which gives episodes their reward.

    Args:
        settings: section with a function, a command or a rubric.
        faults: counters to which each episode is added whose grader failed.
        import_from: folder from which functions are imported, besides the installed packages.

    Raises:
        EchoError: a program is missing or not executable, a function cannot be imported, or a variable is not set.
    """

    def __init__(self, settings: RewardConfig, faults: FaultCounts, import_from: str | None = None) -> None:
        self._settings, self._faults = settings, faults
        self._variables, secrets = expand_all(settings.env, "environment.reward.env", empty=True)
        self._secrets = {value: shown for value, shown in secrets.items() if len(value) >= _SECRET_CHARS}
        self._prepare = {"functions": list(settings.functions), "import_from": import_from}
        self._criteria = _criteria_of(settings)
        for command in settings.commands:
            _check_program(command[0])
        self._threads = ThreadPoolExecutor(settings.workers, "graders")
        self._idle: list[_Host] = []
        self._hosts: set[_Host] = set()
        self._lock = threading.Lock()
        self._closed = False
        self._put_back(self._host())

    async def grade(self, episode: Mapping[str, Any]) -> Grade:
        """Return the grade of a finished episode, a trace as JSON with the task under `meta.task`.

        Raises:
            EchoError: the grader failed, and `on_error` is `stop` (exit code 1).
        """
        values, fault = await asyncio.wrap_future(self._threads.submit(self._graded, episode))
        reward = weighted(values, self._settings.weights or {"": 1.0})
        if fault is not None:
            reward = self._after_fault(reward, str(episode.get("task_id")), fault)
        return Grade(reward, {name: value for name, value in values.items() if name}, fault)

    def close(self) -> None:
        """End the processes, and wait for the threads."""
        with self._lock:
            self._closed = True
            for host in self._hosts:
                host.end()
        self._threads.shutdown(wait=True, cancel_futures=True)
        for host in self._hosts:
            host.release()

    def _graded(self, episode: Mapping[str, Any]) -> tuple[dict[str, float | None], str | None]:
        """Return the values of the criteria, and what went wrong with them; a number alone has the name ""."""
        values: dict[str, float | None] = {}
        faults = []
        for name, criterion in self._criteria.items():
            try:
                values |= self._values(name, criterion, episode)
            except GraderFault as fault:
                values |= dict.fromkeys([name] if name else self._settings.criteria or [""])
                faults.append(fault_line(f"{_title(name, criterion)} {fault}", self._secrets))
        return values, "; ".join(faults) or None

    def _after_fault(self, reward: float | None, task_id: str, fault: str) -> float | None:
        """Count a failure, and return the reward by the rule `on_error`."""
        rule = self._settings.on_error
        if rule == "stop":
            raise EchoError(
                f"the grader failed on task {escape_unprintable(task_id)}: {fault}",
                "fix it, then continue with --resume; environment.reward.on_error=skip leaves such episodes out",
                exit_code=1,
            )
        self._faults.count("ungraded", f"the grader failed: {fault}")
        return 0.0 if reward is None and rule == "zero" else reward

    def _values(self, name: str, criterion: Mapping[str, Any], episode: Mapping[str, Any]) -> Mapping[str, float]:
        """Return the values that a criterion gives, by name."""
        answer = self._answer({"criterion": criterion, "episode": episode})
        if not name and self._settings.criteria:
            return values_of(answer, list(self._settings.criteria))
        return {name: number_of(answer)}

    def _answer(self, order: Mapping[str, Any]) -> Any:
        host = self._host()
        try:
            reply = host.ask(order, self._settings.timeout_s)
        except BaseException:
            self._drop(host)
            raise
        self._put_back(host)
        if "fault" in reply:
            raise GraderFault(reply["fault"])
        return reply["answer"]

    def _host(self) -> _Host:
        """Return an idle process, or start one.

        Raises:
            EchoError: a function cannot be imported.
            GraderFault: the process did not start, or the grader is closed.
        """
        with self._lock:
            if self._closed:
                raise GraderFault("was ended with the run")
            if self._idle:
                return self._idle.pop()
            host = _Host(self._variables)
            self._hosts.add(host)
        try:
            host.prepare(self._prepare)
        except BaseException:
            self._drop(host)
            raise
        return host

    def _put_back(self, host: _Host) -> None:
        with self._lock:
            self._idle.append(host)

    def _drop(self, host: _Host) -> None:
        with self._lock:
            self._hosts.discard(host)
        host.end()
        host.release()


_SECRET_CHARS = 4
"""Minimum length of a secret, characters; hiding shorter values, such as every 1, would make messages unreadable."""


class _Host:
    """A process of `host.py`. One thread at a time asks it; `end` may be called by another."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        self._child = ChildProcess("echo_cli.environments.grading.host", variables)

    def prepare(self, order: Mapping[str, Any]) -> None:
        reply = self.ask(order, _START_SECONDS)
        if "error" in reply:
            raise EchoError(f"environment.reward: {reply['error']}", reply["tip"])

    def ask(self, order: Mapping[str, Any], timeout_s: float) -> Mapping[str, Any]:
        """Send an order and return the reply.

        Raises:
            GraderFault: the process ended, or gave no reply within `timeout_s` seconds.
        """
        deadline = time.monotonic() + timeout_s
        self._child.send(order)
        while not self._child.has_message and not self._child.has_ended:
            if (left := deadline - time.monotonic()) <= 0:
                raise GraderFault(f"gave no answer within {timeout_s:g} s")
            self._child.exchange(left)
        reply = self._child.receive()
        if reply is None:
            code = self._child.exit_code()
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended its process with code {code}"
            raise GraderFault(how)
        return reply

    def end(self) -> None:
        """Kill the process and what it started; a thread that asks it gets a fault."""
        self._child.kill_group()

    def release(self) -> None:
        """Close the pipes, once no thread asks any more."""
        self._child.kill()


@contextmanager
def open_grader(
    settings: RewardConfig, faults: FaultCounts, import_from: str | None = None
) -> Iterator[RewardGrader | None]:
    """Yield the grader of a section, None if it has none; its processes end with the block.

    Raises:
        EchoError: as in `RewardGrader`.
    """
    if not settings.has_grader:
        yield None
        return
    try:
        grader = RewardGrader(settings, faults, import_from)
    except GraderFault as fault:
        tip = "its functions are imported first: import them by hand to see why"
        raise EchoError(f"environment.reward: the grader {fault}", tip, exit_code=1) from None
    try:
        yield grader
    finally:
        grader.close()


def _criteria_of(settings: RewardConfig) -> dict[str, dict[str, Any]]:
    """Return what a process applies, by the criterion's name; a grader that is no rubric has the name ""."""
    if settings.rubric:
        return {each.name: each.model_dump(mode="json", exclude_defaults=True) for each in settings.rubric}
    if settings.function is not None:
        return {"": {"function": settings.function}}
    return {"": {"command": list(settings.command or ())}}


def _title(name: str, criterion: Mapping[str, Any]) -> str:
    """Return a criterion as the subject of a sentence."""
    if name:
        return f"the criterion {name}"
    return str(criterion.get("function") or Path(criterion["command"][0]).name)


def _check_program(program: str) -> None:
    """Raise an EchoError if a command's program does not exist or cannot be executed."""
    if program == "python":
        return
    name = escape_unprintable(program)
    if "/" not in program:
        here = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH") or os.defpath])
        if shutil.which(program, path=here) is None:
            tip = "install it, or write its path, such as ./grade.sh"
            raise EchoError(f"environment.reward: the grader '{name}' was not found", tip)
        return
    if not os.path.isfile(program):
        raise EchoError(f"environment.reward: the grader {name} does not exist", "a path is relative to this folder")
    if not os.access(program, os.X_OK):
        raise EchoError(f"environment.reward: the grader {name} is not executable", f"chmod +x {name}")
