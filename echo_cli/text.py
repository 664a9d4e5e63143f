"""Text for people: escaped, clipped, and the nearest word to a misspelt one."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    pass


def shown(text: Path | str) -> str:
    """A path or name for a one-line message: what is not printable is escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def suggest(word: str, known: Any, noun: str) -> str:
    """A tip for an unknown `word`: the nearest of `known`, or all of them."""
    import difflib

    nearest = difflib.get_close_matches(word, list(known), n=1)
    return f"did you mean '{nearest[0]}'?" if nearest else f"{noun}: {', '.join(known)}"


CLIP = 200
"""Characters that are kept of a text."""


def clipped(text: str) -> str:
    """The first `CLIP` characters of `text`, with a mark where more were left out."""
    return text if len(text) <= CLIP else f"{text[:CLIP]}…"


def share(part: float, whole: float) -> float | None:
    """`part` of `whole`; None of nothing."""
    return part / whole if whole else None


# Control, format, surrogate, private and unassigned characters, and two that break a line.
_UNPRINTABLE = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")


def printable(text: str) -> str:
    """`text` with every control or format character but newline and tab shown as its code point."""
    return "".join(
        f"\\u{ord(character):04x}"
        if character not in "\n\t" and unicodedata.category(character) in _UNPRINTABLE
        else character
        for character in text
    )
