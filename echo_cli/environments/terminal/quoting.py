"""Text as one word of bash."""

from __future__ import annotations

import re

UNTYPABLE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
"""Control characters that a terminal does not pass on as typed text; a tab is none of them."""
_ESCAPES = {"\\": "\\\\", "'": "\\'", "\n": "\\n", "\0": ""}


def quoted(text: str) -> str:
    """Return `text` as one word of bash, on one line and without control characters; NUL is omitted."""
    shown = (_ESCAPES[sign] if sign in _ESCAPES else _shown(sign) for sign in text)
    return f"$'{''.join(shown)}'"


def _shown(sign: str) -> str:
    return f"\\x{ord(sign):02x}" if UNTYPABLE.match(sign) else sign
