"""A grade: the reward of a finished episode and the values of its criteria, read from what a grader answers."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

CRITERIA, FAULT = "criteria", "grader_fault"
"""Keys of a graded trajectory's `meta`: the values of its criteria, and what went wrong with its grader."""

_SHOWN_CHARS = 80
_LARGEST = 1e100
"""Largest number that a row of metrics may have."""


class GraderFault(Exception):
    """A grader that failed, hung or gave no number; the text is for the user."""


@dataclass(frozen=True)
class Grade:
    """Reward and criteria of an episode."""

    reward: float | None
    """None if the episode has no reward, because its grader failed."""
    criteria: Mapping[str, float | None] = field(default_factory=dict)
    """Values of the named criteria, before their weights; None where the grader failed."""
    fault: str | None = None
    """Description of a grader's failure; None if none failed."""

    @property
    def meta(self) -> dict[str, Any]:
        """Entries of the graded trajectory's `meta`."""
        values = {CRITERIA: dict(self.criteria)} if self.criteria else {}
        return values if self.fault is None else {**values, FAULT: self.fault}


def criteria_in(meta: Mapping[str, Any]) -> dict[str, float | None]:
    """Return the values of the criteria in the `meta` of a recorded episode, which may be another's."""
    values, found = meta.get(CRITERIA), dict[str, float | None]()
    for name, value in values.items() if isinstance(values, dict) else ():
        try:
            found[str(name)] = number_of(value)
        except GraderFault:
            found[str(name)] = None
    return found


def fault_in(meta: Mapping[str, Any]) -> str | None:
    """Return what went wrong with the grader, from the `meta` of a recorded episode; None if nothing did."""
    fault = meta.get(FAULT)
    return None if fault is None else str(fault)


def parse_output(text: str) -> Any:
    """Return the JSON value that a command printed.

    Raises:
        GraderFault: it printed nothing, or something that is not JSON.
    """
    if not text.strip():
        raise GraderFault("printed nothing")
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise GraderFault(f"printed {_shown(text.strip())}, which is not a number or a JSON object") from None


def number_of(answer: Any) -> float:
    """Return a grader's answer as a number; true is 1 and false is 0.

    Raises:
        GraderFault: it is not a finite number.
    """
    if not isinstance(answer, bool | int | float):
        raise GraderFault(f"gave {_shown(json.dumps(answer))} in place of a number")
    try:
        number = float(answer)
    except OverflowError:
        raise GraderFault("gave a number that is too large") from None
    if not math.isfinite(number):
        raise GraderFault(f"gave {number}")
    if abs(number) > _LARGEST:
        raise GraderFault("gave a number that is too large")
    return number


def values_of(answer: Any, names: Sequence[str]) -> dict[str, float]:
    """Return the values of the criteria `names` in a grader's answer, which has exactly these names.

    Raises:
        GraderFault: the answer has other names, or a value is not a finite number.
    """
    if not isinstance(answer, dict):
        raise GraderFault(f"gave {_shown(json.dumps(answer))} in place of the criteria {', '.join(names)}")
    if missing := [name for name in names if name not in answer]:
        raise GraderFault(f"gave no value for {', '.join(missing)}")
    if unknown := [name for name in answer if name not in names]:
        raise GraderFault(f"gave a value for {_shown(', '.join(unknown))}, which environment.reward.criteria lacks")
    found = {}
    for name in names:
        try:
            found[name] = number_of(answer[name])
        except GraderFault as fault:
            raise GraderFault(f"{fault} for {name}") from None
    return found


def weighted(values: Mapping[str, float | None], weights: Mapping[str, float]) -> float | None:
    """Return Σ weight · value / Σ of the positive weights: 1 if each criterion of positive weight is 1, others 0.

    The result is None if the value of a criterion whose weight is not 0 is None.
    """
    counted = {name: weight for name, weight in weights.items() if weight != 0}
    known = [(weight, value) for name, weight in counted.items() if (value := values[name]) is not None]
    if len(known) < len(counted):
        return None
    whole = math.fsum(weight for weight in counted.values() if weight > 0)
    return math.fsum(weight * value for weight, value in known) / whole


def _shown(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}…"
