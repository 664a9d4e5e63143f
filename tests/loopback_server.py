"""A small OpenEnv server on 127.0.0.1, in a process of its own, that fails as configured.

    with loopback_server(Behaviour(capacity=2, incidents=(Incident("close", at=2, value=1011),))) as server:
        server.url                      # http://127.0.0.1:PORT
        server.connections              # number of websockets opened since the first start
        server.episodes, server.steps   # number of resets and steps received
        server.events("step")           # each with its connection's number and its data
        server.wait_for("step", 3)      # until three steps have arrived
        server.kill(); server.restart() # SIGKILL; new start on the same port

`at` counts an episode's requests: `CONNECT` precedes all of them, 0 is the reset, n the nth step. Connections are
numbered from 0 across restarts, so that an incident of connection 3 occurs once. `world` is a class with `reset(data)`
and `step(action)`, which return the `data` of an observation message, and optionally `close()` and `ACTION`, the JSON
schema of its actions. An exception it raises becomes an EXECUTION_ERROR, a `Refused` a VALIDATION_ERROR.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

CONNECT = -1
HOST = "127.0.0.1"
_PATIENCE_S = 30.0


@dataclass(frozen=True)
class Incident:
    """A failure at request `at`, on every connection or on the numbers in `connections`.

    | kind | value | what happens |
    |---|---|---|
    | close | code | the websocket is closed instead of an answer |
    | drop | | the TCP connection breaks off |
    | hang | | no answer, ever |
    | slow | seconds | the answer comes later |
    | die | | the server process kills itself with SIGKILL |
    | text | text | this message instead of the answer |
    | bytes | latin-1 text | a text message of these bytes, whatever they are |
    | binary | text | a binary message instead of the answer |
    | flood | characters | an observation whose `output` is this long |
    | error | data | an error message with this data; closes afterwards where `at` is CONNECT |
    """

    kind: str
    at: int = 1
    value: Any = None
    connections: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Behaviour:
    """Behaviour of the server."""

    incidents: tuple[Incident, ...] = ()
    capacity: int | None = None
    """Maximum number of concurrent sessions; a further connection gets CAPACITY_REACHED, as in OpenEnv."""
    header: tuple[str, str] | None = None
    """Header and value without which every request is refused with 401."""
    http: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    """Status and body of the answer by path; the body of a 3xx is its Location."""
    prefix: str = ""
    """Path of the base URL."""
    world: str | type = "loopback_server:Counting"
    options: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the world's constructor."""


class Refused(Exception):
    """A VALIDATION_ERROR; `errors` as pydantic lists them."""

    def __init__(self, errors: list[dict[str, Any]]) -> None:
        super().__init__("Invalid message")
        self.errors = errors


