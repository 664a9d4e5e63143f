"""One websocket to a server: opening it, explaining why it closed, and encoding its messages."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException

from echo_cli.environments.faults import BadAction, Unavailable
from echo_cli.environments.openenv.address import WireAddress
from echo_cli.environments.openenv.session import SessionLimits
from echo_cli.environments.protocol import JsonObject

CLOSE_TIMEOUT_S = 5.0
MAX_REQUEST_BYTES = 16 * 2**20
"""Maximum size of a request, bytes (uvicorn's limit); OpenEnv's servers close the connection on longer ones."""

_REFUSALS = {
    1002: "it violated the websocket protocol",
    1007: "it sent text that is not UTF-8",
    1009: "it sent a longer message than environment.max_message_mb allows",
}
"""Codes with which the websockets package closes a connection because of a received message, and their meanings."""

# Below the level of warnings, websockets logs the headers.
_LOGGER = logging.Logger("echo_cli.environments.openenv.websocket", logging.WARNING)

# OpenEnv sends NaN and infinity as null; a server that writes them literally means the same.
_DECODER = json.JSONDecoder(parse_constant=lambda _: None)


class _Direct(connect):
    """A connection that follows no redirect, which could send the headers to another server."""

    def process_redirect(self, exc: Exception) -> Exception:
        return exc


async def open_connection(address: WireAddress, limits: SessionLimits) -> ClientConnection:
    """Open a new connection to the `/ws` of `address`.

    Raises:
        Unavailable: the connection cannot be opened.
    """
    try:
        return await _Direct(
            address.websocket,
            additional_headers=dict(address.headers),
            compression=None,  # costs more time than it saves on loopback or a fast network
            proxy=None if address.loopback else True,
            open_timeout=limits.connect_timeout_s,
            # No pings: the trainer may hold the GIL for longer than a ping's timeout, and the step timeout detects a
            # missing answer.
            ping_interval=None,
            close_timeout=CLOSE_TIMEOUT_S,
            max_size=int(limits.max_message_mb * 2**20),
            logger=_LOGGER,
        )
    except InvalidStatus as error:
        reason = f"it refused the connection with HTTP {error.response.status_code}"
    except asyncio.TimeoutError:
        reason = f"no connection within {limits.connect_timeout_s:g} s"
    except ConnectionError as error:  # asyncio's text is "Connect call failed", whatever the reason
        reason = os.strerror(error.errno) if error.errno else str(error) or type(error).__name__
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
    except (WebSocketException, ImportError) as error:  # a SOCKS proxy needs python-socks
        reason = str(error) or type(error).__name__
    raise Unavailable(reason)


def is_refused(closed: ConnectionClosed) -> bool:
    """Return whether our side closed the connection because of a message from the server."""
    return closed.sent is not None and closed.sent.code in _REFUSALS and not closed.rcvd_then_sent


def why_closed(closed: ConnectionClosed) -> str:
    """Return why the connection closed, worded to follow the server's name."""
    if closed.sent is not None and is_refused(closed):
        return _REFUSALS[closed.sent.code]
    if closed.rcvd is not None:
        reason = f" ({closed.rcvd.reason})" if closed.rcvd.reason else ""
        return f"it closed the connection with code {closed.rcvd.code}{reason}"
    return "the connection was lost"


def encode(request: JsonObject) -> str:
    """Return the request as ASCII JSON: a lone surrogate, which a JSON task may contain, has no UTF-8 form.

    Raises:
        BadAction: the request contains NaN or infinity, is nested too deep, or is longer than `MAX_REQUEST_BYTES`.
    """
    try:
        text = json.dumps(request, allow_nan=False, separators=(",", ":"))
    except (ValueError, RecursionError):
        raise BadAction("a number is not finite, or brackets are too deep, for JSON") from None
    if len(text) > MAX_REQUEST_BYTES:
        raise BadAction(
            f"{len(text) / 2**20:.1f} MiB are more than the {MAX_REQUEST_BYTES // 2**20} MiB that a server accepts"
        )
    return text


def decode(reply: str | bytes) -> tuple[Any, dict[str, Any]]:
    """Return the type and the `data` of a message.

    Raises:
        ValueError: the text is not an OpenEnv message; the error says what it is instead.
    """
    if isinstance(reply, bytes):
        raise ValueError("a binary message")
    try:
        message = _DECODER.decode(reply)
    except (ValueError, RecursionError):
        raise ValueError("text that is not JSON") from None
    if not (isinstance(message, dict) and isinstance(message.get("data"), dict)):
        raise ValueError("JSON that is not an OpenEnv message")
    return message.get("type"), message["data"]
