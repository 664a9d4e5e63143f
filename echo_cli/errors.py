"""The exception for errors that a user can fix: a message, a tip and an exit code."""

from __future__ import annotations


class EchoError(Exception):
    """A user-facing error, printed as `error: message` and an indented `tip:`; never shown as a traceback.

    `exit_code` is 2 for usage and config errors, 1 for a runtime failure, 3 for a run that diverged or collapsed.
    """

    def __init__(self, message: str, tip: str | None = None, *, exit_code: int = 2) -> None:
        super().__init__(message)
        self.message = message
        self.tip = tip
        self.exit_code = exit_code


def first_line(error: Exception) -> str:
    """Return the first line of an exception's text, or its class name if the text is empty."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