class Counting:
    """A terminal that counts: `{"command": …}` in, `output` of one line out, done after `steps`.

    The last reward is the share of the commands with an even number of characters, and null before.
    """

    ACTION = {"type": "object", "properties": {"command": {"type": "string"}}, "required": ["command"]}  # noqa: RUF012

    def __init__(self, steps: int = 3) -> None:
        self._steps = steps
        self._commands: list[str] = []

    def reset(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """`data` may hold `instruction`, shown at once, and `steps`."""
        self._steps, self._commands = data.get("steps", self._steps), []
        return observation(f"{data.get('instruction', 'count')}\n", None, False)

    def step(self, action: Mapping[str, Any]) -> dict[str, Any]:
        """Echo the command after its number."""
        command = action.get("command")
        if not isinstance(command, str):
            raise Refused([{"type": "missing", "loc": ["command"], "msg": "Field required", "input": dict(action)}])
        self._commands.append(command)
        done = len(self._commands) >= self._steps
        even = sum(len(command) % 2 == 0 for command in self._commands) / len(self._commands)
        return observation(f"{len(self._commands)}: {command}\n", even if done else None, done)


def observation(output: str, reward: float | None, done: bool) -> dict[str, Any]:
    """The `data` of an observation message."""
    return {"observation": {"output": output}, "reward": reward, "done": done, "metadata": {}}


class LoopbackServer:
    """Handle of the server's process, made by `loopback_server`."""

    def __init__(self, behaviour: Behaviour, folder: Path) -> None:
        self._behaviour = behaviour
        self._log = folder / "events.jsonl"
        self._log.touch()
        self._process: subprocess.Popen[str] | None = None
        self.port = 0
        self.restart()

    @property
    def url(self) -> str:
        """The base URL."""
        return f"http://{HOST}:{self.port}{self._behaviour.prefix}"

    @property
    def connections(self) -> int:
        """Number of websockets opened."""
        return len(self.events("connect"))

    @property
    def episodes(self) -> int:
        """Number of resets received."""
        return len(self.events("reset"))

    @property
    def steps(self) -> int:
        """Number of steps received."""
        return len(self.events("step"))

    @property
    def running(self) -> bool:
        """Whether the process is running."""
        return self._process is not None and self._process.poll() is None

    def events(self, kind: str) -> list[dict[str, Any]]:
        """Return the events in order: `connect`, `reset`, `step`, `state`, `close` and `disconnect`, with `connection`
        and `data`; and `http`, with `path` and the names of its `headers`."""
        lines = self._log.read_text().splitlines()
        return [event for event in map(json.loads, lines) if event["event"] == kind]

    def wait_for(self, kind: str, count: int, connection: int | None = None) -> None:
        """Wait until `count` events of `kind` have happened, on one `connection` if it is given."""
        deadline = time.monotonic() + _PATIENCE_S
        while sum(connection in (None, event["connection"]) for event in self.events(kind)) < count:
            assert time.monotonic() < deadline, f"no {count} events of kind {kind}"
            time.sleep(0.005)

    def wait_until_ended(self) -> None:
        """Return once the process has ended, by `die` for example."""
        assert self._process is not None
        self._process.wait(_PATIENCE_S)

    def pause(self) -> None:
        """Suspend the whole process: nothing answers, and no connection closes."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """End `pause`."""
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """Send SIGKILL."""
        self._signal(signal.SIGKILL)
        self.wait_until_ended()

    def stop(self) -> None:
        """Send SIGTERM, on which it closes every websocket with code 1001 and ends; no effect if it has ended."""
        if self._process is None:
            return
        if self.running:
            self._signal(signal.SIGCONT)
            self._signal(signal.SIGTERM)
        try:
            self.wait_until_ended()
        finally:
            self._process.kill()
            for pipe in (self._process.stdin, self._process.stdout):
                assert pipe is not None
                pipe.close()

    def restart(self, behaviour: Behaviour | None = None) -> None:
        """Stop the process if it runs, and start it again on the same port, with a new behaviour if given."""
        self.stop()
        self._behaviour = behaviour or self._behaviour
        here = Path(__file__).parent
        world, world_folder = _import_path(self._behaviour.world)
        setting = json.dumps({**asdict(self._behaviour), "world": world})
        self._process = subprocess.Popen(
            [
                sys.executable,
                str(here / "loopback_process.py"),
                "--port",
                str(self.port),
                "--log",
                str(self._log),
                "--behaviour",
                setting,
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(world_folder or here), str(here), *sys.path])},
        )
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())

    def _signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)


@contextmanager
def loopback_server(behaviour: Behaviour | None = None) -> Iterator[LoopbackServer]:
    """Run a server on a free port of 127.0.0.1, and stop it at the end in any state."""
    with tempfile.TemporaryDirectory() as folder:
        server = LoopbackServer(behaviour or Behaviour(), Path(folder))
        try:
            yield server
        finally:
            server.stop()


def _import_path(world: str | type) -> tuple[str, Path | None]:
    if isinstance(world, str):
        return world, None
    file = sys.modules[world.__module__].__file__
    assert file is not None
    return f"{world.__module__}:{world.__qualname__}", Path(file).parent
