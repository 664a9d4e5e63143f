"""Text for people: escaped, clipped, and the nearest word to a misspelt one."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any

LINES = "\n\t"
"""What text of several lines keeps: `escape_unprintable(text, keep=LINES)`."""

# Control, format, surrogate, private and unassigned characters, and two that break a line.
_UNPRINTABLE = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")


def escape_unprintable(text: Path | str, *, keep: str = "") -> str:
    """Escape what a terminal or a page must not receive raw, as in `\\x1b`: control, format and unassigned characters.

    Args:
        keep: characters to leave as they are, such as newline and tab in text of several lines.
    """
    text = str(text)
    if text.isprintable():
        return text
    return "".join(
        character.encode("unicode_escape").decode()
        if character not in keep and unicodedata.category(character) in _UNPRINTABLE
        else character
        for character in text
    )


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
