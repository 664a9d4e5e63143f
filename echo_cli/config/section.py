"""What the sections of a config share: their base class, the types of their values, the mark of a key that is free."""

from __future__ import annotations

from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Seconds = Annotated[float, Field(gt=0, le=1e7)]  # far beyond it clocks overflow
NonNegativeSeconds = Annotated[float, Field(ge=0, le=1e7)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
PathText = Annotated[str, Field(min_length=1, pattern=r"^[^\x00]*$")]
Headers = dict[str, Annotated[str, Field(pattern=r"\$\{\w+\}")]]
"""HTTP headers by name. A value names an environment variable as `${NAME}`, so that no secret is in a config."""


class Section(BaseModel):
    """A section of a config: unknown keys are errors, values have their type, nothing changes afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class _Free:
    """The mark that `FreeOnResume` puts on a field."""


_Value = TypeVar("_Value")
FreeOnResume = Annotated[_Value, _Free()]
"""The type of a key that may change when a run is resumed, with every key below it. No other key may.

Such a key decides how far a run goes, where its files lie, what it runs on, where it is shown, what a collapse does,
what is exchanged for memory, or how an environment or an endpoint is reached; never the objective, the data or the
world.
"""


def is_free(field: FieldInfo) -> bool:
    """Return whether a field of a section is marked `FreeOnResume`."""
    return any(isinstance(mark, _Free) for mark in field.metadata)
