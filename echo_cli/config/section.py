"""Shared parts of the config's sections: base class, value types, and the mark of keys that are free on resume."""

from __future__ import annotations

import os.path
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo

from echo_cli.errors import EchoError

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Seconds = Annotated[float, Field(gt=0, le=1e7)]  # clocks overflow far above this bound
NonNegativeSeconds = Annotated[float, Field(ge=0, le=1e7)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
PathText = Annotated[str, Field(min_length=1, pattern=r"^[^\x00]*$")]


def absolute(path: str) -> str:
    """Return an absolute path; `~` is the home folder."""
    return os.path.abspath(os.path.expanduser(path))


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise EchoError(
            f"invalid regular expression {pattern!r}: {error}", "use the syntax of Python's re module"
        ) from None
    return pattern


def _is_import_path(text: str) -> str:
    module, colon, name = text.partition(":")
    if not (colon and name.isidentifier() and all(part.isidentifier() for part in module.split("."))):
        raise EchoError(f"'{text}' is not an import path", "write pkg.module:Class, or pkg.module:function")
    return text


Pattern = Annotated[str, AfterValidator(_compiles)]
ImportPath = Annotated[str, AfterValidator(_is_import_path)]

AbsolutePath = Annotated[PathText, AfterValidator(absolute)]
"""Path of a file or folder, given relative to the working directory; a run is resumed and evaluated from any other."""

VARIABLE = re.compile(r"\$\{(\w+)\}")
"""A reference to an environment variable, `${NAME}`."""

Headers = dict[str, Annotated[str, Field(pattern=VARIABLE.pattern)]]
"""HTTP headers by name. A value refers to an environment variable as `${NAME}`, so that no config holds a secret."""


@dataclass(frozen=True)
class Grants:
    """Permissions that a command line gives. No config file can give them, and none records them."""

    import_from: str | None = None
    """Folder from which classes that the config names are imported, besides the installed packages."""
    plain_http: bool = False
    """Whether `${NAME}` in headers may go to another machine over plain http."""
    fetch: bool = False
    """Whether a dataset of tasks may be fetched from a hub."""


NO_GRANTS = Grants()

_SECRET_NAME = re.compile(
    r"(token|secret|password|passwd|passphrase|api_?key|credentials?|authorization|(^|[_.-])(key|pwd|pass))[0-9]*$",
    re.IGNORECASE,
)
_SECRET_VALUE = re.compile(
    r"\b(hf|gh[pousr]|github_pat|glpat|xox[abeprs]|[spr]k)[-_][\w-]{16,}|\bAKIA[0-9A-Z]{16}\b|\bAIza[\w-]{30,}"
    r"|\beyJ[\w-]{8,}\.eyJ|-----BEGIN [A-Z ]*PRIVATE KEY|\b(Bearer|Basic) +[\w.~+/=-]{8,}|://[^/\s:@]*:[^/\s@]+@",
)
_NO_SECRETS = {"true", "false", "yes", "no", "on", "off", "none", "null"}
_SHORTEST_SECRET = 4  # characters
_PATHS = ("/", "./", "../", "~/")
"""Beginnings of the path of a file, which may hold a secret but is none."""

_HIDDEN = "***"


def is_secret(name: str, text: str) -> bool:
    """Return whether a text is a secret, judged by its name and its form. `${NAME}`, which stands for one, is not."""
    literal = VARIABLE.sub("", text)
    if _SECRET_VALUE.search(literal):
        return True
    is_named = _SECRET_NAME.search(name) is not None and name.rpartition(".")[2] != "PWD"
    is_short = len(text) < _SHORTEST_SECRET or text.lower() in _NO_SECRETS
    return is_named and literal == text and not is_short and not text.startswith(_PATHS)


def hide_secret(word: str) -> str:
    """Return a word of a command line, such as `key.path=value` or `--option=value`, without a secret value."""
    name, equals, value = word.partition("=")
    if equals and is_secret(name, value):
        return f"{name}={_HIDDEN}"
    return _HIDDEN if is_secret("", word) else word


def secret_in(key: str, value: Any) -> str | None:
    """Return the key path of the first secret in a JSON value, whose own path is `key`; None if it has none."""
    return next((name for name, text in _texts(key, value) if is_secret(name, text)), None)


def refuse_secrets(key: str, value: Any, tip: str = "write ${NAME} in its place, and export NAME=…") -> None:
    """Raise an EchoError if a config's value, or one below it, is a secret: configs are stored, shown and tracked.

    Args:
        key: path of the value in the config.
    """
    if (name := secret_in(key, value)) is not None:
        raise EchoError(f"{name} is a secret in plain text", tip)


def refuse_credentials(key: str, url: str | None) -> None:
    """Raise an EchoError if a URL contains a password or a token."""
    if url is not None and is_secret("", url):
        section = key.rpartition(".")[0]
        raise EchoError(f"{key} contains credentials", f"send them in {section}.headers, with ${{NAME}}")


def refuse_secret_words(key: str, command: tuple[str, ...]) -> None:
    """Raise an EchoError if a command holds a secret, which every user of the machine could see in `ps`."""
    for before, word in zip(("", *command), command, strict=False):
        option = before if before.startswith("-") and "=" not in before and not word.startswith("-") else ""
        if hide_secret(word) != word or is_secret(option, word):
            raise EchoError(f"{key} holds a secret", f"pass it in {key.rpartition('.')[0]}.env, as ${{NAME}}")


def _texts(key: str, value: Any) -> Iterator[tuple[str, str]]:
    """Iterate over the key paths and the texts in a JSON value."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from _texts(f"{key}.{name}", inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(key, inner)


class Section(BaseModel):
    """A section of a config: immutable, strictly typed; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class _Free:
    """The mark that `FreeOnResume` puts on a field."""


_Value = TypeVar("_Value")
FreeOnResume = Annotated[_Value, _Free()]
"""Type of a key that may change, with all keys below it, when a run is resumed. No other key may change.

A free key sets the number of steps, the location of files, the device, the trackers, the response to a collapse, a
trade-off against memory, or the connection to an environment or endpoint; never the objective, the data or the world.
"""


def is_free(field: FieldInfo) -> bool:
    """Return whether a section's field is marked `FreeOnResume`."""
    return any(isinstance(mark, _Free) for mark in field.metadata)
