"""The small parts of a report's page. Text of runs is data: it is escaped, and control characters are made visible."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from echo_cli.statistics import Estimate
from echo_cli.text import LINES, escape_unprintable

NAME, VALUE = 80, 300
"""Characters of a name and of a value that are shown."""


def text(value: str, most: int | None = None) -> str:
    """`value` as it may stand in the page, cut to `most` characters."""
    return escape(escape_unprintable(value if most is None else shortened_text(value, most), keep=LINES))


def name(value: str) -> str:
    """A name of a run, a task or a column."""
    return text(value, NAME)


def shortened_text(value: str, most: int) -> str:
    """`value`, with an ellipsis in place of what is beyond `most` characters."""
    return value if len(value) <= most else f"{value[: most - 1]}…"


def figure(value: float | None) -> str:
    """Three decimals where that says something, or a dash."""
    if value is None:
        return "–"
    return f"{value:.3f}" if value == 0 or 0.001 <= abs(value) < 1e5 else f"{value:.2e}"


def estimate(value: Estimate | None) -> str:
    """A figure with its interval, where it has one."""
    if value is None or value.low is None or value.high is None:
        return figure(None if value is None else value.value)
    return f'{figure(value.value)} <span class="interval">{figure(value.low)} to {figure(value.high)}</span>'


def section(place: str, title: str, body: str, attributes: str = "") -> str:
    """A part of the page that the contents name."""
    return (
        f'<section id="{place}" aria-labelledby="{place}-title"{attributes}>'
        f'<h2 id="{place}-title">{title}</h2>\n{body}</section>\n'
    )


def table(caption: str, columns: Sequence[str], bodies: str, kind: str = "") -> str:
    """A table that scrolls sideways where it has to, by keyboard too; `bodies` are its tbody elements."""
    heads = "".join(f'<th scope="col">{name(column)}</th>' if column else "<td></td>" for column in columns)
    return (
        f'<div class="wide" role="region" tabindex="0" aria-label="{text(caption)}">'
        f'<table class="{kind or "figures"}"><caption>{text(caption)}</caption>'
        f"<thead><tr>{heads}</tr></thead>{bodies}</table></div>"
    )


def word_table(caption: str, columns: Sequence[str], rows: Iterable[tuple[str, Sequence[str]]], most: int) -> str:
    """A table of words, each cut to `most` characters: rows of a heading and of the other cells."""
    body = "".join(
        f'<tr><th scope="row">{text(head, most)}</th>{"".join(f"<td>{text(cell, most)}</td>" for cell in cells)}</tr>'
        for head, cells in rows
    )
    return table(caption, columns, f"<tbody>{body}</tbody>", "words")


def bullets(lines: Iterable[str], kind: str) -> str:
    """A list of sentences."""
    return f'<ul class="{kind}">{"".join(f"<li>{text(line, 4 * VALUE)}</li>" for line in lines)}</ul>'
