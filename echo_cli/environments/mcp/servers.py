"""The MCP servers of a run: one per episode, or one that all episodes share."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from mcp import types

from echo_cli.concurrency import EventLoop
from echo_cli.config.environment import EnvironmentConfig
from echo_cli.config.mcp import McpConfig
from echo_cli.environments.mcp.guard import Guard
from echo_cli.environments.mcp.session import McpSession
from echo_cli.environments.mcp.tools import Tool
from echo_cli.environments.mcp.transport import HttpTransport, StdioTransport
from echo_cli.environments.mcp.workdir import Workdir
from echo_cli.environments.openenv.address import expand_all, wire_address
from echo_cli.processes import inherited, without_current_folder

T = TypeVar("T")


@dataclass
class Server:
    """A server that serves an episode, or all of them."""

    session: McpSession
    workdir: Workdir | None
    """Folder that was made for the server; None for a URL."""
    info: types.InitializeResult
    tools: list[Tool]
    """Tools that the server lists."""


class Servers:
    """The servers of a run. Every method but `run` is used in `loop`, in which all sessions live.

    Raises:
        EchoError: an environment variable is not set, or the URL or a header is not valid.
    """

    def __init__(self, environment: EnvironmentConfig, loop: EventLoop, guard: Guard) -> None:
        assert environment.mcp is not None
        self.config: McpConfig = environment.mcp
        self.step_timeout_s = environment.step_timeout_s
        self._connect_timeout_s = environment.connect_timeout_s
        self._most_bytes = int(environment.max_message_mb * 2**20)
        self._loop, self._guard = loop, guard
        self._sessions: set[McpSession] = set()
        self._shared: Server | None = None
        self._sharing = asyncio.Lock()
        if self.config.url is None:
            self._env, secrets = expand_all(self.config.env, "environment.mcp.env", empty=True)
        else:
            headers, plain = self.config.headers, environment.grants.plain_http
            self._address = wire_address(self.config.url, headers, "environment.mcp", plain_http=plain)
            secrets = dict(self._address.secrets)
        public = {f"${{{name}}}" for name in inherited(os.environ)}  # a home folder is a part of many paths
        self.secrets: dict[str, str] = {value: name for value, name in secrets.items() if name not in public}
        """Values of environment variables that a server gets, mapped to the `${NAME}` that is shown instead."""

    async def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the servers' event loop, and wait for it in the caller's."""
        return await asyncio.wrap_future(self._loop.start(coroutine))

    async def begin(self, files: Mapping[str, str]) -> Server:
        """Return the server of an episode: the shared one, or a new one whose folder has `files`.

        A shared server that has ended is started again.

        Raises:
            SessionEnded, OSError: as `McpSession.open`.
            ValueError: the input schema of a tool is no JSON schema.
        """
        if not self.config.shared:
            return await self._started(files)
        async with self._sharing:
            if self._shared is not None and self._shared.session.has_ended:
                await self._discard_shared()
            if self._shared is None:
                self._shared = await self._started({})
            else:
                self._shared.tools = await self._shared.session.tools()
            return self._shared

    async def release(self, server: Server) -> None:
        """Stop the server of an episode, unless it is shared."""
        if server is not self._shared:
            await self._end(server.session, server.workdir)

    async def discard(self, server: Server | None) -> None:
        """Stop `server`, which does not answer, also if it is shared; None stands for the shared server."""
        if server is None or server is self._shared:
            await self._discard_shared()

    async def close(self) -> None:
        """Stop all servers."""
        await self._discard_shared()
        await asyncio.gather(*(session.close() for session in self._sessions))

    async def _discard_shared(self) -> None:
        server, self._shared = self._shared, None
        if server is not None:
            await self.release(server)

    async def _started(self, files: Mapping[str, str]) -> Server:
        """Start a server, or open an HTTP session, and list its tools; nothing is left of it after an error."""
        workdir = Workdir() if self.config.url is None else None
        session = None
        try:
            if workdir is not None:
                workdir.write(files)
            session = McpSession(self._transport(workdir))
            self._sessions.add(session)
            info = await session.open()
            return Server(session, workdir, info, await session.tools())
        except BaseException:
            await self._end(session, workdir)
            raise

    async def _end(self, session: McpSession | None, workdir: Workdir | None) -> None:
        try:
            if session is not None:
                await session.close()
                self._sessions.discard(session)
        finally:
            if workdir is not None:
                await asyncio.to_thread(workdir.remove)

    def _transport(self, workdir: Workdir | None) -> StdioTransport | HttpTransport:
        config = self.config
        if workdir is None:
            assert config.url is not None
            return HttpTransport(config.url, self._address, self._connect_timeout_s, self._most_bytes)
        words = [workdir.fill(word) for word in config.command]
        if words[0] in ("python", sys.executable):
            words = without_current_folder([sys.executable, *words[1:]])
        env = inherited(os.environ)
        # echo-cli may run from a virtual environment that nobody has activated.
        env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), env.get("PATH") or os.defpath])
        env |= {name: workdir.fill(value) for name, value in self._env.items()}
        folder = config.folder or workdir.path
        return StdioTransport(words, env, folder, workdir.path, config.limits, self._most_bytes, self._guard)
