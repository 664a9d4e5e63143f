"""Connections to MCP servers: a started process, over stdin and stdout, or a URL, over streamable HTTP.

The SDK's own stdio client reads lines of any length and cannot tell how its server ended. Both connections here end,
with a reason, when the server has sent more than `most_bytes` since the last request.
"""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Any, Protocol

import anyio
import httpx
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.message import SessionMessage
from mcp.types import JSONRPCMessage

from echo_cli.config.mcp import McpLimits
from echo_cli.environments.mcp.guard import Guard
from echo_cli.environments.openenv.address import WireAddress
from echo_cli.environments.openenv.provider_limits import kill_processes, kill_processes_below, processes_below
from echo_cli.errors import first_line

_MIB = 2**20
_POLL_SECONDS = 0.02
_TAIL_BYTES = 4096
_TAIL_LINES = 2
_TAIL_SECONDS = 0.2
_EXIT_SECONDS = 1.0
"""Seconds that a server has to end after its stdin is closed, before it is killed."""

Streams = tuple[MemoryObjectReceiveStream[SessionMessage | Exception], MemoryObjectSendStream[SessionMessage]]


class Transport(Protocol):
    """One connection. It is used in the event loop in which it was made."""

    ended: asyncio.Future[str]
    """Reason for the end of the connection, once it has ended."""

    def streams(self) -> AbstractAsyncContextManager[Streams]:
        """Connect, and yield the streams of received and of sent messages."""

    def renew(self) -> None:
        """Allow the server to send `most_bytes` again."""


class _Counted:
    """The end of a connection, and the bytes that the server may still send before it."""

    def __init__(self, most_bytes: int) -> None:
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._most_bytes = most_bytes
        self._left = most_bytes

    def renew(self) -> None:
        self._left = self._most_bytes

    def end(self, reason: str) -> None:
        if not self.ended.done():
            self.ended.set_result(reason)

    def count(self, received: int) -> bool:
        """Count received bytes; return whether the server may send more."""
        self._left -= received
        if self._left < 0:
            self.end(f"it sent more than {self._most_bytes / _MIB:g} MiB (environment.max_message_mb)")
        return self._left >= 0


class StdioTransport(_Counted):
    """A server that is started with `words` and stopped, with all of its processes, at the end of `streams`.

    Args:
        folder: working directory.
        own_folder: folder that the guard removes if this process is killed.
    """

    def __init__(
        self,
        words: Sequence[str],
        env: Mapping[str, str],
        folder: str,
        own_folder: str,
        limits: McpLimits,
        most_bytes: int,
        guard: Guard,
    ) -> None:
        super().__init__(most_bytes)
        self._words, self._env, self._folder, self._own_folder = words, env, folder, own_folder
        self._limits, self._guard = limits, guard
        self._tail = b""
        self._noise = ""

    @asynccontextmanager
    async def streams(self) -> AsyncIterator[Streams]:
        """Start the server.

        Raises:
            OSError: it cannot be started.
        """
        process = await asyncio.create_subprocess_exec(
            *self._words,
            env=self._env,
            cwd=self._folder,
            stdin=PIPE,
            stdout=PIPE,
            stderr=PIPE,
            limit=self._most_bytes,
            start_new_session=True,
        )
        self._guard.started(process.pid, self._own_folder)
        _limit(process.pid, self._limits)
        into, received = anyio.create_memory_object_stream[SessionMessage | Exception](0)
        sent, outgoing = anyio.create_memory_object_stream[SessionMessage](0)
        tail = asyncio.ensure_future(self._keep_tail(process))
        watch = asyncio.ensure_future(self._watch(process, tail))
        tasks = [asyncio.ensure_future(each) for each in (self._read(process, into), self._write(process, outgoing))]
        try:
            async with received, sent, into, outgoing:
                yield received, sent
        finally:
            with anyio.CancelScope(shield=True):
                await self._stop(process)
                await watch
                for task in (tail, *tasks):
                    task.cancel()
                await asyncio.gather(tail, *tasks, return_exceptions=True)
                await _drain(process)

    async def _read(self, process: Process, into: MemoryObjectSendStream[SessionMessage | Exception]) -> None:
        assert process.stdout is not None
        async with into:
            while True:
                try:
                    line = await process.stdout.readuntil()
                except asyncio.IncompleteReadError:
                    return
                except asyncio.LimitOverrunError:
                    self.count(self._most_bytes + 1)
                    return
                if not self.count(len(line)):
                    return
                try:
                    message = JSONRPCMessage.model_validate_json(line)
                except ValueError:  # servers print a banner, or a log
                    self._noise = line.decode(errors="replace")
                    continue
                await into.send(SessionMessage(message))

    @staticmethod
    async def _write(process: Process, outgoing: MemoryObjectReceiveStream[SessionMessage]) -> None:
        assert process.stdin is not None
        with suppress(ConnectionError):  # `_watch` tells why
            async for sent in outgoing:
                process.stdin.write(sent.message.model_dump_json(by_alias=True, exclude_none=True).encode() + b"\n")
                await process.stdin.drain()

    async def _keep_tail(self, process: Process) -> None:
        assert process.stderr is not None
        while printed := await process.stderr.read(2**16):
            self._tail = (self._tail + printed)[-_TAIL_BYTES:]

    async def _watch(self, process: Process, tail: asyncio.Future[None]) -> None:
        """End the connection when the server ends, and say how, with its last output."""
        code = await _exit_code(process)
        await asyncio.wait({tail}, timeout=_TAIL_SECONDS)  # its children may keep the pipe open
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        said = [*self._tail.decode(errors="replace").splitlines(), *self._noise.splitlines()]
        lines = [line.strip() for line in said if line.strip()][-_TAIL_LINES:]
        self.end(f"the server has ended, {how}{f'; its last output: {chr(32).join(lines)}' if lines else ''}")

    async def _stop(self, process: Process) -> None:
        """Close the server's stdin, wait for its end, and kill what is left of its processes."""
        assert process.stdin is not None
        below = processes_below(process.pid)
        process.stdin.close()
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(_exit_code(process), 0 if self.ended.done() else _EXIT_SECONDS)
        if process.returncode is None:
            kill_processes_below(process.pid)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        kill_processes(below)
        await _exit_code(process)
        self._guard.ended(process.pid)


