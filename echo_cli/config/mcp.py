"""The `mcp` section of a config: a server of the Model Context Protocol, and tool calls in scripts."""

from __future__ import annotations

import json
import shlex
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from echo_cli.config.section import (
    AbsolutePath,
    FreeOnResume,
    Headers,
    Positive,
    Seconds,
    Section,
    refuse_credentials,
    refuse_secret_words,
    refuse_secrets,
)
from echo_cli.errors import EchoError

MCP_PRESETS = ("mcp", "mcp_sqlite", "mcp_git", "mcp_time", "mcp_filesystem", "mcp_everything")
"""Presets of MCP servers. Each is read on top of `mcp`, the preset of every MCP server."""


_OF_COMMAND = tuple((key, "command") for key in ("env", "folder", "limits"))


class McpLimits(Section):
    """Limits of each process of a started server; null switches a limit off. They apply on Linux."""

    memory_mb: Positive | None = 8192
    """Maximum size of the data of a process, MiB."""
    file_mb: Positive | None = 1024
    """Maximum size of a file that it writes, MiB."""


class McpConfig(Section):
    """A server of the Model Context Protocol: one that is started with `command`, or one at `url` (streamable HTTP).

    Each episode has a server of its own, started in a new temporary folder, or an HTTP session of its own. `{workdir}`
    in `command` and `env` is replaced by the path of the folder.
    """

    command: FreeOnResume[tuple[str, ...]] = ()
    """Program and arguments; `python` is the interpreter that runs echo-cli."""
    url: FreeOnResume[Annotated[str, Field(pattern=r"^https?://[^\s/]+\S*$")] | None] = None
    headers: FreeOnResume[Headers] = Field(default={})
    """HTTP headers for `url`; values refer to environment variables as `${NAME}`, also when stored."""
    env: FreeOnResume[dict[str, str]] = Field(default={})
    """Environment variables of a started server; a value may refer to one of this process as `${NAME}`."""
    folder: FreeOnResume[AbsolutePath | None] = None
    """Working directory of a started server; null means the episode's own folder."""
    allow: tuple[str, ...] = ()
    """Names of the tools that the policy may call; empty means all tools."""
    deny: tuple[str, ...] = ()
    """Names of the tools that the policy may not call."""
    shared: bool = False
    """Whether all episodes share one server, or one HTTP session, with whatever earlier episodes changed in it."""
    start_timeout_s: FreeOnResume[Seconds] = 60.0
    """Maximum time until a server has started and listed its tools, seconds."""
    limits: FreeOnResume[McpLimits] = McpLimits()

    @model_validator(mode="after")
    def _one_place(self) -> McpConfig:
        if bool(self.command) == (self.url is not None):
            given = "both command and url" if self.command else "neither command nor url"
            raise EchoError(f"environment.mcp sets {given}", "set exactly one of command and url")
        for key, place in (*_OF_COMMAND, ("headers", "url")):
            if not getattr(self, place) and getattr(self, key) != type(self).model_fields[key].default:
                raise EchoError(f"environment.mcp.{key} has no effect without {place}", "omit it")
        if twice := sorted({*self.allow} & {*self.deny}):
            raise EchoError(f"environment.mcp allows and denies {', '.join(twice)}", "name each tool once")
        return self

    @model_validator(mode="after")
    def _no_secrets(self) -> McpConfig:
        refuse_secrets("environment.mcp.env", self.env)
        refuse_secret_words("environment.mcp.command", self.command)
        refuse_credentials("environment.mcp.url", self.url)
        return self

    @property
    def place(self) -> str:
        """The command line or the URL, as text for people."""
        return self.url or shlex.join(self.command)


def tool_call_line(name: str, arguments: Any) -> str:
    """Return a tool call as the line that `action.kind: tool_call` parses."""
    return (
        f"<tool_call>{json.dumps({'name': name, 'arguments': arguments}, ensure_ascii=False, default=str)}</tool_call>"
    )


def action_line(action: Any) -> Any:
    """Return the line of a script's tool call, given as `{name, arguments}`; other values are returned unchanged."""
    if isinstance(action, dict) and {"name"} <= action.keys() <= {"name", "arguments"}:
        return tool_call_line(action["name"], action.get("arguments", {}))
    return action


ActionLine = Annotated[str, BeforeValidator(action_line)]
"""A line of a script; a tool call may be given as a mapping."""
