"""An environment's words about a fault as one short line: data, whatever they say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from echo_cli.storage import shown

_LINE_CHARS = 300
_SHOWN_ERRORS = 3


def fault_line(text: str, secrets: Mapping[str, str] | None = None) -> str:
    """`text` as one line without control characters, cut at 300; `secrets` are replaced by what they map to."""
    for secret in sorted(secrets or {}, key=len, reverse=True):  # one may be a part of another
        text = text.replace(secret, (secrets or {})[secret])
    line = " ".join(text.split())
    return shown(line if len(line) <= _LINE_CHARS else line[: _LINE_CHARS - 1] + "…")


def errors_line(errors: Any) -> str:
    """The first entries of pydantic's list of errors as `where: what`; the input is left out."""
    if not isinstance(errors, Sequence) or isinstance(errors, str):
        return ""
    entries = [error for error in errors if isinstance(error, dict)]
    lines = []
    for error in entries[:_SHOWN_ERRORS]:
        where = error.get("loc")
        path = ".".join(map(str, where)) if isinstance(where, list | tuple) else ""
        lines.append(f"{path}: {error.get('msg')}" if path else str(error.get("msg")))
    more = len(entries) - len(lines)
    return fault_line("; ".join(lines) + (f"; and {more} more" if more else ""))
