"""The exception for errors that a user can fix: a message, a tip and an exit code."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path
from typing import Any


class EchoError(Exception):
    """A user-facing error, printed as `error: message` and an indented `tip:`; never shown as a traceback.

    `exit_code` is 2 for usage and config errors, 1 for a runtime failure, 3 for a run that diverged or collapsed.
    """

    def __init__(self, message: str, tip: str | None = None, *, exit_code: int = 2) -> None:
        super().__init__(message)
        self.message = message
        self.tip = tip
        self.exit_code = exit_code

    def __reduce__(self) -> tuple[Any, ...]:
        """Return how to make the error again in another process, whatever the arguments of its class."""
        return _as_sent, (type(self), self.message, vars(self))


def _as_sent(kind: type[EchoError], message: str, values: dict[str, Any]) -> EchoError:
    error = kind.__new__(kind)
    Exception.__init__(error, message)
    vars(error).update(values)
    return error


def first_line(error: Exception) -> str:
    """Return the first line of an exception's text, or its class name if the text is empty."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def missing_package(what: str, package: str, extra: str) -> EchoError:
    """Return the error for a package of an extra that is not installed; its tip is the command that installs it."""
    return EchoError(f"{what} needs {package}, which is not installed", install_command(extra))


def install_command(extra: str) -> str:
    """Return the shell command that adds an extra to the Python environment that runs this process.

    A checkout's own `.venv` is extended by its script, which keeps the pinned versions and the editable install.
    """
    root = Path(__file__).resolve().parents[1]
    setup, constraints = root / "scripts" / "setup", root / "scripts" / "constraints.txt"
    if not setup.is_file():
        return f"{_pip()} install 'echo-cli[{extra}]'"
    if Path(sys.prefix).resolve() == root / ".venv":
        return f"bash {'scripts/setup' if Path.cwd() == root else shlex.quote(str(setup))} {extra}"
    return f"{_pip()} install -c {shlex.quote(str(constraints))} -e {shlex.quote(f'{root}[{extra}]')}"


def _pip() -> str:
    """Return `pip` if that command belongs to this Python, else this Python's path with `-m pip`."""
    found, folder = shutil.which("pip"), Path(sys.executable).parent
    return "pip" if found and Path(found).parent == folder else f"{shlex.quote(sys.executable)} -m pip"
