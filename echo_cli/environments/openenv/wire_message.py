"""Messages of OpenEnv's wire protocol as text: JSON objects with a `type` and, but for a few, `data`."""

from __future__ import annotations

import json
from typing import Any

from echo_cli.environments.client import JsonObject
from echo_cli.environments.faults import BadAction

MAX_REQUEST_BYTES = 16 * 2**20
"""What OpenEnv's servers take (uvicorn's limit); they close the connection on more."""

NO_SESSION = ("CAPACITY_REACHED", "FACTORY_ERROR", "SESSION_ERROR")
"""Codes of error messages after which there is no session."""

# OpenEnv sends NaN and infinity as null; a server that writes them bare means the same.
_DECODER = json.JSONDecoder(parse_constant=lambda _: None)


def encode(request: JsonObject) -> str:
    """JSON in ASCII: half of a surrogate pair, which a policy may write, has no UTF-8.

    Raises:
        BadAction: it holds a NaN, an infinity or ten thousand brackets, or is longer than a server takes.
    """
    try:
        text = json.dumps(request, allow_nan=False, separators=(",", ":"))
    except (ValueError, RecursionError):
        raise BadAction("a number is not finite, or brackets are too deep, for JSON") from None
    if len(text) > MAX_REQUEST_BYTES:
        raise BadAction(f"{len(text) / 2**20:.1f} MiB are more than the {MAX_REQUEST_BYTES // 2**20} a server takes")
    return text


def decode(reply: str | bytes) -> tuple[Any, dict[str, Any]]:
    """The type and the `data` of a message.

    Raises:
        ValueError: it is no message of OpenEnv; says what it is.
    """
    if isinstance(reply, bytes):
        raise ValueError("a binary message")
    try:
        message = _DECODER.decode(reply)
    except (ValueError, RecursionError):
        raise ValueError("text that is not JSON") from None
    if not (isinstance(message, dict) and isinstance(message.get("data"), dict)):
        raise ValueError("JSON that is no message of OpenEnv")
    return message.get("type"), message["data"]
