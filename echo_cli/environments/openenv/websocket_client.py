"""Environments behind a URL: OpenEnv's wire protocol, JSON text over one websocket per episode.

    → {"type": "reset" | "step" | "state" | "close", "data": {…}}
    ← {"type": "observation" | "state" | "error", "data": {…}}

Requests and replies alternate strictly and have no ids: a late reply would be taken for the reply to the next request.
Therefore any failure ends the connection. It is never reopened, because a new connection reaches another environment.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from echo_cli.concurrency import EventLoop
from echo_cli.environments.faults import BadAction, EnvironmentFault, SessionLost, Unavailable
from echo_cli.environments.openenv.address import WireAddress, wire_address
from echo_cli.environments.openenv.server_info import ask_server
from echo_cli.environments.openenv.session import CANCELLED, SessionLimits, SessionState
from echo_cli.environments.openenv.websocket import (
    CLOSE_TIMEOUT_S,
    decode,
    encode,
    is_refused,
    open_connection,
    why_closed,
)
from echo_cli.environments.protocol import Description, JsonObject, Payload


class WireClient:
    """A `protocol.Client` for one episode on one connection. A cancelled call loses the session."""

    def __init__(self, address: WireAddress, limits: SessionLimits) -> None:
        self._address = address
        self._limits = limits
        self._connection: ClientConnection | None = None
        self._session = SessionState(address.http, address.secrets, self._abort)

    async def reset(self, arguments: JsonObject) -> Payload:
        payload = self._session.payload(await self._ask("reset", "observation", arguments))
        self._session.begun = True
        return payload

    async def step(self, action: JsonObject) -> Payload:
        return self._session.payload(await self._ask("step", "observation", action))

    async def state(self) -> JsonObject:
        """Return the environment's state. Like `reset`, open the session if it is not open; raise the same errors."""
        return await self._ask("state", "state", None)

    async def close(self) -> None:
        connection, lost = self._connection, self._session.lost
        self._session.end("the session is closed")
        if connection is None or lost is not None:
            return
        if self._session.lock.locked():  # a caller that waits for an answer fails at once
            connection.transport.abort()
            return
        timer = asyncio.get_running_loop().call_later(CLOSE_TIMEOUT_S, connection.transport.abort)
        try:
            # The server frees the session before it closes the connection. If we closed first, the session could
            # still be occupied when the next episode requests one.
            await connection.send('{"type":"close"}')
            while True:
                await connection.recv()
        except ConnectionClosed:
            pass
        finally:
            timer.cancel()
            connection.transport.abort()

    async def _ask(self, kind: str, answer: str, data: JsonObject | None) -> dict[str, Any]:
        """Send a request of type `kind` and return the `data` of its reply, which must be of type `answer`."""
        async with self._session.lock:
            self._session.check()
            request = encode({"type": kind} if data is None else {"type": kind, "data": data})
            if self._connection is None:
                assert kind != "step", "reset comes first"
                self._connection = await self._open()
                if self._session.lost is not None:  # `close` was called in the meantime
                    self._abort()
                    self._session.check()
            reply, why_unsent = await self._exchange(self._connection, request)
            return self._data(reply, answer, why_unsent)

    async def _open(self) -> ClientConnection:
        try:
            return await open_connection(self._address, self._limits)
        except Unavailable as error:
            raise self._session.broken(str(error)) from None
        except asyncio.CancelledError:
            self._session.lose(CANCELLED)
            raise

    async def _exchange(self, connection: ClientConnection, request: str) -> tuple[str | bytes, str | None]:
        """Send `request`; return the next message and, if the request could not be sent, the reason."""
        expired = False

        def expire() -> None:  # a timer per step costs less than a task of `asyncio.wait_for`
            nonlocal expired
            expired = True
            connection.transport.abort()

        timer = asyncio.get_running_loop().call_later(self._limits.step_timeout_s, expire)
        why_unsent = None
        try:
            try:
                await connection.send(request)
            except ConnectionClosed as closed:
                # A server without a free session sends an error and closes, perhaps before our request.
                why_unsent = why_closed(closed)
            return await connection.recv(), why_unsent
        except ConnectionClosed as closed:
            session = self._session
            if session.lost is not None:
                raise SessionLost(session.lost) from None  # `close` was called in the meantime
            if expired:
                raise session.broken(f"no answer within {self._limits.step_timeout_s:g} s") from None
            raise (session.nonsense if is_refused(closed) else session.broken)(why_closed(closed)) from None
        except asyncio.CancelledError:
            self._session.lose(CANCELLED)
            raise
        finally:
            timer.cancel()

    def _data(self, reply: str | bytes, answer: str, why_unsent: str | None) -> dict[str, Any]:
        try:
            kind, data = decode(reply)
        except ValueError as error:
            raise self._session.nonsense(f"it sent {error}") from None
        if kind == "error":
            raise self._session.fault(data)
        if why_unsent is not None:
            raise self._session.broken(why_unsent)
        if kind != answer:
            raise self._session.nonsense(f"it sent a message of type {json.dumps(kind)} instead of {answer}")
        return data

    def _abort(self) -> None:
        if self._connection is not None:
            self._connection.transport.abort()


