"""A user's typed OpenEnv client, kept from joining two episodes into one.

After a timeout or a close, OpenEnv's clients connect anew at the next call, to a new environment that was never reset,
and say nothing. So the episode's id is noted after the reset and compared after every answer, and a client that has
failed once is never asked again.
"""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import json
import re
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any, get_origin

import pydantic
from pydantic_core import PydanticSerializationError, to_json

from echo_cli.concurrency import wait_at_most
from echo_cli.environments.faults import (
    BadAction,
    EnvironmentFault,
    Fault,
    SessionLost,
    Unavailable,
    errors_text,
    fault_line,
)
from echo_cli.environments.openenv.package import generic_arguments, load_class, require_openenv
from echo_cli.environments.openenv.websocket import NO_SESSION
from echo_cli.environments.protocol import Description, EnvironmentSource, JsonObject, Payload
from echo_cli.errors import EchoError

_CLOSE_TIMEOUT_S = 5.0
_SERVER_ERROR = re.compile(r"Server error: (.*) \(code: (\w+)\)", re.DOTALL)


class TypedClient:
    """One episode through a typed client, a `client.Client`.

    Args:
        make: gives a client that is not yet connected.
        action: makes the client's action of our JSON object; raises BadAction.
        name: of the client's class and its server, for messages.
        secrets: what no message may show, and what it shows in their place.
    """

    def __init__(
        self,
        make: Callable[[], Any],
        action: Callable[[JsonObject], Any],
        *,
        name: str,
        connect_timeout_s: float,
        step_timeout_s: float,
        secrets: Mapping[str, str],
    ) -> None:
        self._make = make
        self._action = action
        self._name = name
        self._connect_timeout_s = connect_timeout_s
        self._step_timeout_s = step_timeout_s
        self._secrets = secrets
        self._client: Any = None
        self._episode: Any = None
        self._lock = asyncio.Lock()  # two requests at once would shift every later reply by one
        self._begun = False
        self._lost: str | None = None
        """Why the session is over."""

    async def reset(self, arguments: JsonObject) -> Payload:
        """Open the session and start the episode. Called once. Errors as in `client.Client`.

        Raises:
            EchoError: the environment names no episode, so a silent reconnection could not be noticed (exit code 1).
        """
        async with self._lock:
            if self._lost is not None:
                raise SessionLost(self._lost)
            await self._connect()
            result = await self._ask(lambda: self._client.reset(**arguments))
            try:
                self._episode = await self._episode_id()
            except (BadAction, EnvironmentFault) as fault:
                raise self._refused(f"its state cannot be asked for: {fault}") from None
            if self._episode is None or self._episode == "":
                raise self._refused("its state has no episode_id")
            self._begun = True
            return self._payload(result)

    async def step(self, action: JsonObject) -> Payload:
        """Let the environment answer one action. Errors as in `client.Client`."""
        made = self._action(action)
        async with self._lock:
            if self._lost is not None:
                raise SessionLost(self._lost)
            assert self._client is not None, "reset comes first"
            try:
                result = await self._ask(lambda: self._client.step(made))
            except (BadAction, EnvironmentFault):
                await self._same_episode()
                raise
            await self._same_episode()
            return self._payload(result)

    async def close(self) -> None:
        """Give the session back, whatever its state. Raises nothing; may be called twice."""
        self._lost = self._lost or "it is closed"
        client, self._client = self._client, None
        if client is not None:
            with suppress(Exception):  # of a connection that is already gone, or of the user's own close
                await wait_at_most(_CLOSE_TIMEOUT_S, _awaited(client.close))

    async def _connect(self) -> None:
        try:
            self._client = self._make()
            await wait_at_most(self._connect_timeout_s, _awaited(self._client.connect))
        except asyncio.CancelledError:
            self._lost = self._line("the call was cancelled")
            raise
        except asyncio.TimeoutError:
            raise self._broken(f"no connection within {self._connect_timeout_s:g} s") from None
        except Exception as error:
            raise self._broken(_words(error)) from error

    async def _ask(self, call: Callable[[], Awaitable[Any]]) -> Any:
        try:
            return await wait_at_most(self._step_timeout_s, _awaited(call))
        except asyncio.CancelledError:
            self._lost = self._line("the call was cancelled")
            raise
        except asyncio.TimeoutError:
            raise self._broken(f"no answer within {self._step_timeout_s:g} s") from None
        except Exception as error:
            raise self._fault(error) from error

    async def _episode_id(self) -> Any:
        state = await self._ask(lambda: self._client.state())
        return state.get("episode_id") if isinstance(state, Mapping) else getattr(state, "episode_id", None)

    async def _same_episode(self) -> None:
        try:
            now = await self._episode_id()
        except (BadAction, EnvironmentFault) as fault:
            raise self._broken(f"its state cannot be asked for: {fault}") from None
        if now != self._episode:
            raise self._broken("it connected anew, to an environment that is in another episode")

    def _payload(self, result: Any) -> Payload:
        try:
            data = {"observation": result.observation, "reward": result.reward, "done": result.done}
            metadata = getattr(result, "metadata", None) or getattr(result.observation, "metadata", None)
            decoded = json.loads(to_json(data | {"metadata": metadata or None}, inf_nan_mode="null"))
            if not isinstance(result.observation, Mapping):  # OpenEnv's models repeat these two
                for name in ("reward", "done"):
                    decoded["observation"].pop(name, None)
            return Payload.from_data(decoded)
        except (ValueError, TypeError, AttributeError, PydanticSerializationError) as error:
            raise self._nonsense(f"its result is none of OpenEnv's: {_words(error)}") from error

    def _fault(self, error: Exception) -> Fault:
        """What an exception of the client means. The session lives on after BadAction and EnvironmentFault."""
        from websockets.exceptions import WebSocketException

        told = _SERVER_ERROR.fullmatch(str(error)) if isinstance(error, RuntimeError) else None
        if told is None:
            gone = isinstance(error, OSError | WebSocketException)
            return self._broken(_words(error)) if gone else self._nonsense(_words(error))
        text, code = told.groups()
        if code == "VALIDATION_ERROR":
            return BadAction(self._text(text))
        if code == "EXECUTION_ERROR":
            return EnvironmentFault(self._text(text))
        return self._broken(f"{text} ({code})") if code in NO_SESSION else self._nonsense(f"{text} ({code})")

    def _broken(self, reason: str) -> Fault:
        """The connection is gone, or was never had."""
        line = self._lost = self._line(reason)
        return SessionLost(line) if self._begun else Unavailable(line)

    def _nonsense(self, reason: str) -> SessionLost:
        """What came is no reply by the protocol, or the client could not read it."""
        self._lost = self._line(reason)
        return SessionLost(self._lost)

    def _refused(self, reason: str) -> EchoError:
        self._lost = self._line(reason)
        return EchoError(
            f"{self._lost}, and without one nobody can tell whether the client has silently connected anew",
            "drop environment.client, or let the environment's state name its episode",
            exit_code=1,
        )

    def _line(self, reason: str) -> str:
        return self._text(f"{self._name}: {reason}")

    def _text(self, text: str) -> str:
        return fault_line(text, self._secrets)


