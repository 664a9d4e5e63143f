"""Check whether a JSON value that is not fully known yet can match a JSON schema.

The check reads the keywords that pydantic writes (draft 2020-12): `$ref`, `anyOf`, `oneOf`, `allOf`, `enum`, `const`,
`type`, `properties`, `required`, `additionalProperties`, `items`, `prefixItems`. All other keywords are left to the
environment, which validates every action.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from echo_cli.text import escape_unprintable, suggest

CASTS = {"integer": "int", "number": "float", "boolean": "bool", "object": "json", "array": "json"}


@dataclass(frozen=True)
class Unknown:
    """A value that is only known during the episode."""

    type: str | None
    """JSON type of the value; None for any type."""


@dataclass(frozen=True)
class Misfit:
    """Reason why a value cannot match: the path to the value (`.a[0]`), the problem, and a tip."""

    at: str
    problem: str
    tip: str
    kind: Literal["form", "type", "constant"] = "form"
    """Kind of problem: fields of an object ("form"), type of a value, or value of a constant.

    If no option of a union matches, a "form" problem is reported in preference to a "type" problem.
    """


def find_misfit(value: Any, schema: Any) -> Misfit | None:
    """Return the first place where `value` cannot match `schema`; None if it can. `value` may contain `Unknown`.

    Raises:
        RecursionError: the schema is nested too deep.
    """
    return _Check(schema).misfit(value, schema, "")


class _Check:
    """One comparison. The result of each `$ref` is cached per path, so that recursive schemas terminate."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self._known: dict[tuple[str, str], Misfit | None] = {}

    def misfit(self, value: Any, schema: Any, at: str) -> Misfit | None:
        if schema is False:
            return Misfit(at, "is not accepted by the environment", "omit it")
        if not isinstance(schema, Mapping) or value == Unknown(None):
            return None
        return (
            self._of_reference(value, schema, at)
            or self._of_union(value, schema, at)
            or self._of_constant(value, schema, at)
            or self._of_type(value, schema, at)
            or self._of_object(value, schema, at)
            or self._of_array(value, schema, at)
        )

    def _of_reference(self, value: Any, schema: Mapping[str, Any], at: str) -> Misfit | None:
        reference = schema.get("$ref")
        if not isinstance(reference, str):
            return None
        key = (reference, at)
        if key not in self._known:
            self._known[key] = Misfit(at, "has a circular schema", "fix the environment")
            self._known[key] = self.misfit(value, self._target(reference), at)
        return self._known[key]

    def _target(self, reference: str) -> Any:
        """Return the schema that a `$ref` names; True, which accepts anything, if it is not in this document."""
        found = self._root if reference.startswith("#") else True
        for part in reference.split("/")[1:]:
            found = found.get(part.replace("~1", "/").replace("~0", "~"), True) if isinstance(found, Mapping) else True
        return found

    def _of_union(self, value: Any, schema: Mapping[str, Any], at: str) -> Misfit | None:
        for part in _list(schema, "allOf"):
            if misfit := self.misfit(value, part, at):
                return misfit
        for options in (_list(schema, "anyOf"), _list(schema, "oneOf")):
            misfits = [misfit for option in options if (misfit := self.misfit(value, option, at))]
            if options and len(misfits) == len(options):
                forms = [misfit for misfit in misfits if misfit.kind == "form"]
                types = [misfit for misfit in misfits if misfit.kind == "type" and misfit.at != at]
                return (forms or types or [self._wrong(value, schema, at, "type")])[0]
        return None

    def _of_constant(self, value: Any, schema: Mapping[str, Any], at: str) -> Misfit | None:
        constants = [schema["const"]] if "const" in schema else _list(schema, "enum")
        if not constants:
            return None
        if isinstance(value, Unknown):
            fits = any(_types(value) & _types(constant) for constant in constants)
        else:
            fits = any(_types(value) & _types(constant) and value == constant for constant in constants)
        return None if fits else self._wrong(value, schema, at, "constant")

    def _of_type(self, value: Any, schema: Mapping[str, Any], at: str) -> Misfit | None:
        types = schema.get("type")
        taken = [types] if isinstance(types, str) else _list(schema, "type")
        fits = not taken or any(name in taken for name in _types(value))
        return None if fits else self._wrong(value, schema, at, "type")

    def _of_object(self, value: Any, schema: Mapping[str, Any], at: str) -> Misfit | None:
        if not isinstance(value, Mapping):
            return None
        properties = schema.get("properties")
        known = properties if isinstance(properties, Mapping) else {}
        for name in value:
            if name in known and (misfit := self.misfit(value[name], known[name], f"{at}.{escape_unprintable(name)}")):
                return misfit
        others = schema.get("additionalProperties", True)
        for name in value:
            if name in known:
                continue
            if others is False:
                fields = [escape_unprintable(field) for field in known]
                return Misfit(
                    f"{at}.{escape_unprintable(name)}", "is unknown to the environment", suggest(name, fields, "fields")
                )
            if misfit := self.misfit(value[name], others, f"{at}.{escape_unprintable(name)}"):
                return misfit
        for name in _list(schema, "required"):
            if name not in value:
                return Misfit(at, f"lacks the required field '{escape_unprintable(str(name))}'", "add it")
        return None

    def _of_array(self, value: Any, schema: Mapping[str, Any], at: str) -> Misfit | None:
        if not isinstance(value, list):
            return None
        first = _list(schema, "prefixItems")
        for index, item in enumerate(value):
            part = first[index] if index < len(first) else schema.get("items", True)
            if misfit := self.misfit(item, part, f"{at}[{index}]"):
                return misfit
        return None

    def _wrong(self, value: Any, schema: Any, at: str, kind: Literal["type", "constant"]) -> Misfit:
        taken = self._taken(schema)
        given = f"of type {value.type}" if isinstance(value, Unknown) else _json(value)
        casts = [f'"{{text:{CASTS[name]}}}"' for name in taken if name in CASTS]
        tip = f"write {casts[0]}" if value == Unknown("string") and casts else "see the action in the server's /schema"
        return Misfit(at, f"is {given}; expected {escape_unprintable(' or '.join(taken))}", tip, kind)

    def _taken(self, schema: Any, depth: int = 0) -> list[str]:
        """Return the types and constants that a schema accepts, for a message."""
        if not isinstance(schema, Mapping) or depth > 8:
            return ["something else"]
        if isinstance(schema.get("$ref"), str):
            return self._taken(self._target(schema["$ref"]), depth + 1)
        if options := [*_list(schema, "anyOf"), *_list(schema, "oneOf")]:
            words = [word for option in options for word in self._taken(option, depth + 1)]
            return list(dict.fromkeys(words))
        if constants := [schema["const"]] if "const" in schema else _list(schema, "enum"):
            return [_json(constant) for constant in constants]
        types = schema.get("type")
        return (
            [types] if isinstance(types, str) else [str(name) for name in _list(schema, "type")] or ["something else"]
        )


def _list(schema: Mapping[str, Any], key: str) -> list[Any]:
    part = schema.get(key)
    return part if isinstance(part, list) else []


def _json(value: Any) -> str:
    text = json.dumps(value, default=lambda unknown: f"<{unknown.type}>")
    return text if len(text) <= 60 else text[:57] + "..."


def _types(value: Any) -> set[str]:
    """Return the JSON schema types of a value."""
    if isinstance(value, Unknown):
        return {"integer", "number"} if value.type == "integer" else {str(value.type)}
    if isinstance(value, bool):
        return {"boolean"}
    if isinstance(value, int):
        return {"integer", "number"}
    if isinstance(value, float):
        return {"number", "integer"} if value.is_integer() else {"number"}
    if isinstance(value, Mapping):
        return {"object"}
    return {"string" if isinstance(value, str) else "array" if isinstance(value, list) else "null"}
