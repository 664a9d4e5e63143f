"""A sweep on one page: report.html, which needs nothing but itself. All text in it is escaped."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import yaml

from echo_cli.files import write_atomic
from echo_cli.sweeps.results import LambdaResult
from echo_cli.sweeps.tables import NOTES, SweepTable, sweep_tables
from echo_cli.sweeps.verdict import RULE
from echo_cli.text import LINES, escape_unprintable

_STYLE = """
:root { color-scheme: light dark; --ink: #222; --quiet: #666; --line: #ddd; --page: #fff; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e4e4; --quiet: #a0a0a0; --line: #444; --page: #181818; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page);
  max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th { white-space: pre; vertical-align: bottom; } th:first-child, td:first-child { text-align: left; }
td.text { text-align: left; white-space: normal; }
img { width: 100%; height: auto; background: #fff; border-radius: 4px; margin: .5rem 0; }
p.note, ol { color: var(--quiet); font-size: .9rem; } pre { font-size: .85rem; overflow-x: auto; }
"""


def write_report(
    folder: Path,
    sweep: Mapping[str, Any],
    results: Sequence[LambdaResult],
    *,
    command: str,
    pictures: Sequence[tuple[str, Path]],
) -> Path:
    """Write report.html.

    Args:
        sweep: the object of sweep.json.
        command: what was typed.
        pictures: a caption and a PNG each; they become part of the file.

    Raises:
        EchoError: the disk is full (exit code 1) or the folder is not writable.
    """
    finished = sum(cell["status"] == "finished" for cell in sweep["cells"])
    seeds = dict.fromkeys(cell["seed"] for cell in sweep["cells"])
    title = f"λ sweep: {folder.name}"
    body = [
        f"<h1>{_text(title)}</h1>",
        f"<p>{len(results)} λ × {len(seeds)} seeds ({', '.join(map(str, seeds))}), "
        f"{finished} of {len(sweep['cells'])} runs finished.</p>",
        "<h2>Verdicts</h2>",
        _html_table(["λ", "verdict", "why"], [[_lambda(row), row["verdict"], row["reason"]] for row in sweep["rows"]]),
        f"<p class=note>{_text(RULE[0])}</p><ol>{''.join(f'<li>{_text(line)}</li>' for line in RULE[1:-1])}</ol>",
        f"<p class=note>{_text(RULE[-1])}</p>",
        *(_picture(caption, path) for caption, path in pictures),
        *map(_figures, sweep_tables(results)),
        *(f"<p class=note>{_text(note)}</p>" for note in NOTES),
        *_not_finished(sweep["cells"]),
        f"<h2>What was run</h2><pre>{_text(command)}</pre>",
        f"<details><summary>config</summary><pre>{_text(yaml.safe_dump(sweep['config'], sort_keys=False))}</pre>"
        "</details>",
    ]
    page = (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(title)}</title>\n<style>{_STYLE}</style>\n<body>\n{chr(10).join(body)}\n</body>\n</html>\n"
    )
    path = folder / "report.html"
    write_atomic(path, page.encode())
    return path


def _text(text: str) -> str:
    return escape(escape_unprintable(text, keep=LINES))


def _lambda(row: Mapping[str, Any]) -> str:
    return f"{row['lambda']:.12g}"


def _figures(table: SweepTable) -> str:
    head = "".join(f"<th>{_text(column)}</th>" for column in table.columns)
    rows = "".join(f"<tr>{''.join(f'<td>{_text(cell)}</td>' for cell in row)}</tr>" for row in table.rows)
    return (
        f"<h2>{_text(table.title)}</h2><div class=wide><table><thead><tr>{head}</tr></thead>"
        f"<tbody>{rows}</tbody></table></div>"
    )


def _html_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of words: the columns after the first are aligned left too."""
    head = "".join(f'<th style="text-align: left">{_text(column)}</th>' for column in columns)
    lines = "".join(f"<tr>{''.join(f'<td class=text>{_text(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<div class=wide><table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>"


def _picture(caption: str, path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<h2>{_text(caption)}</h2><img alt="{_text(caption)}" src="data:image/png;base64,{data}">'


def _not_finished(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = [
        [_lambda(cell), str(cell["seed"]), cell["status"], cell["error"] or ""]
        for cell in cells
        if cell["status"] != "finished"
    ]
    return ["<h2>Runs that did not finish</h2>", _html_table(["λ", "seed", "status", "error"], rows)] if rows else []
