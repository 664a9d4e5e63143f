"""A user's typed OpenEnv client, guarded against joining two episodes into one.

After a timeout or a close, OpenEnv's clients silently reconnect at the next call, to a new environment that was never
reset. Therefore the episode's id is read after the reset and compared after every answer, and a client that has failed
is never called again.
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
from echo_cli.environments.faults import BadAction, EnvironmentFault, Fault, errors_text, fault_line
from echo_cli.environments.openenv.package import generic_arguments, load_class, require_openenv
from echo_cli.environments.openenv.session import CANCELLED, SessionLimits, SessionState
from echo_cli.environments.protocol import Description, EnvironmentSource, JsonObject, Payload
from echo_cli.errors import EchoError

_CLOSE_TIMEOUT_S = 5.0
_SERVER_ERROR = re.compile(r"Server error: (.*) \(code: (\w+)\)", re.DOTALL)


class TypedClient:
    """A `protocol.Client` for one episode through a typed client.

    Args:
        make: returns a client that is not connected yet.
        action: converts a JSON object to the client's action; raises BadAction.
        name: names of the client's class and its server, for messages.
        secrets: values that no message may show, mapped to their replacements.
    """

    def __init__(
        self,
        make: Callable[[], Any],
        action: Callable[[JsonObject], Any],
        limits: SessionLimits,
        *,
        name: str,
        secrets: Mapping[str, str],
    ) -> None:
        self._make = make
        self._action = action
        self._limits = limits
        self._client: Any = None
        self._episode: Any = None
        self._session = SessionState(name, secrets)

    async def reset(self, arguments: JsonObject) -> Payload:
        """Start the episode, as specified by `protocol.Client`.

        Raises:
            EchoError: the state has no episode id, so a silent reconnection could not be detected (exit code 1).
        """
        async with self._session.lock:
            self._session.check()
            await self._connect()
            result = await self._ask(lambda: self._client.reset(**arguments))
            try:
                self._episode = await self._episode_id()
            except (BadAction, EnvironmentFault) as fault:
                raise self._refused(f"its state is not available: {fault}") from None
            if self._episode is None or self._episode == "":
                raise self._refused("its state has no episode_id")
            self._session.begun = True
            return self._payload(result)

    async def step(self, action: JsonObject) -> Payload:
        made = self._action(action)
        async with self._session.lock:
            self._session.check()
            assert self._client is not None, "reset comes first"
            try:
                result = await self._ask(lambda: self._client.step(made))
            except (BadAction, EnvironmentFault):
                await self._same_episode()
                raise
            await self._same_episode()
            return self._payload(result)

    async def close(self) -> None:
        self._session.end("the session is closed")
        client, self._client = self._client, None
        if client is not None:
            with suppress(Exception):  # from a lost connection, or the user's own close
                await wait_at_most(_CLOSE_TIMEOUT_S, client.close())

    async def _connect(self) -> None:
        try:
            self._client = self._make()
            await self._within(self._limits.connect_timeout_s, self._client.connect, "no connection")
        except Fault:
            raise
        except Exception as error:
            raise self._session.broken(_words(error)) from error

    async def _ask(self, call: Callable[[], Awaitable[Any]]) -> Any:
        try:
            return await self._within(self._limits.step_timeout_s, call, "no answer")
        except Fault:
            raise
        except Exception as error:
            raise self._fault(error) from error

    async def _within(self, seconds: float, call: Callable[[], Awaitable[Any]], late: str) -> Any:
        try:
            return await wait_at_most(seconds, call())
        except asyncio.CancelledError:
            self._session.lose(CANCELLED)
            raise
        except asyncio.TimeoutError:
            raise self._session.broken(f"{late} within {seconds:g} s") from None

    async def _episode_id(self) -> Any:
        state = await self._ask(lambda: self._client.state())
        return state.get("episode_id") if isinstance(state, Mapping) else getattr(state, "episode_id", None)

    async def _same_episode(self) -> None:
        try:
            now = await self._episode_id()
        except (BadAction, EnvironmentFault) as fault:
            raise self._session.broken(f"its state is not available: {fault}") from None
        if now != self._episode:
            raise self._session.broken("it reconnected to an environment in another episode")

    def _payload(self, result: Any) -> Payload:
        try:
            data = {"observation": result.observation, "reward": result.reward, "done": result.done}
            metadata = getattr(result, "metadata", None) or getattr(result.observation, "metadata", None)
            decoded = json.loads(to_json(data | {"metadata": metadata or None}, inf_nan_mode="null"))
            if not isinstance(result.observation, Mapping):  # OpenEnv's models repeat these two
                for name in ("reward", "done"):
                    decoded["observation"].pop(name, None)
            return Payload.from_data(self._session.without_secrets(decoded))
        except (ValueError, TypeError, AttributeError, PydanticSerializationError) as error:
            raise self._session.nonsense(f"its result is not an OpenEnv result: {_words(error)}") from error

    def _fault(self, error: Exception) -> Fault:
        """Return the fault for a client's exception. The session survives a BadAction and an EnvironmentFault."""
        from websockets.exceptions import WebSocketException

        told = _SERVER_ERROR.fullmatch(str(error)) if isinstance(error, RuntimeError) else None
        if told is None:
            gone = isinstance(error, OSError | WebSocketException)
            return (self._session.broken if gone else self._session.nonsense)(_words(error))
        text, code = told.groups()
        return self._session.fault({"message": text, "code": code})

    def _refused(self, reason: str) -> EchoError:
        return EchoError(
            f"{self._session.lose(reason)}; without an episode_id, a silent reconnection cannot be detected",
            "omit environment.client, or set episode_id in the environment's state",
            exit_code=1,
        )


