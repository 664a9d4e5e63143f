"""Random actions that fit an action mapping and the environment's action schema, for a check of an environment.

They are well-formed but meaningless: numbers within bounds, members of an enumeration, else a word.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from typing import Any

from echo_cli.config.environment import ActionConfig
from echo_cli.config.mcp import tool_call_line
from echo_cli.environments.actions import CAST_TYPES, HOLE, wrap_action
from echo_cli.environments.protocol import JsonObject

_WORDS = ("help", "list", "look", "open", "status", "test")
_SPAN = 9
"""Maximum distance of a random number from its only bound, or from 0."""
_DEPTH = 8


def random_line(config: ActionConfig, schema: JsonObject, rng: random.Random) -> str:
    """Return text that `config` parses into an action accepted by `schema`, as far as the two determine it."""
    return wrap_action(config, _random_action(config, schema, rng))


def _random_action(config: ActionConfig, schema: JsonObject, rng: random.Random) -> str:
    """Return a random action as the text that remains after `extract`."""
    if config.kind == "tool_call" and _list(schema, "anyOf"):
        tool = _part(rng.choice(schema["anyOf"]), "properties")
        arguments = _part(tool, "arguments")
        value = _value({"type": "object", **arguments}, arguments, rng, 0)
        return tool_call_line(_part(tool, "tool_name").get("const", ""), value)
    if config.kind == "tool_call":
        return f'<tool_call>{{"name": "{rng.choice(_WORDS)}", "arguments": {{}}}}</tool_call>'
    if config.kind == "json":
        return json.dumps(_value(schema, schema, rng, 0))
    hole = _hole(config.template or {}, schema)
    value = "" if hole is None else _value(_typed(*hole), schema, rng, 0)
    return value if isinstance(value, str) else json.dumps(value)


def _hole(template: Any, schema: Any) -> tuple[str, Any] | None:
    """Return the first string of a template with a hole, and the part of the schema for it."""
    if isinstance(template, str):
        return (template, schema) if HOLE.search(template) else None
    named = (
        template.items() if isinstance(template, dict) else enumerate(template) if isinstance(template, list) else ()
    )
    for name, entry in named:
        inner = _part(schema, "properties").get(name, {}) if isinstance(name, str) else _part(schema, "items")
        if (found := _hole(entry, inner)) is not None:
            return found
    return None


def _typed(leaf: str, schema: Any) -> Any:
    """Return the schema of a string with a hole; if the schema is empty, the type of the cast."""
    if isinstance(schema, Mapping) and schema:
        return schema
    hole = HOLE.search(leaf)
    return {"type": (hole and CAST_TYPES.get(hole.group(1))) or "string"}


def _value(schema: Any, root: JsonObject, rng: random.Random, depth: int) -> Any:
    """Return a random value of a JSON schema, for the subset of JSON Schema that pydantic generates."""
    if not isinstance(schema, Mapping) or depth > _DEPTH:
        return rng.choice(_WORDS)
    if isinstance(reference := schema.get("$ref"), str):
        return _value(_resolved(reference, root), root, rng, depth + 1)
    if "const" in schema:
        return schema["const"]
    if isinstance(values := schema.get("enum"), list) and values:
        return rng.choice(values)
    for key in ("anyOf", "oneOf", "allOf"):
        if isinstance(forms := schema.get(key), list) and forms:
            known = [form for form in forms if isinstance(form, Mapping) and form.get("type") != "null"]
            return _value((known or forms)[0], root, rng, depth + 1)
    kind = schema.get("type")
    if kind in ("integer", "number"):
        low, high = _bounds(schema)
        return rng.randint(low, high) if kind == "integer" else round(rng.uniform(low, high), 2)
    if kind == "boolean":
        return rng.random() < 0.5
    if kind == "array":
        return [_value(schema.get("items"), root, rng, depth + 1)]
    if kind == "object" or "properties" in schema:
        fields, wanted = _part(schema, "properties"), _list(schema, "required")
        return {name: _value(fields.get(name), root, rng, depth + 1) for name in wanted}
    return rng.choice(_WORDS)


def _bounds(schema: Mapping[str, Any]) -> tuple[int, int]:
    """Return the lowest and the highest integer to draw, inclusive."""
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is None and "exclusiveMinimum" in schema:
        low = schema["exclusiveMinimum"] + 1
    if high is None and "exclusiveMaximum" in schema:
        high = schema["exclusiveMaximum"] - 1
    if low is None:
        low = 0 if high is None or high >= 0 else high - _SPAN
    if high is None:
        high = low + _SPAN
    return int(low), max(int(low), int(high))


def _part(schema: Any, key: str) -> Mapping[str, Any]:
    part = schema.get(key) if isinstance(schema, Mapping) else None
    return part if isinstance(part, Mapping) else {}


def _list(schema: Mapping[str, Any], key: str) -> list[Any]:
    part = schema.get(key)
    return part if isinstance(part, list) else []


def _resolved(reference: str, root: JsonObject) -> Any:
    """Return the target of a reference within the document, such as `#/$defs/Move`."""
    found: Any = root
    for name in reference.removeprefix("#/").split("/"):
        found = _part(found, name)
    return found
