"""Overrides of a config's values from the command line; a new source drops the keys of the previous one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from echo_cli.config.environment import OF_ANY_SOURCE, SOURCE_KEYS, SOURCES
from echo_cli.config.episodes.several import as_single, named_entries
from echo_cli.config.episodes.tasks import OF_DATASET, TASK_SOURCES
from echo_cli.errors import EchoError
from echo_cli.text import suggest


@dataclass(frozen=True)
class Override:
    """A value for one key path."""

    keys: tuple[str, ...]
    value: Any
    text: str
    """The override as given, for messages; without its value if the value may be a secret."""


def apply_overrides(values: dict[str, Any], overrides: Sequence[Override]) -> None:
    """Set the overrides in `values`, in order; a new source of environments or tasks replaces the previous one.

    `environments.NAME.key` is a key of the environment NAME of a list that the file or an earlier override gives.

    Raises:
        EchoError: a key path continues below a value, or no environment has the name.
    """
    single = [override for override in overrides if as_single(override.keys) == override.keys]
    _apply(values, single)
    for name in dict.fromkeys(override.keys[1] for override in overrides if override not in single):
        entries = named_entries(values)
        if name not in entries:
            tip = suggest(name, list(entries), "environments") if entries else "list environments in a file"
            raise EchoError(f"no environment is named '{name}'", tip)
        section = {"environment": entries[name]}
        own = [override for override in overrides if override not in single and override.keys[1] == name]
        _apply(section, [replace(override, keys=as_single(override.keys)) for override in own])


def _apply(values: dict[str, Any], overrides: Sequence[Override]) -> None:
    for override in overrides:
        _replace_source(values, override, overrides)
        _replace_tasks(values, override)
        _set(values, override)


def _replace_source(values: dict[str, Any], override: Override, overrides: Sequence[Override]) -> None:
    """Remove the previous source of environments and its keys if the override sets another source.

    Keys that any of the overrides sets are kept. The toy terminal's tasks are kept: `environment.url=…` alone plays the
    same worlds on a server.
    """
    environment = values.setdefault("environment", {})
    section, source = (*override.keys, "")[:2]
    if section != "environment" or source not in SOURCES or not isinstance(environment, dict):
        return
    if override.value is None or environment.get(source) is not None:
        return
    given = {other.keys[1] for other in overrides if other.keys[0] == "environment" and len(other.keys) > 1}
    worlds = _toy_worlds(environment, overrides)
    taken = {"none": set[str](), "toy_terminal": set(OF_ANY_SOURCE)}.get(source)
    lost = {key for key in SOURCE_KEYS if source not in SOURCE_KEYS[key]}
    lost = lost if taken is None else {*environment} - taken - {"name", "weight"}
    if source == "terminal":
        lost |= {"tasks", "preset"}
    for key in [*(lost - given), *SOURCES]:
        environment.pop(key, None)
    if worlds is not None and taken is None and source != "terminal" and environment.get("tasks") is None:
        environment["tasks"] = {"toy_terminal": worlds}


def _toy_worlds(environment: Mapping[str, Any], overrides: Sequence[Override]) -> Any:
    """Return the toy worlds that the next source of environments plays; None if there are none.

    There are none if the source was another one, or if the command line drops them: it sets `toy_terminal` to null, or
    names the preset of another environment.
    """
    commanded = {override.keys[1:]: override.value for override in overrides if override.keys[0] == "environment"}
    preset = commanded.get(("preset",)) or "toy_terminal"
    if commanded.get(("toy_terminal",), {}) is None or preset != "toy_terminal":
        return None
    by_default = all(environment.get(source) is None for source in SOURCES)
    return {} if by_default else environment.get("toy_terminal")


def _replace_tasks(values: dict[str, Any], override: Override) -> None:
    """Remove the previous source of tasks if the override sets another source."""
    environment = values.get("environment")
    tasks = environment.get("tasks") if isinstance(environment, dict) else None
    source = override.keys[2] if override.keys[:2] == ("environment", "tasks") and len(override.keys) > 2 else None
    if isinstance(tasks, dict) and source in TASK_SOURCES and override.value is not None:
        for former in {*TASK_SOURCES, *(() if source == "dataset" else OF_DATASET)} - {source}:
            tasks.pop(former, None)


def _set(values: dict[str, Any], override: Override) -> None:
    *sections, last = override.keys
    for depth, key in enumerate(sections):
        inner = values.setdefault(key, {})
        if inner is None:
            inner = values[key] = {}
        if not isinstance(inner, dict):
            path = ".".join(override.keys[: depth + 1])
            raise EchoError(f"'{path}' is a value, not a section", "remove the rest of the path")
        values = inner
    values[last] = override.value
