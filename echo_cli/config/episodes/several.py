"""The `environments` section of a config: several environments of one run, each with a name and a weight."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

from pydantic import Field

from echo_cli.config.environment import EnvironmentConfig
from echo_cli.config.section import NonNegativeFloat
from echo_cli.errors import EchoError

_OF_SECTION = re.compile(r"\benvironment(?=\.[a-z]| sets )")
"""The section's name in a message, such as `environment.url`; not the word."""

_NAME = re.compile(r"^[A-Za-z][A-Za-z0-9_-]{0,31}$")


class NamedEnvironment(EnvironmentConfig):
    """One of several environments; its other keys are those of `environment`.

    Tasks and explorers of training are drawn in proportion to `weight`. An environment of weight 0 is measured and
    never trained in.
    """

    name: Annotated[str, Field(pattern=_NAME.pattern)]
    weight: NonNegativeFloat = 1.0

    @property
    def section(self) -> EnvironmentConfig:
        """The environment as the section of a run that plays nothing else."""
        section = EnvironmentConfig.model_construct(
            None, **{key: getattr(self, key) for key in EnvironmentConfig.model_fields}
        )
        return section.granted(self.grants)


def check_several(environments: Sequence[NamedEnvironment]) -> None:
    """Check the names and the weights of several environments.

    Raises:
        EchoError: there is none, two have the same name, all weights are 0, or one is `none`.
    """
    names = [entry.name for entry in environments]
    if not names:
        raise EchoError("environments is empty", "list one or more, or omit it and set environment")
    twice = next((name for number, name in enumerate(names) if name in names[:number]), None)
    if twice is not None:
        raise EchoError(f"two environments are named {twice}", "give each its own name: metrics are named after it")
    if not any(entry.weight for entry in environments):
        raise EchoError("every weight in environments is 0: no task can be drawn", "set one above 0")
    without = next((entry.name for entry in environments if entry.none), None)
    if without is not None:
        raise EchoError(f"environments.{without}.none is true: there is nothing to play", "omit the environment")


@contextmanager
def in_environment(name: str) -> Iterator[None]:
    """Name the environment `name` in the message and the tip of an EchoError that the block raises; "" names none."""
    try:
        yield
    except EchoError as error:
        if name:
            place = f"environments.{name}"
            message = _OF_SECTION.sub(place, error.message)
            error.message = message if place in message else f"{place}: {message}"
            error.tip = None if error.tip is None else _OF_SECTION.sub(place, error.tip)
            error.args = (error.message,)
        raise


def named_entries(values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the entries of `environments` in a config's values by name; those without a name are left out."""
    listed = values.get("environments")
    entries = [entry for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []
    return {entry["name"]: entry for entry in entries if isinstance(entry.get("name"), str)}


def as_single(keys: tuple[str, ...]) -> tuple[str, ...]:
    """Return the key path of `environment` that a path below `environments.NAME` stands for; others are unchanged."""
    return ("environment", *keys[2:]) if len(keys) > 2 and keys[0] == "environments" else keys


def by_name(keys: tuple[str, ...], listed: Any) -> tuple[str, ...]:
    """Return the key path of an entry of `environments` with the entry's name in the place of its number.

    The key `name` and an entry without a name that is its own keep the number, and so does every other key path.

    Args:
        listed: value of `environments`, not validated yet.
    """
    if len(keys) < 2 or keys[0] != "environments" or keys[2:] == ("name",) or not isinstance(listed, list):
        return keys
    names = [entry.get("name") if isinstance(entry, dict) else None for entry in listed]
    name = names[int(keys[1])] if keys[1].isdigit() and int(keys[1]) < len(names) else None
    is_own = isinstance(name, str) and names.count(name) == 1 and _NAME.match(name)
    return (*keys[:1], str(name), *keys[2:]) if is_own else keys
