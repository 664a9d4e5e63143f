"""An episode's session with an environment: its limits, whether it has begun, and why it is over.

The same for every client, so that a fault means the same whoever reports it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from echo_cli.environments.faults import (
    BadAction,
    EnvironmentFault,
    Fault,
    SessionLost,
    Unavailable,
    errors_text,
    fault_line,
)
from echo_cli.environments.protocol import JsonObject, Payload

_NO_SESSION = ("CAPACITY_REACHED", "FACTORY_ERROR", "SESSION_ERROR")
"""Codes of error messages after which there is no session."""

CANCELLED = "the call was cancelled"


@dataclass(frozen=True)
class SessionLimits:
    """Limits of a session over a network."""

    connect_timeout_s: float = 10.0
    """Seconds for a connection, and for each GET."""
    step_timeout_s: float = 60.0
    """Seconds for an answer."""
    max_message_mb: float = 100.0
    """Largest message that is taken, in MiB."""


class SessionState:
    """Whether one session has begun, and why it is over.

    Before the first observation, a connection that breaks or is refused is Unavailable, since nothing has begun; after
    it, SessionLost. What is no reply by the protocol is SessionLost always.

    Args:
        name: of the environment, with which the reason of every loss begins.
        secrets: what no message may show, and what it shows in their place.
        on_loss: called when the session is over for a fault.
    """

    def __init__(
        self, name: str, secrets: Mapping[str, str] | None = None, on_loss: Callable[[], None] = lambda: None
    ) -> None:
        self._name = name
        self._secrets = secrets
        self._on_loss = on_loss
        self.lock = asyncio.Lock()
        """Held during a request: two at once would shift every later reply by one."""
        self.begun = False
        self.lost: str | None = None
        """Why the session is over."""

    def check(self) -> None:
        """Raise SessionLost if the session is over."""
        if self.lost is not None:
            raise SessionLost(self.lost)

    def end(self, reason: str) -> None:
        """Let later calls find the session over for `reason`, unless it is over already."""
        self.lost = self.lost or reason

    def line(self, text: str) -> str:
        """Return a server's text as one short line without control characters and secrets."""
        return fault_line(text, self._secrets)

    def lose(self, reason: str) -> str:
        """Note that the session is over, and return why, the environment's name included."""
        self.lost = self.line(f"{self._name}: {reason}")
        self._on_loss()
        return self.lost

    def broken(self, reason: str) -> Fault:
        """Lose the session: the connection is gone, or was never had."""
        line = self.lose(reason)
        return SessionLost(line) if self.begun else Unavailable(line)

    def nonsense(self, reason: str) -> SessionLost:
        """Lose the session: what came is no reply by the protocol, or cannot be read."""
        return SessionLost(self.lose(reason))

    def fault(self, error: JsonObject) -> Fault:
        """Return the fault that the `data` of an error message means. After the first two the session lives on."""
        code, message = error.get("code"), error.get("message")
        text = message if isinstance(message, str) and message.strip() else "it does not say why"
        if code == "VALIDATION_ERROR":
            return BadAction(self.line(errors_text(error.get("errors")) or text))
        if code == "EXECUTION_ERROR":
            return EnvironmentFault(self.line(text))
        reason = f"{text} ({code if isinstance(code, str) else json.dumps(code)})"
        return self.broken(reason) if code in _NO_SESSION else self.nonsense(reason)

    def payload(self, data: Any) -> Payload:
        """Return the payload of the `data` of an observation message; SessionLost is raised where it is none."""
        try:
            return Payload.from_data(data)
        except ValueError as error:
            raise self.nonsense(f"it sent a malformed observation: {error}") from None