class TypedSource:
    """Environments of a server, asked through a typed client, a `client.EnvironmentSource`.

    Args:
        import_path: `pkg.module:Class`, an OpenEnv `EnvClient`.
        url: the server's base URL.
        base: the same server without the client: it describes it and knows whether it has ended.
        headers: HTTP headers, their values filled in.
        secrets: values in the headers that no message may show, and what it shows in their place.
        connect_timeout_s, step_timeout_s: for a connection and for an answer, in seconds.
        max_message_mb: largest message that is taken, in MiB.

    Raises:
        EchoError: openenv is not here, there is no such class, nothing says what actions it takes, or it takes no
            headers and there are some.
    """

    def __init__(
        self,
        import_path: str,
        url: str,
        base: EnvironmentSource,
        *,
        headers: Mapping[str, str] | None = None,
        secrets: Mapping[str, str] | None = None,
        connect_timeout_s: float = 10.0,
        step_timeout_s: float = 60.0,
        max_message_mb: float = 100.0,
    ) -> None:
        require_openenv("environment.client")
        from openenv.core.env_client import EnvClient

        self._class = load_class(import_path, EnvClient)
        self._action = _action_maker(self._class, import_path)
        self._arguments = _taken(
            self._class,
            import_path,
            {
                "base_url": url,
                "connect_timeout_s": connect_timeout_s,
                "message_timeout_s": step_timeout_s,
                "max_message_size_mb": max_message_mb,
                # A trainer may leave its event loop without the GIL for longer than a ping may take.
                "websocket_ping_interval_s": None,
                **({"headers": dict(headers)} if headers else {}),
            },
        )
        self._base = base
        self._name = f"{import_path} at {url}"
        self._secrets = dict(secrets or {})
        self._connect_timeout_s = connect_timeout_s
        self._step_timeout_s = step_timeout_s

    def describe(self) -> Description:
        """What the server says of itself. Errors as of the base."""
        return self._base.describe()

    def client(self) -> TypedClient:
        """A client for one episode; it opens its session at `reset`."""
        return TypedClient(
            lambda: self._class(**self._arguments),
            self._action,
            name=self._name,
            connect_timeout_s=self._connect_timeout_s,
            step_timeout_s=self._step_timeout_s,
            secrets=self._secrets,
        )

    def ended(self) -> str | None:
        """Why no session will ever be had again, where that is known."""
        return self._base.ended()