class TypedSource:
    """A `protocol.EnvironmentSource` of a server's environments, used through a typed client.

    Args:
        import_path: `pkg.module:Class`, an OpenEnv `EnvClient`.
        url: the server's base URL.
        base: source of the same server without the client; provides `describe` and `ended`.
        headers: HTTP headers, their values filled in.
        headers_needed: whether a client that accepts no headers is an error; they may be our own token alone.
        secrets: values in the headers that no message may show, mapped to their replacements.

    Raises:
        EchoError: openenv is not installed, the class does not exist or does not declare the type of its actions, or
            its constructor does not accept the URL or the headers.
    """

    def __init__(
        self,
        import_path: str,
        url: str,
        base: EnvironmentSource,
        limits: SessionLimits,
        *,
        headers: Mapping[str, str] | None = None,
        secrets: Mapping[str, str] | None = None,
        headers_needed: bool = True,
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
                "connect_timeout_s": limits.connect_timeout_s,
                "message_timeout_s": limits.step_timeout_s,
                "max_message_size_mb": limits.max_message_mb,
                # The trainer may hold the GIL for longer than a ping's timeout.
                "websocket_ping_interval_s": None,
                **({"headers": dict(headers)} if headers else {}),
            },
            {"base_url": "environment.url", **({"headers": "environment.headers"} if headers_needed else {})},
        )
        self._base = base
        self._name = f"{import_path} at {url}"
        self._secrets = dict(secrets or {})
        self._limits = limits

    def describe(self) -> Description:
        return self._base.describe()

    def client(self) -> TypedClient:
        return TypedClient(
            lambda: self._class(**self._arguments),
            self._action,
            self._limits,
            name=self._name,
            secrets=self._secrets,
        )

    def ended(self) -> str | None:
        return self._base.ended()


def _taken(client: type[Any], import_path: str, arguments: dict[str, Any], needed: Mapping[str, str]) -> dict[str, Any]:
    """Return the `arguments` that the client's constructor accepts.

    Without the settings of the connection the client uses its own, and our timeouts apply as well.

    Args:
        needed: config key of each argument that must be accepted if it is given.
    """
    parameters = inspect.signature(client).parameters
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return arguments
    for name, what in needed.items():
        if name in arguments and name not in parameters:
            raise EchoError(f"'{import_path}' does not accept {name}", f"{what} needs it: add it to the constructor")
    return {name: value for name, value in arguments.items() if name in parameters}


def _action_maker(client: type[Any], import_path: str) -> Callable[[JsonObject], Any]:
    """Return a function that creates the `Act` of `EnvClient[Act, Obs, State]`, or MCP actions for MCP clients."""
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
            f"'{import_path}' does not declare the type of its actions",
            "inherit from EnvClient[YourAction, YourObservation, YourState], with a pydantic model or a dataclass",
        )

    def checked(payload: JsonObject) -> Any:
        try:
            return make(payload)
        except pydantic.ValidationError as error:
            raise BadAction(fault_line(errors_text(error.errors()))) from None
        except TypeError as error:  # unknown or missing field of a dataclass
            raise BadAction(fault_line(str(error))) from None

    return checked


def _words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