class WireSource:
    """A `protocol.EnvironmentSource` of the environments of a server.

    Args:
        url: base URL (http, https, ws or wss); its path is kept, and the websocket is at `{url}/ws`.
        headers: template per header name, in which `${NAME}` is filled from the environment variables.
        sessions_wanted: if the server does not publish its capacity, `describe` opens up to this number of sessions to
            measure it; 0 disables this.
        ended: returns why the server has ended; None if it runs, or is not watched.
        plain_http, token, known: as in `wire_address`.

    Raises:
        EchoError: as in `wire_address`.
    """

    def __init__(
        self,
        url: str,
        headers: Mapping[str, str],
        limits: SessionLimits,
        *,
        sessions_wanted: int = 0,
        ended: Callable[[], str | None] = lambda: None,
        plain_http: bool = False,
        token: str = "",
        known: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.address = wire_address(url, headers, plain_http=plain_http, token=token, known=known)
        self._limits = limits
        self._sessions_wanted = sessions_wanted
        self._ended = ended

    def describe(self) -> Description:
        """Read the server's description. Do not call this inside an event loop.

        Raises:
            EchoError: the server cannot be reached or refuses to answer (exit code 1), or does not speak OpenEnv.
        """
        description = ask_server(self.address, self._limits.connect_timeout_s)
        if description.sessions is not None or self._sessions_wanted == 0:
            return description
        with EventLoop() as loop:
            return replace(description, sessions=loop.run(self.free_sessions(self._sessions_wanted)))

    def client(self) -> WireClient:
        return WireClient(self.address, self._limits)

    def ended(self) -> str | None:
        return self._ended()

    async def free_sessions(self, wanted: int) -> int | None:
        """Return the number of sessions, up to `wanted`, that can be open at once; None if not even one can.

        A server reveals its capacity only by refusing a session, and it creates an environment for every session that
        it accepts. This method therefore opens sessions, doubling their number until one is refused, and closes all of
        them. It requests at most `wanted` sessions, which the caller would open anyway, and only two from a server that
        has one.
        """
        opened: list[WireClient] = []
        granted = 0
        try:
            while granted == len(opened) < wanted:
                more = [self.client() for _ in range(min(max(1, granted), wanted - granted))]
                opened += more
                granted += sum(await asyncio.gather(*(_has_session(client) for client in more)))
        finally:
            await asyncio.gather(*(client.close() for client in opened))
        return granted or None


async def _has_session(client: WireClient) -> bool:
    try:
        await client.state()
    except (BadAction, EnvironmentFault):  # the session has an environment, which has no state before its reset
        return True
    except (Unavailable, SessionLost):
        return False
    return True