async def _exit_code(process: Process) -> int:
    """Wait for the end of a process. asyncio's own `wait` also waits for the ends of its pipes."""
    while process.returncode is None:
        await asyncio.sleep(_POLL_SECONDS)
    return process.returncode


async def _drain(process: Process) -> None:
    """Read the pipes of a process that has ended to their ends, so that asyncio closes them."""
    for pipe in (process.stdout, process.stderr):
        assert pipe is not None
        with suppress(asyncio.TimeoutError):  # a process that left the group may keep the pipe open
            while await asyncio.wait_for(pipe.read(2**20), _TAIL_SECONDS):
                pass


def _limit(process: int, limits: McpLimits) -> None:
    """Limit the memory and the files of a process and of the processes that it starts from now on (Linux)."""
    if sys.platform != "linux":
        return
    for kind, megabytes in ((resource.RLIMIT_DATA, limits.memory_mb), (resource.RLIMIT_FSIZE, limits.file_mb)):
        if megabytes is not None:
            with suppress(ProcessLookupError, PermissionError, ValueError):  # it has ended, or has a lower limit
                resource.prlimit(process, kind, (megabytes * _MIB, megabytes * _MIB))


class HttpTransport(_Counted):
    """A session with the server at `url`.

    Args:
        address: the URL's address, with its headers.
        connect_timeout_s: maximum duration of connecting, seconds.
    """

    def __init__(self, url: str, address: WireAddress, connect_timeout_s: float, most_bytes: int) -> None:
        super().__init__(most_bytes)
        self._url, self._address, self._connect_timeout_s = url, address, connect_timeout_s

    @asynccontextmanager
    async def streams(self) -> AsyncIterator[Streams]:
        """Connect to the server.

        Raises:
            httpx.HTTPError: the server cannot be reached, or refuses a request; in an exception group.
        """
        async with (
            httpx.AsyncClient(
                # A short answer could expand to any size if it were compressed.
                headers={**self._address.headers, "Accept-Encoding": "identity"},
                timeout=httpx.Timeout(None, connect=self._connect_timeout_s),
                trust_env=not self._address.loopback,
                event_hooks={"response": [self._count_response]},
            ) as client,
            streamable_http_client(self._url, http_client=client) as (received, sent, _),
        ):
            yield received, sent

    async def _count_response(self, response: httpx.Response) -> None:
        if response.headers.get("Content-Encoding", "identity") != "identity":
            self.end("it sent a compressed answer, which was not asked for")
        assert isinstance(response.stream, httpx.AsyncByteStream)
        response.stream = _CountedStream(response.stream, self, is_answer=response.request.method == "POST")


class _CountedStream(httpx.AsyncByteStream):
    """The body of a response. The end of an answer in the middle ends the connection."""

    def __init__(self, body: httpx.AsyncByteStream, connection: _Counted, *, is_answer: bool) -> None:
        self._body, self._connection, self._is_answer = body, connection, is_answer

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for part in self._body:
                if self._connection.ended.done() or not self._connection.count(len(part)):
                    raise httpx.StreamError("the connection has ended")
                yield part
        except httpx.HTTPError as error:
            if self._is_answer:
                self._connection.end(f"the answer broke off: {first_line(error)}")
            raise

    async def aclose(self) -> None:
        await self._body.aclose()


def end_reason(error: BaseException) -> str:
    """Return what ended a connection, given an exception of the SDK, perhaps in groups."""
    inner: Any = error
    while getattr(inner, "exceptions", None):
        inner = inner.exceptions[0]
    return first_line(inner)
