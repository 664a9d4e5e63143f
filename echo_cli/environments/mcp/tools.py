"""The tools of an MCP server: which of them the policy may call, and the check of its calls against their schemas."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import jsonschema
from referencing import Registry
from referencing.exceptions import Unresolvable

from echo_cli.config.mcp import McpConfig
from echo_cli.environments.protocol import JsonObject
from echo_cli.errors import EchoError
from echo_cli.text import escape_unprintable, suggest

if TYPE_CHECKING:
    from mcp import types

_OBJECT: JsonObject = {"type": "object"}


@dataclass(frozen=True)
class Tool:
    """A tool as the server lists it."""

    name: str
    description: str
    schema: JsonObject
    """JSON schema of the arguments."""

    @cached_property
    def _validator(self) -> Any:
        # An empty registry: a reference to another document is an error, and nothing is fetched for it.
        return jsonschema.validators.validator_for(self.schema)(self.schema, registry=Registry())

    @property
    def for_template(self) -> JsonObject:
        """The tool as chat templates take it."""
        function = {"name": self.name, "description": self.description, "parameters": self.schema}
        return {"type": "function", "function": function}

    def problem(self, arguments: JsonObject) -> str | None:
        """Return why the server would refuse `arguments`; None if they match the schema."""
        try:
            error = jsonschema.exceptions.best_match(self._validator.iter_errors(arguments))
        except (Unresolvable, RecursionError, jsonschema.exceptions.UnknownType):
            return None  # the schema cannot be used: the server itself decides
        return None if error is None else f"{self.name}: arguments{error.json_path[1:]}: {error.message}"


def tool_of(listed: types.Tool) -> Tool:
    """Return a tool of the server's list.

    Raises:
        ValueError: its input schema is no JSON schema.
    """
    schema = listed.inputSchema
    try:
        jsonschema.validators.validator_for(schema).check_schema(schema)
    except (jsonschema.SchemaError, RecursionError) as error:
        reason = getattr(error, "message", "it is nested too deep")
        raise ValueError(f"the input schema of tool '{listed.name}' is not valid: {reason}") from None
    return Tool(listed.name, listed.description or "", schema)


@dataclass(frozen=True)
class Toolbox:
    """The tools of a server, by name. The policy may call those in `offered`; the setup of a task may call all."""

    tools: Mapping[str, Tool]
    offered: tuple[str, ...]

    @staticmethod
    def of(tools: Sequence[Tool], config: McpConfig) -> Toolbox:
        """Return the toolbox of a server's list, with `allow` and `deny` applied.

        Raises:
            EchoError: the server has no tools, `allow` or `deny` names one that it does not have, or none is left.
        """
        by_name = {tool.name: tool for tool in tools}
        if not by_name:
            raise EchoError("the MCP server has no tools", "an environment needs a server that offers tools")
        for key in ("allow", "deny"):
            for name in getattr(config, key):
                if name not in by_name:
                    raise EchoError(
                        f"environment.mcp.{key}: the server has no tool '{escape_unprintable(name)}'",
                        suggest(name, [escape_unprintable(known) for known in by_name], "tools"),
                    )
        offered = tuple(name for name in config.allow or by_name if name not in config.deny)
        if not offered:
            raise EchoError("environment.mcp.deny names every tool of the server", "leave the policy at least one")
        return Toolbox(by_name, offered)

    @property
    def for_template(self) -> tuple[JsonObject, ...]:
        """The offered tools as chat templates take them."""
        return tuple(self.tools[name].for_template for name in self.offered)

    @property
    def action_schema(self) -> JsonObject:
        """JSON schema of a call of an offered tool."""
        forms = [
            {
                "type": "object",
                "properties": {
                    "type": {"const": "call_tool"},
                    "tool_name": {"const": name},
                    "arguments": {**_OBJECT, **self.tools[name].schema},
                },
                "required": ["tool_name", "arguments"],
            }
            for name in self.offered
        ]
        return {"anyOf": forms}

    def problem(self, name: Any, arguments: Any, *, offered: bool = True) -> str | None:
        """Return why a call is not sent; None if it may be.

        Args:
            offered: whether the tool must be one that the policy may call.
        """
        known = self.offered if offered else tuple(self.tools)
        if name not in known:
            return (
                f"no tool '{escape_unprintable(str(name))}'; the tools are {', '.join(map(escape_unprintable, known))}"
            )
        if not isinstance(arguments, dict):
            return "the arguments are no JSON object"
        return self.tools[name].problem(arguments)

    def missing_from(self, tools: Sequence[Tool]) -> str | None:
        """Return how `tools`, listed later, differ for the policy; None if they offer the same."""
        now = {tool.name: tool for tool in tools}
        for name in self.offered:
            if name not in now:
                return f"'{escape_unprintable(name)}' has vanished"
            if now[name].for_template != self.tools[name].for_template:
                return f"'{escape_unprintable(name)}' has changed"
        return None
