"""The owner of one episode with an MCP server."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from mcp import McpError, types
from mcp.types import INVALID_PARAMS

from echo_cli.concurrency import wait_at_most
from echo_cli.environments.faults import BadAction, EnvironmentFault
from echo_cli.environments.mcp.results import observation_of
from echo_cli.environments.mcp.servers import Server, Servers
from echo_cli.environments.mcp.session import SessionEnded
from echo_cli.environments.mcp.task_setup import SETUP, setup_of
from echo_cli.environments.mcp.tools import Toolbox
from echo_cli.environments.openenv.session import CANCELLED, SessionState
from echo_cli.environments.protocol import JsonObject, Payload
from echo_cli.errors import EchoError

T = TypeVar("T")

_LEAVE_SECONDS = 5.0


class McpClient:
    """A `protocol.Client` for one episode. Rewards are null, and the server never ends an episode."""

    def __init__(self, servers: Servers, toolbox: Toolbox) -> None:
        self._servers, self._toolbox = servers, toolbox
        self._server: Server | None = None
        self._state = SessionState("the MCP server", servers.secrets)

    async def reset(self, arguments: JsonObject) -> Payload:
        """Start the server and make the task's setup.

        Raises:
            EchoError: a tool of the run has vanished or changed.
        """
        setup = setup_of(arguments)
        async with self._state.lock:
            self._state.check()
            limit_s = self._servers.config.start_timeout_s
            server = self._server = await self._answer(self._servers.begin(setup.files), limit_s)
            if (difference := self._toolbox.missing_from(server.tools)) is not None:
                tip = "serve the tools with which the run began, or start another run with --run-name"
                raise EchoError(f"the tools of the MCP server have changed: {difference}", tip)
            for name, given in setup.calls:
                result = await self._called(server, name, given)
                if result.isError:
                    texts = " ".join(part.text for part in result.content if part.type == "text")
                    raise EnvironmentFault(self._state.line(f"the setup's call of {name} failed: {texts}"))
        self._state.begun = True
        shown = {key: value for key, value in arguments.items() if key != SETUP}
        return self._payload(server, {**shown, "server_instructions": server.info.instructions or ""})

    async def step(self, action: JsonObject) -> Payload:
        """Call a tool, unless the call does not match the tool's schema."""
        async with self._state.lock:
            self._state.check()
            server = self._server
            assert server is not None, "reset comes first"
            name, arguments = action.get("tool_name"), action.get("arguments", {})
            if (problem := self._toolbox.problem(name, arguments)) is not None:
                raise BadAction(self._state.line(problem))
            result = await self._called(server, str(name), arguments)
        return self._payload(server, observation_of(str(name), result))

    async def close(self) -> None:
        self._state.end("the session is closed")
        server, self._server = self._server, None
        if server is not None:
            with suppress(asyncio.TimeoutError):
                await wait_at_most(_LEAVE_SECONDS, self._servers.run(self._servers.release(server)))

    async def _called(self, server: Server, name: str, arguments: JsonObject) -> types.CallToolResult:
        """Call a tool that exists; the episode's folder has its own name in `arguments`."""
        sent = arguments if server.workdir is None else server.workdir.inward(arguments)
        try:
            return await self._answer(server.session.call(name, sent), self._servers.step_timeout_s)
        except McpError as error:
            line = self._state.line(error.error.message)
            raise BadAction(line) if error.error.code == INVALID_PARAMS else EnvironmentFault(line) from None
        except RuntimeError as error:  # the result does not match the tool's own output schema
            raise EnvironmentFault(self._state.line(str(error))) from None

    async def _answer(self, request: Coroutine[Any, Any, T], limit_s: float) -> T:
        """Return the result of a request, made in the source's loop.

        Raises:
            Unavailable, SessionLost: the connection has ended, or there is no answer within `limit_s` seconds.
        """
        try:
            return await wait_at_most(limit_s, self._servers.run(request))
        except asyncio.TimeoutError:
            await self._servers.run(self._servers.discard(self._server))
            raise self._state.broken(f"no answer within {limit_s:g} s") from None
        except (SessionEnded, OSError, ValueError) as error:
            raise self._state.broken(str(error)) from None
        except asyncio.CancelledError:
            self._state.lose(CANCELLED)
            raise

    def _payload(self, server: Server, observation: dict[str, Any]) -> Payload:
        shown = observation if server.workdir is None else server.workdir.outward(observation)
        return self._state.payload({"observation": shown})
