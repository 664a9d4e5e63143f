"""An episode's session with an environment: its limits, whether it has begun, and why it has ended.

All clients share this module, so that a fault has the same meaning for each of them.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from echo_cli.environments.faults import (
    AtCapacity,
    BadAction,
    EnvironmentFault,
    Fault,
    SessionLost,
    Unavailable,
    errors_text,
    fault_line,
    without_secrets,
)
from echo_cli.environments.protocol import JsonObject, Payload

_FULL = "CAPACITY_REACHED"
_NO_SESSION = (_FULL, "FACTORY_ERROR", "SESSION_ERROR")
"""Codes of error messages after which no session exists."""

CANCELLED = "the call was cancelled"


@dataclass(frozen=True)
class SessionLimits:
    """Limits of a session over a network."""

    connect_timeout_s: float = 10.0
    """Maximum duration of connecting, and of each GET, seconds."""
    step_timeout_s: float = 60.0
    """Maximum time to an answer, seconds."""
    max_message_mb: float = 100.0
    """Maximum size of a received message, MiB."""


class SessionState:
    """State of one session: whether it has begun, and the reason why it has ended.

    A connection that breaks or is refused is Unavailable before the first observation, since nothing has begun, and
    SessionLost after it. A protocol violation is always SessionLost.

    Args:
        name: the environment's name, the prefix of every reason.
        secrets: values that no message and no observation may show, mapped to their replacements.
        on_loss: called when a fault ends the session.
    """

    def __init__(
        self, name: str, secrets: Mapping[str, str] | None = None, on_loss: Callable[[], None] = lambda: None
    ) -> None:
        self._name = name
        self._secrets = secrets
        self._on_loss = on_loss
        self.lock = asyncio.Lock()
        """Lock held during a request: two concurrent requests would shift every later reply by one."""
        self.begun = False
        self.lost: str | None = None
        """Reason why the session has ended; None while it has not."""

    def check(self) -> None:
        """Raise SessionLost if the session has ended."""
        if self.lost is not None:
            raise SessionLost(self.lost)

    def end(self, reason: str) -> None:
        """End the session for `reason`, unless it has already ended."""
        self.lost = self.lost or reason

    def line(self, text: str) -> str:
        """Return a server's text as one short line without control characters or secrets."""
        return fault_line(text, self._secrets)

    def without_secrets(self, data: Any) -> Any:
        """Return a server's JSON data without secrets; raise ValueError if brackets are nested too deep."""
        return without_secrets(data, self._secrets)

    def lose(self, reason: str) -> str:
        """End the session because of a fault, and return the reason with the environment's name."""
        self.lost = self.line(f"{self._name}: {reason}")
        self._on_loss()
        return self.lost

    def broken(self, reason: str) -> Fault:
        """Lose the session because its connection broke or was never opened; return the fault."""
        line = self.lose(reason)
        return SessionLost(line) if self.begun else Unavailable(line)

    def nonsense(self, reason: str) -> SessionLost:
        """Lose the session because a reply violates the protocol or cannot be read; return the fault."""
        return SessionLost(self.lose(reason))

    def fault(self, error: JsonObject) -> Fault:
        """Return the fault for an error message's `data`. The session survives a BadAction and an EnvironmentFault."""
        code, message = error.get("code"), error.get("message")
        text = message if isinstance(message, str) and message.strip() else "it does not say why"
        if code == "VALIDATION_ERROR":
            return BadAction(self.line(errors_text(error.get("errors")) or text))
        if code == "EXECUTION_ERROR":
            return EnvironmentFault(self.line(text))
        reason = f"{text} ({code if isinstance(code, str) else json.dumps(code)})"
        if code == _FULL and not self.begun:
            return AtCapacity(self.lose(reason))
        return self.broken(reason) if code in _NO_SESSION else self.nonsense(reason)

    def payload(self, data: Any) -> Payload:
        """Return the payload of an observation message's `data`; raise SessionLost if it is malformed."""
        try:
            return Payload.from_data(self.without_secrets(data))
        except ValueError as error:
            raise self.nonsense(f"it sent a malformed observation: {error}") from None
