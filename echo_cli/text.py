"""Text for display: escaping, clipping, suggestions for misspelt words."""

from __future__ import annotations

import json
import re
import unicodedata
from pathlib import Path
from typing import Any

_SIGNATURES = (
    (b"\xff\xfe\0\0", "UTF-32"),
    (b"\0\0\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
    (b"\x1f\x8b", "gzip"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\0", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"PK\x03\x04", "zip"),
)
_DECOMPRESS = {"gzip": "gzip -dk", "bzip2": "bzip2 -dk", "xz": "xz -dk", "zstd": "zstd -d", "zip": "unzip"}

LINES = "\n\t"
"""Characters to keep in multi-line text: `escape_unprintable(text, keep=LINES)`."""

# Control, format, surrogate, private-use and unassigned characters, and the line and paragraph separators.
_UNPRINTABLE = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")


def escape_unprintable(text: Path | str, *, keep: str = "") -> str:
    """Escape characters that a terminal or page must not receive raw; for example, ESC becomes `\\x1b`.

    Args:
        keep: characters not to escape, such as newline and tab in multi-line text.
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


def foreign_encoding(start: bytes) -> tuple[str, str] | None:
    """Return the encoding other than UTF-8 that a file's first bytes name, and a tip; None if they name none."""
    found = next((name for signature, name in _SIGNATURES if start.startswith(signature)), None)
    if found is None:
        return None
    if found in _DECOMPRESS:
        return found, f"decompress it: {_DECOMPRESS[found]} FILE"
    return found, f"convert it: iconv -f {found} -t UTF-8 FILE > NEW"


def json_problem(error: json.JSONDecodeError) -> str:
    """Return what is wrong with a JSON text, without its place, whose end some of the parser's messages need."""
    return re.sub(r"( starting)? at$", "", error.msg)


def suggest(word: str, known: Any, noun: str) -> str:
    """Return a tip for an unknown `word`: the nearest of the `known` words, or all of them after `noun`."""
    import difflib

    nearest = difflib.get_close_matches(word, list(known), n=1)
    return f"did you mean '{nearest[0]}'?" if nearest else f"{noun}: {', '.join(known)}"


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """Return a number with its noun, in the plural unless it is 1; for example, `1 rollout` and `0 rollouts`."""
    return f"{count} {noun if count == 1 else plural or f'{noun}s'}"


CLIP = 200
"""Maximum length of a clipped text, characters."""


def clipped(text: str) -> str:
    """Return the first `CLIP` characters of `text`, followed by `…` if more were omitted."""
    return text if len(text) <= CLIP else f"{text[:CLIP]}…"


def size_of(text: str) -> int:
    """Return the size of `text` in UTF-8, bytes."""
    return len(text) if text.isascii() else len(text.encode())


def share(part: float, whole: float) -> float | None:
    """Return `part / whole`; None if `whole` is 0."""
    return part / whole if whole else None


def without_middle(text: str, length: int) -> str:
    """Return `text`, with its middle replaced by an ellipsis if it is longer than `length` characters."""
    half = length // 2
    return text if len(text) <= length else f"{text[: half - 1]}…{text[-half:]}"
