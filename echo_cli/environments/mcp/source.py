"""An MCP server as a source of environments."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from echo_cli.concurrency import EventLoop, wait_at_most
from echo_cli.config.environment import EnvironmentConfig
from echo_cli.environments.faults import fault_line
from echo_cli.environments.mcp.client import McpClient
from echo_cli.environments.mcp.guard import Guard
from echo_cli.environments.mcp.results import FIELDS
from echo_cli.environments.mcp.servers import Server, Servers
from echo_cli.environments.mcp.session import SessionEnded
from echo_cli.environments.mcp.task_setup import check_setups
from echo_cli.environments.mcp.tools import Toolbox
from echo_cli.environments.protocol import Description
from echo_cli.environments.tasks import Task
from echo_cli.errors import EchoError
from echo_cli.processes import hide_memory
from echo_cli.text import clipped

_SESSIONS = 8
"""Number of episodes at once unless `environment.sessions` sets it: each may start a server."""


class McpSource:
    """A `protocol.EnvironmentSource` of MCP servers. `describe` comes before the first client.

    Args:
        tasks: all tasks of the run, whose setups are checked.
    """

    def __init__(self, servers: Servers, loop: EventLoop, tasks: Sequence[Task]) -> None:
        self._servers, self._loop, self._tasks = servers, loop, tasks
        self._toolbox = Toolbox({}, ())

    def describe(self) -> Description:
        """Start a server, list its tools, and check the setups of the tasks.

        Raises:
            EchoError: the server cannot be started or reached or does not follow the protocol, lacks tools that the
                config names, or a task's setup does not fit.
        """
        config = self._servers.config
        try:
            server = self._loop.run(wait_at_most(config.start_timeout_s, self._listed()))
        except asyncio.TimeoutError:
            raise self._no_server(f"it did not list its tools within {config.start_timeout_s:g} s") from None
        except OSError as error:
            raise self._no_server(f"it cannot be started: {error.strerror or error}") from None
        except (SessionEnded, ValueError) as error:
            raise self._no_server(str(error)) from None
        self._toolbox = Toolbox.of(server.tools, config)
        check_setups(self._tasks, config, self._toolbox)
        return Description(
            name=fault_line(server.info.serverInfo.name) or "MCP server",
            action_schema=self._toolbox.action_schema,
            observation_schema={"type": "object", "properties": FIELDS},
            sessions=_SESSIONS,
            tools=self._toolbox.for_template,
        )

    def client(self) -> McpClient:
        return McpClient(self._servers, self._toolbox)

    def ended(self) -> str | None:
        return None  # a server can be started again

    async def _listed(self) -> Server:
        server = await self._servers.begin({})
        await self._servers.release(server)
        return server

    def _no_server(self, reason: str) -> EchoError:
        """Return the error for a server that cannot be used."""
        config = self._servers.config
        tip = "start it by hand to see why"
        if config.url is not None:
            tip = "give the URL of its streamable HTTP endpoint, which often ends in /mcp"
        elif config.folder is None:
            tip += "; it runs in a new folder, so write absolute paths, or set environment.mcp.folder"
        place, why = clipped(" ".join(config.place.split())), fault_line(reason, self._servers.secrets)
        return EchoError(f"no MCP server at '{place}': {why}", tip)


def _is_of_others(record: logging.LogRecord) -> bool:
    return "/mcp/shared/" not in Path(record.pathname).as_posix()


@contextmanager
def open_mcp(environment: EnvironmentConfig, tasks: Sequence[Task]) -> Iterator[McpSource]:
    """Yield the source of `environment.mcp`; its servers stop at the end of the block.

    Args:
        tasks: all tasks of the run, whose setups are checked.

    Raises:
        EchoError: an environment variable is not set, or the URL or a header is not valid.
    """
    # The SDK logs what becomes a fault, in part without a logger of its own.
    logging.getLogger("mcp").addHandler(logging.NullHandler())
    logging.getLogger().addFilter(_is_of_others)
    hide_memory()
    guard = Guard()
    try:
        with EventLoop("mcp") as loop:
            servers = Servers(environment, loop, guard)
            try:
                yield McpSource(servers, loop, tasks)
            finally:
                loop.run(servers.close())
    finally:
        guard.close()
