"""Tools of an environment as text: one line per tool, and the types of its arguments."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from echo_cli.environments.protocol import JsonObject

_HOW_TO_CALL = 'call one with <tool_call>{"name": NAME, "arguments": {ARGUMENT: VALUE}}</tool_call>'
_ABOUT_CHARS = 160
_CONSTANT_CHARS = 40
_SENTENCE_END = re.compile(r"[.!?](?= )")
_BOUNDS = {"minimum": "≥", "maximum": "≤", "exclusiveMinimum": ">", "exclusiveMaximum": "<"}


def tools_text(tools: Sequence[JsonObject]) -> str:
    """Return the list of `tools` for a policy whose format of conversations has no form for it; "" without tools.

    Args:
        tools: tools as chat templates take them, `{"type": "function", "function": {…}}`.
    """
    if not tools:
        return ""
    return "\n".join(["tools:", *map(tool_line, tools), _HOW_TO_CALL, ""])


def tool_line(tool: JsonObject) -> str:
    """Return a tool as one line: `name(argument: type, optional?: type): description`, its first sentences."""
    function = tool["function"]
    schema = function.get("parameters", {})
    fields, required = schema.get("properties"), schema.get("required")
    needed = required if isinstance(required, list) else []
    arguments = ", ".join(
        f"{name}{'' if name in needed else '?'}: {schema_type(field)}"
        for name, field in (fields.items() if isinstance(fields, Mapping) else ())
    )
    about = _first_sentences(" ".join(function.get("description", "").split()))
    return f"{function['name']}({arguments}){f': {about}' if about else ''}"


def _first_sentences(text: str) -> str:
    """Return the sentences at the start of `text` that end within 160 characters, but at least one."""
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    within = [end for end in ends if end <= _ABOUT_CHARS] or ends[:1]
    return text if len(text) <= _ABOUT_CHARS or not within else text[: within[-1]]


def schema_type(schema: Any) -> str:
    """Return the type that a JSON schema describes, in a few words."""
    if not isinstance(schema, Mapping):
        return "anything"
    if "const" in schema:
        return short_json(schema["const"])
    if isinstance(values := schema.get("enum"), list):
        return " | ".join(map(short_json, values))
    for key in ("anyOf", "oneOf"):
        if isinstance(forms := schema.get(key), list):
            return " | ".join(map(schema_type, forms))
    if isinstance(reference := schema.get("$ref"), str):
        return reference.rpartition("/")[2]
    kind = schema.get("type")
    if kind == "array":
        return f"list of {schema_type(schema.get('items'))}"
    bounds = [f"{sign} {short_json(schema[key])}" for key, sign in _BOUNDS.items() if key in schema]
    return " ".join([kind if isinstance(kind, str) else "anything", *bounds])


def short_json(value: Any) -> str:
    """Return a value as JSON, clipped to 40 characters."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _CONSTANT_CHARS else f"{text[: _CONSTANT_CHARS - 1]}…"
