"""Parsing of strict JSON."""

from __future__ import annotations

import json
import math
from typing import Any

from echo_cli.text import json_problem
from echo_cli.traces.builder import Refusal

TOO_DEEP = "it is nested too deeply"
TOO_LARGE = "a number is too large"


def parse_json(text: str) -> Any:
    """Parse strict JSON.

    Raises:
        ValueError: the text is not JSON, has a number too large for a float, or is nested about a thousand levels deep.
    """
    try:
        return json.loads(text) if text.startswith("\ufeff") else _DECODER.decode(text)  # loads refuses the mark
    except RecursionError as error:
        raise ValueError(TOO_DEEP) from error
    except ValueError as error:
        if str(error).startswith("Exceeds the limit"):  # Python's, on the digits of an integer
            raise ValueError(TOO_LARGE) from error
        raise


def json_value(data: bytes, where: str, *, document: bool = False) -> tuple[Any] | Refusal:
    """Parse a JSON value; it is returned in a tuple because null is a value.

    Args:
        where: place of the value, for a refusal.
        document: whether a refusal names the line.
    """
    try:
        return (parse_json(data.decode("utf-8-sig")),)
    except UnicodeDecodeError:
        return Refusal(where, "not UTF-8")
    except json.JSONDecodeError as error:
        return Refusal(f"{where}:{error.lineno}" if document else where, f"not JSON: {json_problem(error)}")
    except ValueError as error:
        return Refusal(where, f"not JSON: {error}")


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(TOO_LARGE)
    return value


# Made once: json.loads makes a decoder per call, which takes as long as reading a tool call's arguments.
_DECODER = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_finite)
