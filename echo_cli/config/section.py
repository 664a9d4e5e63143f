"""Shared parts of the config's sections: base class, value types, and the mark of keys that are free on resume."""

from __future__ import annotations

import os.path
from dataclasses import dataclass
from typing import Annotated, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo

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


AbsolutePath = Annotated[PathText, AfterValidator(absolute)]
"""Path of a file or folder, given relative to the working directory; a run is resumed and evaluated from any other."""

Headers = dict[str, Annotated[str, Field(pattern=r"\$\{\w+\}")]]
"""HTTP headers by name. A value refers to an environment variable as `${NAME}`, so that no config holds a secret."""


@dataclass(frozen=True)
class Grants:
    """Permissions that a command line gives. No config file can give them, and none records them."""

    import_from: str | None = None
    """Folder from which classes that the config names are imported, besides the installed packages."""
    plain_http: bool = False
    """Whether `${NAME}` in headers may go to another machine over plain http."""


NO_GRANTS = Grants()


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
