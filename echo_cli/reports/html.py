"""HTML pages from Jinja templates; values are escaped, and their unprintable characters are made visible."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from echo_cli.text import LINES, escape_unprintable


@cache
def templates() -> Environment:
    """Return the Jinja environment; its globals `style` and `script` are the files in page_assets."""
    folder = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(folder / "templates"),
        autoescape=True,
        finalize=_printable,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    environment.filters.update(
        figure=figure,
        hundredths=_hundredths,
        printable=_printable,
        script_lengths=_script_lengths,
        sha256=_sha256,
        short=short,
    )
    for name, file in (("style", "report.css"), ("script", "report.js")):
        environment.globals[name] = Markup((folder / "page_assets" / file).read_text(encoding="utf-8"))
    return environment


def short(value: str, most: int = 80) -> str:
    """Return `value`, cut to `most` characters with an ellipsis at the end; the default suits a name."""
    return value if len(value) <= most else f"{value[: most - 1]}…"


def figure(value: float | None) -> str:
    """Format `value` with three decimals, a tiny or huge one in scientific notation, None as a dash."""
    if value is None:
        return "–"
    return f"{value:.3f}" if value == 0 or 0.001 <= abs(value) < 1e5 else f"{value:.2e}"


def _printable(value: object) -> str:
    """Return `value` as text with unprintable characters made visible; markup, already printable, is unchanged."""
    return value if isinstance(value, Markup) else escape_unprintable(str(value), keep=LINES)


def _sha256(source: str) -> str:
    """Return the hash by which a Content-Security-Policy allows an inline script or style."""
    return base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()


def _hundredths(values: Sequence[float]) -> str:
    return " ".join(str(round(100 * value)) for value in values)


def _script_lengths(pieces: Sequence[str]) -> str:
    """Return the lengths of `pieces` as JavaScript counts them, in UTF-16 code units."""
    return " ".join(str(len(_printable(piece).encode("utf-16-le")) // 2) for piece in pieces)
