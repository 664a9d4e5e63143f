"""One session of the MCP SDK with a server."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import anyio
from mcp import ClientSession, McpError, types
from mcp.types import CONNECTION_CLOSED

from echo_cli.environments.mcp.tools import Tool, tool_of
from echo_cli.environments.mcp.transport import Transport, end_reason
from echo_cli.environments.protocol import JsonObject

T = TypeVar("T")

_MOST_PAGES = 100
_REASON_SECONDS = 2.0
_TERMINATED = 32600
"""Code with which the SDK reports that an HTTP server does not know the session any more."""


class SessionEnded(Exception):
    """The end of the session, with its reason."""


class McpSession:
    """A session, owned by a task of its own: the SDK's contexts must be left in the task that entered them.

    A session is used in the event loop in which it was made. Requests may be made at the same time.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._closing = asyncio.Event()
        self._opened: asyncio.Future[types.InitializeResult] = asyncio.get_running_loop().create_future()
        self._session: ClientSession | None = None
        self._owner: asyncio.Task[None] | None = None

    @property
    def has_ended(self) -> bool:
        """Whether the connection has ended."""
        return self._transport.ended.done()

    async def open(self) -> types.InitializeResult:
        """Connect and initialise the session.

        Raises:
            SessionEnded: the server cannot be reached, has ended, or does not follow the protocol.
            OSError: the server cannot be started.
        """
        self._owner = asyncio.ensure_future(self._own())
        return await self._unless_ended(_result(self._opened))

    async def tools(self) -> list[Tool]:
        """Return all tools that the server lists.

        Raises:
            SessionEnded: the connection has ended, the server lists no tools, or its list has no end.
            ValueError: the input schema of a tool is no JSON schema.
        """
        listed: list[types.Tool] = []
        cursor: str | None = None
        for _ in range(_MOST_PAGES):
            params = types.PaginatedRequestParams(cursor=cursor)
            try:
                page = await self._unless_ended(self._sdk.list_tools(params=params))
            except McpError as error:
                raise SessionEnded(f"it does not list its tools: {error.error.message}") from None
            listed += page.tools
            cursor = page.nextCursor
            if not cursor:
                return [tool_of(tool) for tool in listed]
        raise SessionEnded(f"its list of tools has more than {_MOST_PAGES} pages")

    async def call(self, name: str, arguments: JsonObject) -> types.CallToolResult:
        """Call a tool and return its result.

        Raises:
            SessionEnded: the connection has ended.
            McpError: the server refused the call.
            RuntimeError: the result does not match the tool's output schema.
        """
        return await self._unless_ended(self._sdk.call_tool(name, dict(arguments)))

    async def close(self) -> None:
        """Close the session, whatever its state, and wait until nothing is left of it."""
        if self._owner is None:
            return
        if not (self._opened.done() or self._closing.is_set()):
            self._owner.cancel()  # once: a second time would interrupt the end of the server
        self._closing.set()
        await asyncio.wait({self._owner})

    @property
    def _sdk(self) -> ClientSession:
        assert self._session is not None, "open comes first"
        return self._session

    async def _own(self) -> None:
        reason = "the session is closed"
        try:
            async with (
                self._transport.streams() as (received, sent),
                ClientSession(received, sent, message_handler=self._handle) as session,
            ):
                self._session = session
                self._opened.set_result(await session.initialize())
                await self._closing.wait()
        except OSError as error:
            if not self._opened.done():
                self._opened.set_exception(error)
            reason = str(error)
        except Exception as error:  # of the SDK, httpx or anyio, perhaps in groups
            reason = end_reason(error)
        finally:
            if not self._transport.ended.done():
                self._transport.ended.set_result(reason)
            if not self._opened.done():
                self._opened.cancel()

    async def _handle(self, message: Any) -> None:
        """End the session if the server sent something else than a message; ignore notifications and late answers."""
        if isinstance(message, ValueError) and not self._transport.ended.done():
            self._transport.ended.set_result(f"its answer is no message of the protocol: {end_reason(message)}")

    async def _unless_ended(self, request: Coroutine[Any, Any, T]) -> T:
        """Return the result of a request; raise SessionEnded if the connection ends first."""
        self._transport.renew()
        task = asyncio.ensure_future(request)
        either: set[asyncio.Future[Any]] = {task, self._transport.ended}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if task.done() and not task.cancelled():
                return task.result()
        except (anyio.ClosedResourceError, anyio.BrokenResourceError):
            await self._wait_for_reason()
        except McpError as error:
            if error.error.code not in (CONNECTION_CLOSED, _TERMINATED):
                raise
            await self._wait_for_reason()
        finally:
            task.cancel()
        ended = self._transport.ended
        raise SessionEnded(ended.result() if ended.done() else "the connection was closed")

    async def _wait_for_reason(self) -> None:
        """Wait until the transport knows why the connection was closed."""
        await asyncio.wait({self._transport.ended}, timeout=_REASON_SECONDS)


async def _result(future: asyncio.Future[T]) -> T:
    return await asyncio.shield(future)
