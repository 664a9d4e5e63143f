"""Overrides: `key.path=value` on top of a config's values."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Any

import yaml

from echo_cli.config.environment import SOURCE_KEYS, SOURCES, TASK_SOURCES
from echo_cli.config.yaml_file import parse_yaml
from echo_cli.errors import EchoError


@dataclass(frozen=True)
class Override:
    """A value for one key path."""

    keys: tuple[str, ...]
    value: Any
    text: str
    """The override as it was given, for messages; without its value where that may hold a secret."""


def parse_override(word: str) -> Override:
    """Read `key.path=value`, whose value is YAML.

    Raises:
        EchoError: the word has no `=` or no key, or its value is not YAML.
    """
    key, equals, value = word.partition("=")
    keys = tuple(key.split("."))
    if not equals or not all(keys):
        raise EchoError(f"'{word}' is not an override", "write key.path=value, for example optim.lr=1e-3")
    text = f"{key}=…" if may_hold_headers(keys) else word
    try:
        return Override(keys, parse_yaml(value)[1], text)
    except yaml.YAMLError:
        raise EchoError(f"the value of '{text}' is not YAML", "quote it for the shell: 'key=[1, 2]'") from None


def may_hold_headers(keys: tuple[str, ...]) -> bool:
    """Return whether a value under `keys` may be or hold a header: a secret, where a variable's name was meant."""
    return keys[0] in ("environment", "sampler") and keys[1:2] in ((), ("headers",))


def apply_overrides(values: dict[str, Any], overrides: Sequence[Override]) -> None:
    """Set the overrides in `values`, in order; another source of environments or tasks takes the place of the former.

    Raises:
        EchoError: a key path goes on below a value.
    """
    given = {override.keys[:2] for override in overrides}
    for override in overrides:
        _replace_source(values, override, given)
        _replace_tasks(values, override)
        _set(values, override)


def _replace_source(values: dict[str, Any], override: Override, given: Set[tuple[str, ...]]) -> None:
    """Where the override names another source of environments, take out the one before, and the keys of that source.

    The tasks of the toy terminal stay: `environment.url=…` alone plays the same worlds on a server.

    Args:
        given: the first two keys of every override; what these set stays.
    """
    environment = values.setdefault("environment", {})
    section, source = (*override.keys, "")[:2]
    if section != "environment" or source not in SOURCES or not isinstance(environment, dict):
        return
    if override.value is None or environment.get(source) is not None:
        return
    if source == "none":  # what the file says of an environment goes with it
        for key in [key for key in environment if ("environment", key) not in given]:
            del environment[key]
        return
    for key, takers in SOURCE_KEYS.items():
        if source not in takers and ("environment", key) not in given:
            environment.pop(key, None)
    for former in SOURCES:
        worlds = environment.pop(former, None)
        if former == "toy_terminal" and source != former and environment.get("tasks") is None:
            environment["tasks"] = {"toy_terminal": worlds or {}}


def _replace_tasks(values: dict[str, Any], override: Override) -> None:
    """Where the override names another source of tasks, take out the one before."""
    environment = values.get("environment")
    tasks = environment.get("tasks") if isinstance(environment, dict) else None
    source = override.keys[2] if override.keys[:2] == ("environment", "tasks") and len(override.keys) > 2 else None
    if isinstance(tasks, dict) and source in TASK_SOURCES and override.value is not None:
        for former in set(TASK_SOURCES) - {source}:
            tasks.pop(former, None)


def _set(values: dict[str, Any], override: Override) -> None:
    *sections, last = override.keys
    for depth, key in enumerate(sections):
        inner = values.setdefault(key, {})
        if inner is None:
            inner = values[key] = {}
        if not isinstance(inner, dict):
            path = ".".join(override.keys[: depth + 1])
            raise EchoError(f"'{path}' is a value, not a section", "drop the rest of the path")
        values = inner
    values[last] = override.value