def _taken(client: type[Any], import_path: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Those of `arguments` that the client's constructor takes; it must take the URL and headers where there are some.

    The rest are limits that it then has of its own; ours hold beside them.
    """
    parameters = inspect.signature(client).parameters
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return arguments
    for name, what in (("base_url", "environment.url"), ("headers", "environment.headers")):
        if name in arguments and name not in parameters:
            raise EchoError(f"'{import_path}' takes no {name}", f"{what} needs it: let its constructor take {name}")
    return {name: value for name, value in arguments.items() if name in parameters}


def _action_maker(client: type[Any], import_path: str) -> Callable[[JsonObject], Any]:
    """Makes actions of the class in `EnvClient[Act, Obs, State]`; OpenEnv's MCP clients take its MCP actions."""
    from openenv.core.env_client import EnvClient
    from openenv.core.env_server.mcp_types import CallToolAction
    from openenv.core.env_server.serialization import deserialize_action
    from openenv.core.mcp_client import MCPClientBase

    action = next(iter(generic_arguments(client, EnvClient)), None)
    make: Callable[[JsonObject], Any]
    if isinstance(action, type) and issubclass(action, pydantic.BaseModel):
        make = action.model_validate
    elif isinstance(action, type) and dataclasses.is_dataclass(action):
        constructor: Callable[..., Any] = action

        def make(payload: JsonObject) -> Any:
            return constructor(**payload)
    elif (get_origin(action) or action) in (dict, Mapping):
        make = dict
    elif issubclass(client, MCPClientBase):

        def make(payload: JsonObject) -> Any:
            return deserialize_action(dict(payload), CallToolAction)
    else:
        raise EchoError(
            f"nothing says what actions '{import_path}' takes",
            "inherit from EnvClient[YourAction, YourObservation, YourState], with a pydantic model or a dataclass",
        )

    def checked(payload: JsonObject) -> Any:
        try:
            return make(payload)
        except pydantic.ValidationError as error:
            raise BadAction(fault_line(errors_text(error.errors()))) from None
        except TypeError as error:  # a dataclass has no such field, or lacks one
            raise BadAction(fault_line(str(error))) from None

    return checked


async def _awaited(call: Callable[[], Awaitable[Any]]) -> Any:
    """OpenEnv's methods give something awaitable, which is not always a coroutine."""
    return await call()


def _words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
