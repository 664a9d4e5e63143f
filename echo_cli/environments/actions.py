"""Input mapping: parse the policy's line into an action, and check actions against the environment's schema.

Only this module decides whether a line is an action.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, NoReturn

from echo_cli.config.environment import ActionConfig
from echo_cli.environments.action_schema import Misfit, Unknown, find_misfit
from echo_cli.environments.protocol import JsonObject
from echo_cli.errors import EchoError
from echo_cli.text import escape_unprintable, json_problem, suggest

TEMPLATE = "environment.action.template"
DEPTH = 64
"""Maximum nesting depth of an action, levels; encoding deeper values could exceed Python's recursion limit."""

HOLE = re.compile(r"\{text(?::(\w*))?\}")
"""Placeholder in a template; its group is the cast."""
_INT = re.compile(r"[+-]?[0-9]{1,4000}")
_FLOAT = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_SURROGATE = re.compile("[\ud800-\udfff]")
CAST_TYPES = {"int": "integer", "float": "number", "bool": "boolean", "json": None}
"""JSON schema type of the value that each cast produces; None for any type."""

# An MCP environment publishes its own action class or OpenEnv's base class, neither of which lists these fields, but
# its server accepts them (openenv.core.env_server.serialization).
_CALL_TOOL: JsonObject = {
    "type": "object",
    "properties": {
        "type": {"const": "call_tool"},
        "tool_name": {"type": "string"},
        "arguments": {"type": "object"},
        "metadata": {"type": "object"},
    },
    "required": ["type", "tool_name"],
    "additionalProperties": False,
}


class Unparsable(Exception):
    """A policy's line that is not an action; `reason` is one short line in the harness's own words.

    `parse` is `none` if the line contains no action, `malformed` if it contains a faulty action.
    """

    def __init__(self, reason: str, parse: Literal["malformed", "none"] = "malformed") -> None:
        super().__init__(reason)
        self.reason = reason
        self.parse = parse


class ActionMapping:
    """A parser from text to actions, configured by `environment.action`.

    Raises:
        EchoError: the template is missing, has no `{text}`, or has an unknown cast.
    """

    def __init__(self, config: ActionConfig) -> None:
        self._kind = config.kind
        self._template = _template(config)
        self._extract = re.compile(config.extract) if config.extract is not None else None

    def parse(self, text: str) -> JsonObject:
        """Return the action of one line, as JSON.

        Raises:
            Unparsable: the line is not an action.
        """
        text = _SURROGATE.sub("\ufffd", text)
        if self._extract is not None:
            text = _extracted(self._extract, text)
        try:
            return self._action(text)
        except Unparsable as error:
            if text.strip():
                raise
            raise Unparsable(error.reason, "none") from None

    def _action(self, text: str) -> JsonObject:
        if self._kind == "tool_call":
            return _tool_call(text)
        if self._kind == "json":
            return _object(_decoded(text), "the line")
        action: JsonObject = _filled(self._template, lambda leaf: _value(leaf, text))
        return action


def wrap_action(config: ActionConfig, line: str) -> str:
    """Return `line` as a policy writes it, in the shortest text around it that `action.extract` asks for.

    A line from which `extract` already takes an action is returned unchanged, and so is one that cannot be wrapped: the
    pattern has no group, or refuses the line itself.
    """
    if config.extract is None:
        return line
    pattern = re.compile(config.extract)
    if pattern.search(line) is not None or pattern.groups == 0:
        return line
    wrapped, _ = _Shortest(pattern, line).text()
    found = pattern.search(wrapped)
    return wrapped if found is not None and (found.group(1) or "").strip() == line.strip() else line


class _Shortest:
    """A parser of a regular expression that writes the shortest text it matches, with a line as the first group.

    The text may not match where a part of the pattern depends on the text around it, such as a look-ahead.
    """

    def __init__(self, pattern: re.Pattern[str], line: str) -> None:
        self._pattern, self._line = pattern.pattern, line
        self._ignored = re.compile(r"(?:\s+|#.*)*" if pattern.flags & re.VERBOSE else "")
        self._at = self._groups = 0

    def text(self) -> tuple[str, bool]:
        """Return the text of the alternatives up to a closing bracket, and whether the line is part of it."""
        found = [self._sequence()]
        while self._take(re.compile(r"\|")):
            found.append(self._sequence())
        return next((one for one in found if one[1]), found[0])

    def _sequence(self) -> tuple[str, bool]:
        text, whole = "", False
        while self._next() not in ("", "|", ")"):
            part, holds = self._atom()
            repeat = self._take(_REPEAT)
            least = 1 if repeat is None or repeat[0][0] == "+" else int(repeat[1] or 0)
            text, whole = text + part * (least or int(holds)), whole or holds
        return text, whole

    def _atom(self) -> tuple[str, bool]:
        if group := self._take(_GROUP):
            kind = group[1] or ""
            self._groups += (captures := kind == "" or kind.startswith("?P<"))
            first = captures and self._groups == 1
            if kind.endswith(")"):  # flags, a comment or a reference
                return "", False
            inner = self.text()
            self._at += 1
            looks = kind.endswith(("=", "!"))
            return (self._line, True) if first else ("", False) if looks else inner
        if one := self._take(_ESCAPE_OR_CLASS):
            return _character(one[0]), False
        self._at += 1
        character = self._pattern[self._at - 1]
        return {"^": "", "$": "", ".": " "}.get(character, character), False

    def _next(self) -> str:
        self._take(self._ignored)
        return self._pattern[self._at : self._at + 1]

    def _take(self, token: re.Pattern[str]) -> re.Match[str] | None:
        found = token.match(self._pattern, self._at)
        self._at = found.end() if found else self._at
        return found


_REPEAT = re.compile(r"(?:[*+?]|\{(?=,?\d)(\d*)(?:,\d*)?\})[?+]?")
_GROUP = re.compile(r"\((\?(?:P<\w+>|P=\w+\)|<?[=!]|#[^)]*\)?|>|[a-zA-Z-]*[:)]))?")
_ESCAPE_OR_CLASS = re.compile(
    r"\\(?:x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|.)|\[\^?\]?(?:\\.|[^\]\\])*\]?", re.DOTALL
)


def _character(source: str) -> str:
    """Return a character that an escape or a class of characters matches; none if it matches a position."""
    likely = source + _USUAL if re.match(r"\[[^^]", source) else _USUAL + source
    try:
        one = re.compile(source)
    except re.error:  # a reference to a group
        return ""
    return next((character for character in (*likely, *map(chr, range(0x250))) if one.fullmatch(character)), "")


_USUAL = " x0\n"


def check_action(config: ActionConfig, schema: JsonObject) -> None:
    """Check the actions that `config` produces against the action schema that the environment publishes.

    Raises:
        EchoError: the environment would refuse every action; the message names the field and the accepted values.
    """
    template = _template(config)
    if config.kind == "template":
        check_payload(_filled(template, _unknown), schema, TEMPLATE)
    if config.kind == "tool_call":
        call = {"type": "call_tool", "tool_name": Unknown("string"), "arguments": Unknown("object")}
        if _misfit(call, schema) is not None:
            fields = ", ".join(escape_unprintable(name) for name in _properties(schema)) or "none"
            raise EchoError(
                f"environment.action.kind is tool_call, but the environment accepts no tool calls (fields: {fields})",
                f"set environment.action.kind to template and fill these fields in {TEMPLATE}",
            )


def check_payload(payload: JsonObject, schema: JsonObject, where: str) -> None:
    """Check one action, which may contain `Unknown` values, against the environment's action schema.

    Raises:
        EchoError: the environment would refuse the action; the message names the field below `where`, a config key.
    """
    misfit = _misfit(payload, schema)
    if misfit is not None:
        raise EchoError(f"{where}{misfit.at} {misfit.problem}", misfit.tip)


def _misfit(action: JsonObject, schema: JsonObject) -> Misfit | None:
    try:
        return find_misfit(action, _published(action, schema))
    except RecursionError:
        raise EchoError("the environment's action schema is nested too deep to check", "fix its /schema") from None


def _published(action: JsonObject, schema: JsonObject) -> JsonObject:
    """Return the schema to check `action` against: `_CALL_TOOL` for an MCP environment's tool calls, else `schema`."""
    properties = _properties(schema)
    kind = properties.get("type")
    lists_tools = isinstance(kind, Mapping) and kind.get("const") == "list_tools"
    is_mcp = "anyOf" not in schema and "oneOf" not in schema and (lists_tools or not set(properties) - {"metadata"})
    return _CALL_TOOL if is_mcp and action.get("type") == "call_tool" else schema


def _properties(schema: JsonObject) -> JsonObject:
    properties = schema.get("properties")
    return properties if isinstance(properties, Mapping) else {}


def _template(config: ActionConfig) -> JsonObject:
    """Return the template with all its strings validated; empty if the kind needs no template."""
    if config.kind != "template":
        if config.template is not None:
            raise EchoError(f"{TEMPLATE} is not used with kind {config.kind}", f"set {TEMPLATE} to null")
        return {}
    if config.template is None:
        raise EchoError(f"{TEMPLATE} is missing", 'set the action\'s fields, for example {command: "{text}"}')
    leaves: list[str] = []
    _filled(config.template, leaves.append)
    for leaf in leaves:
        for hole in HOLE.finditer(leaf):
            cast = hole.group(1)
            if cast is not None and cast not in CAST_TYPES:
                raise EchoError(f"{TEMPLATE}: unknown cast '{cast}' in {leaf!r}", suggest(cast, CAST_TYPES, "casts"))
            if cast is not None and hole.group() != leaf:
                raise EchoError(
                    f"{TEMPLATE}: {hole.group()} must be the whole string, not a part of {leaf!r}", "write {text}"
                )
    if not any(HOLE.search(leaf) for leaf in leaves):
        raise EchoError(f"{TEMPLATE} has no {{text}}: every action would be the same", "put {text} into a field")
    return config.template


def _filled(node: Any, leaf: Callable[[str], Any]) -> Any:
    """Return a template with `leaf` applied to every string."""
    if isinstance(node, str):
        return leaf(node)
    if isinstance(node, dict):
        return {name: _filled(value, leaf) for name, value in node.items()}
    return [_filled(value, leaf) for value in node] if isinstance(node, list) else node


def _value(leaf: str, text: str) -> Any:
    hole = HOLE.fullmatch(leaf)
    if hole is None or hole.group(1) is None:
        return leaf.replace("{text}", text)
    return _cast(hole.group(1), text)


def _unknown(leaf: str) -> Any:
    """Return the value of a template's string as far as it is known without the policy's text."""
    hole = HOLE.fullmatch(leaf)
    if hole is None or hole.group(1) is None:
        return Unknown("string") if "{text}" in leaf else leaf
    return Unknown(CAST_TYPES[hole.group(1)])


def _cast(cast: str, text: str) -> Any:
    if cast == "json":
        return _decoded(text)
    word = text.strip()
    if cast == "int" and _INT.fullmatch(word):
        return int(word)
    if cast == "float" and _FLOAT.fullmatch(word) and math.isfinite(number := float(word)):
        return number
    if cast == "bool" and word.lower() in ("true", "false"):
        return word.lower() == "true"
    raise Unparsable(f"not {'an' if cast == 'int' else 'a'} {cast}")


def _extracted(pattern: re.Pattern[str], text: str) -> str:
    match = pattern.search(text)
    found = match and (match.group(1) if pattern.groups else match.group())
    if found is None:
        raise Unparsable("no action in it", "none")
    return found


def _tool_call(text: str) -> JsonObject:
    calls = text.split("<tool_call>")[1:]
    if len(calls) > 1:
        raise Unparsable("more than one tool call")
    if calls:
        body, closed, _ = calls[0].partition("</tool_call>")
        if not closed:
            raise Unparsable("the tool call does not end")
    elif text.lstrip().startswith("{"):
        body = text
    else:
        raise Unparsable("no tool call", "none")
    call = _object(_decoded(body), "the tool call")
    arguments = "parameters" if "parameters" in call else "arguments"  # Llama 3 writes `parameters`
    if set(call) != {"name", arguments}:
        raise Unparsable("the tool call has not exactly name and arguments")
    if not isinstance(call["name"], str) or not call["name"]:
        raise Unparsable("the tool call's name is no text")
    return {
        "type": "call_tool",
        "tool_name": call["name"],
        "arguments": _object(call[arguments], arguments),
    }


def _object(value: Any, what: str) -> JsonObject:
    if not isinstance(value, dict):
        raise Unparsable(f"{what} is no JSON object")
    return value


def _decoded(text: str) -> Any:
    """Decode JSON that every parser accepts: finite numbers, no lone surrogates, at most `DEPTH` levels."""
    try:
        value = json.loads(text, parse_constant=_no_number, parse_float=_finite)
    except json.JSONDecodeError as error:
        problem = json_problem(error)
        raise Unparsable(f"not JSON: {problem[:1].lower()}{problem[1:]}") from None
    except ValueError:
        raise Unparsable("not JSON: a number out of range") from None
    except RecursionError:
        raise Unparsable("not JSON: nested too deep") from None
    level = [value]
    for _ in range(DEPTH):
        level = [part for whole in level for part in _parts(whole)]
    if level:
        raise Unparsable("not JSON: nested too deep")
    if _SURROGATE.search(json.dumps(value, ensure_ascii=False)):
        raise Unparsable("not JSON: half of a character")
    return value


def _parts(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def _finite(digits: str) -> float:
    number = float(digits)
    return number if math.isfinite(number) else _no_number(digits)


def _no_number(_: str) -> NoReturn:
    raise ValueError("not a number")
