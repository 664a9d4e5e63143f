"""A report as one HTML file that needs nothing but itself, and is never larger than `MOST_BYTES`.

The page's policy lets the browser run the script and the style that are in it, by their hashes, and fetch nothing.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from echo_cli.errors import EchoError
from echo_cli.reports.charts import (
    Chart,
    chart_json,
    chart_svg,
    charts,
    dash,
    definitions,
    script_json,
    swatch,
    undrawn,
)
from echo_cli.reports.content import (
    MEASURES,
    ObservationHeat,
    Report,
    RunReport,
    differing,
    least_predictable,
    most_improved,
)
from echo_cli.reports.html import (
    NAME,
    VALUE,
    bullets,
    estimate,
    figure,
    name,
    section,
    shortened_text,
    table,
    text,
    word_table,
)
from echo_cli.reports.page_episodes import episodes, fitting
from echo_cli.text import LINES, escape_unprintable
from echo_cli.traces.inspection.account import Amount

MOST_BYTES = 2_000_000
_WITHOUT_EPISODES = 1_500_000  # so that some have room
_POINTS = (500, 200, 80, 30, 10)  # of a line: as many as fit
_OBSERVATION_CHARACTERS, _OBSERVATION_LINES = 1_200, 6
_ASSETS = Path(__file__).parent / "page_assets"
_SECTIONS = {
    **{"summary": "Summary", "curves": "Curves", "episodes": "Episodes", "observations": "Observations"},
    **{"roles": "Role shares", "config": "Config differences", "runs": "Runs"},
}
_POOLS = {"heldout": "held-out", "ood": "OOD", "traces": "held-out traces'"}


@dataclass(frozen=True)
class Page:
    """The file, and what has become of the episodes."""

    html: str
    shown: int
    cut: int
    left_out: int


def page(report: Report) -> Page:
    """The page of `report`, with as many of its episodes as there is room for.

    Raises:
        EchoError: the curves and tables of so many runs do not fit.
    """
    below = "".join(part(report) for part in (_observations, _roles, _config, _runs))
    for most in _POINTS:
        above = _summary(report) + _curves(report, most)
        size = len(_document(report, above + below).encode())
        if size <= _WITHOUT_EPISODES:
            break
    chosen = fitting(report, MOST_BYTES - size)
    html = _document(report, above + episodes(report, chosen) + below)
    if len(html.encode()) > MOST_BYTES:
        raise EchoError(f"the report of {len(report.runs)} runs is larger than 2 MB", "name fewer runs")
    left_out = sum(run.episodes_there for run in report.runs) - len(chosen)
    return Page(html, len(chosen), sum(episode.is_cut for _, episode in chosen), left_out)


def _document(report: Report, main: str) -> str:
    script, style = ((_ASSETS / file).read_text(encoding="utf-8") for file in ("report.js", "report.css"))
    policy = (
        f"default-src 'none'; script-src 'sha256-{_hash(script)}'; style-src 'sha256-{_hash(style)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    title = _title(report)
    links = "".join(f'<li><a href="#{place}">{label}</a></li>' for place, label in _SECTIONS.items())
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{style}</style>\n</head>\n<body>\n"
        f'<a class="skip" href="#main">Skip to the content</a>\n{definitions()}\n'
        f'<header><h1>{title}</h1>\n<nav aria-label="Contents"><ul>{links}</ul></nav></header>\n'
        f'<main id="main">\n{main}</main>\n'
        "<footer>Written by echo-cli report. A nat is 1.44 bits.</footer>\n"
        f"<script>{script}</script>\n</body>\n</html>\n"
    )


def _title(report: Report) -> str:
    names = [shortened_text(run.name, NAME) for run in report.runs]
    if len(names) == 1:
        return text(f"Report: {names[0]}")
    return text(f"Report of {len(names)} runs: {', '.join(names)}", VALUE)


def _summary(report: Report) -> str:
    cards = "".join(_card(number, run) for number, run in enumerate(report.runs))
    body = f'<div class="cards">{cards}</div>{_summary_table(report)}'
    for run in report.runs:
        if run.measured and run.pairs:
            pairs = " and ".join(f"{count} {_POOLS[pool]}" for pool, count in run.pairs.items())
            said = (
                f"all columns are over the same {pairs} (command, output) pairs, those that training had not executed. "
                "Intervals hold 95 %: bootstrap over trajectories, for pass@1 over tasks."
            )
            body += f'<p class="quiet">{name(run.name)}: {text(said)}</p>'
    if len(report.runs) > 1:
        said = (
            "Runs differ in which pairs they had not executed: eval-heldout --compare pairs two of them over the same."
        )
        body += f'<p class="quiet">{said}</p>'
    alarms = [alarm for run in report.runs for alarm in _of_run(report, run, run.alarms)]
    body += f"<h3>Warnings raised</h3>{bullets(alarms, 'notes alarms') if alarms else '<p>None.</p>'}"
    notes = [*report.notes, *(note for run in report.runs for note in _of_run(report, run, run.notes))]
    if notes:
        body += f"<h3>Missing or uncertain</h3>{bullets(notes, 'notes')}"
    return section("summary", _SECTIONS["summary"], body)


def _card(number: int, run: RunReport) -> str:
    columns = {column.label: column.figures for column in run.columns}
    before, now = columns.get("before", {}), columns.get("best") or columns.get("last") or {}
    rows = []
    for key in ("heldout/env_ce", "heldout/pass_at_1", "ood/env_ce", "traces/env_ce"):
        if key in now:
            # Without checkpoints "before" is over more pairs; what the same ones were is in the column itself.
            start = now.get(f"{key}_start") or before.get(key)
            change = f"{figure(start.value)} → {figure(now[key].value)}" if start else figure(now[key].value)
            rows.append(f"<div><dt>{MEASURES[key]}</dt><dd>{change}</dd></div>")
    status = ", λ = ".join(run.facts[key] for key in ("status", "λ") if key in run.facts)
    return (
        f'<div class="card"><h3>{swatch(number)}{name(run.name)} <span class="quiet">{text(status, VALUE)}</span></h3>'
        f"<dl>{''.join(rows)}</dl></div>"
    )


def _summary_table(report: Report) -> str:
    labels = list(dict.fromkeys(column.label for run in report.runs for column in run.columns))
    steps = {label: {c.step for run in report.runs for c in run.columns if c.label == label} for label in labels}
    several, bodies = len(report.runs) > 1, []
    for key, title in MEASURES.items():
        rows = []
        for run in report.runs:
            figures = {column.label: column.figures.get(key) for column in run.columns}
            if any(figures.values()):
                head = f'<th scope="row">{name(run.name)}</th>' if several else ""
                rows.append(head + "".join(f"<td>{estimate(figures.get(label))}</td>" for label in labels))
        if rows:
            scope = f'"rowgroup" rowspan="{len(rows)}"' if several else '"row"'
            rows[0] = f"<th scope={scope}>{title}</th>{rows[0]}"
            bodies.append(f"<tbody>{''.join(f'<tr>{row}</tr>' for row in rows)}</tbody>")
    if not bodies:
        return "<p>No held-out evaluation yet.</p>"
    heads = [_with_step(label, steps[label]) for label in labels]
    found = table(
        "Held-out measures",
        ["measure", *(["run"] if several else []), *heads],
        "".join(bodies),
        "several" * several,
    )
    if all(len(of) == 1 for of in steps.values()):
        return found
    uneven = [
        f"{name(run.name)}: {', '.join(f'{c.label} step {c.step}' for c in run.columns if c.label != 'before')}"
        for run in report.runs
    ]
    return f'{found}<p class="quiet">{"; ".join(uneven)}</p>'


def _with_step(label: str, steps: set[int | None]) -> str:
    """A column's heading; the step is part of it where all runs have the same."""
    return f"{label} (step {next(iter(steps))})" if label in ("best", "last") and len(steps) == 1 else label


def _curves(report: Report, most: int) -> str:
    names = [shortened_text(run.name, NAME) for run in report.runs]
    found = charts(report.curves, most)
    notes = []
    if any(chart.best for chart in found):
        notes.append("A star marks the best step, chosen on the validation pool.")
    if any(len(points) > most for curve in report.curves for points in curve.series.values()):
        notes.append(f"Lines of more than {most} points are thinned; their lowest and highest points stay.")
    if missing := undrawn(report.curves):
        notes.append(f"Without a value in any run: {', '.join(missing)}.")
    legend = "".join(f"<li>{swatch(number)}{text(run)}</li>" for number, run in enumerate(names))
    body = f'<ul class="legend" aria-label="Runs">{legend}</ul>' if len(names) > 1 else ""
    body += (
        f'<p class="quiet">{" ".join(notes)}</p>'
        '<p class="quiet scripted controls" id="chart-help" hidden>Drag across a chart to zoom, or give it the focus '
        "and turn the wheel; double click resets. Keys: left and right move along the steps, plus and minus zoom, "
        "0 resets."
        f'</p><div class="charts">{"".join(_chart(chart, names) for chart in found)}</div>'
    )
    runs = escape(script_json([escape_unprintable(run, keep=LINES) for run in names]))
    return section("curves", _SECTIONS["curves"], body, f' data-runs="{runs}"')


def _chart(chart: Chart, names: Sequence[str]) -> str:
    steps = sorted({step for line in chart.lines for step, _ in line.points})
    unit = f", {chart.unit}" if chart.unit else ""
    label = f"{chart.title}{unit}, steps {steps[0]} to {steps[-1]}; the table below has the values"
    dashes = "".join(f"<span>{dash(number)}{text(of)}</span>" for number, of in enumerate(chart.series))
    heads = [
        ", ".join([chart.series[line.series], *([names[line.run]] if len(names) > 1 else [])]) for line in chart.lines
    ]
    values = [dict(line.points) for line in chart.lines]
    rows = "".join(
        f'<tr><th scope="row">{step}{"".join(f"<td>{figure(at.get(step))}" for at in values)}' for step in steps
    )
    points = table(f"{chart.title} by step", ["step", *heads], f"<tbody>{rows}</tbody>")
    return (
        f'<figure class="chart"><div class="top"><h3>{chart.title} <span class="quiet">{chart.unit}</span></h3>'
        f'<button type="button" aria-label="Reset zoom of {chart.title}" hidden>Reset zoom</button></div>'
        f"{chart_svg(chart, label)}<output></output><figcaption>{dashes if len(chart.series) > 1 else ''}"
        f"<details><summary>Table of {chart.title}</summary>{points}</details></figcaption>"
        f'<script type="application/json">{chart_json(chart)}</script></figure>\n'
    )


def _observations(report: Report) -> str:
    body = ""
    for run in report.runs:
        if run.observations:
            body += _heading(report, run)
            for title, found in (
                ("Most improved", most_improved(run.observations)),
                ("Least predictable", least_predictable(run.observations)),
            ):
                caption = (
                    f"{title} of the {len(run.observations)} observations in the held-out pool: nats per token, before "
                    f"training and at step {run.checkpoint}"
                )
                if not found:
                    body += f"<p>{caption}: none.</p>"
                    continue
                body += table(
                    caption,
                    ["command", "output", "tokens", "before", "after", "change", "training executed it"],
                    f"<tbody>{''.join(map(_observation, found))}</tbody>",
                    "commands",
                )
    return section("observations", _SECTIONS["observations"], body or "<p>No held-out pool was scored.</p>")


def _observation(found: ObservationHeat) -> str:
    return (
        f'<tr><th scope="row"><pre>{text(found.command, _OBSERVATION_CHARACTERS)}</pre></th>'
        f"<td>{_output(found.output)}</td>"
        f"<td>{found.tokens}</td><td>{figure(found.before)}</td><td>{figure(found.after)}</td>"
        f"<td>{found.after - found.before:+.3f}</td><td>{'no' if found.novel else 'yes'}</td></tr>"
    )


def _output(output: str) -> str:
    """The first lines of an output, and the others to unfold."""
    more = len(output) - _OBSERVATION_CHARACTERS
    lines = output[:_OBSERVATION_CHARACTERS].splitlines()
    first, rest = lines[:_OBSERVATION_LINES], lines[_OBSERVATION_LINES:]
    said = f'<p class="quiet">{more} more characters left out</p>' if more > 0 else ""
    if not rest:
        return f"<pre>\n{text(chr(10).join(first))}</pre>{said}"
    return (
        f"<pre>\n{text(chr(10).join(first))}</pre><details><summary>{len(rest)} more lines</summary>"
        f"<pre>\n{text(chr(10).join(rest))}</pre>{said}</details>"
    )


def _roles(report: Report) -> str:
    body = ""
    for run in report.runs:
        body += _heading(report, run)
        if run.roles is not None:
            rows = "".join(_role(role, amount) for role, amount in run.roles.roles.items())
            heads = ["role", "tokens", "share", "", "bytes", "share of bytes"]
            body += table("Roles in all kept evaluation rollouts", heads, f"<tbody>{rows}</tbody>")
            if run.roles.discarded_share is not None:
                body += (
                    f"<p>Plain RL discards {run.roles.discarded_share:.1%} of what could be learned: "
                    f"{run.roles.discarded_tokens:,} of {run.roles.learnable_tokens:,} tokens of action, env_output "
                    "and warning. It learns from the actions alone.</p>"
                )
        actions, observed = run.trained_on
        if actions + observed:
            body += (
                f"<p>Over all of training, explorers included: {actions:,} action tokens, and {observed:,} tokens "
                f"for the env term, {observed / (actions + observed):.1%} of both.</p>"
            )
    return section("roles", _SECTIONS["roles"], body or "<p>Nothing was counted.</p>")


def _role(role: str, amount: Amount) -> str:
    share = amount.tokens_share or 0.0
    return (
        f'<tr><th scope="row">{role}</th><td>{amount.tokens}</td><td>{share:.1%}</td><td>'
        '<svg class="share" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="role-{role}" width="{100 * share:.2f}" height="10"/></svg></td>'
        f"<td>{amount.bytes}</td><td>{amount.bytes_share or 0.0:.1%}</td></tr>"
    )


def _config(report: Report) -> str:
    rows = differing(report)
    if not rows:
        same = f"The config is that of the {report.runs[0].base[0]}." if len(report.runs) == 1 else "There are none."
        return section("config", _SECTIONS["config"], f"<p>{text(same)}</p>")
    names = list(next(iter(rows.values())))
    caption = "Keys whose values differ" if len(report.runs) > 1 else f"Where the run departs from the {names[0]}"
    cells = [(key, [_value(row[of]) for of in names]) for key, row in rows.items()]
    return section("config", _SECTIONS["config"], word_table(caption, ["key", *names], cells, VALUE))


def _value(value: Any) -> str:
    return "–" if value is None else value if isinstance(value, str) else json.dumps(value)


def _runs(report: Report) -> str:
    keys = dict.fromkeys(key for run in report.runs for key in run.facts)
    cells = [(key, [run.facts.get(key, "–") for run in report.runs]) for key in keys]
    heads = ["", *(run.name for run in report.runs)]
    found = word_table("Versions, machine and command line", heads, cells, 4 * VALUE)
    return section("runs", _SECTIONS["runs"], found)


def _heading(report: Report, run: RunReport) -> str:
    return f"<h3>{name(run.name)}</h3>" if len(report.runs) > 1 else ""


def _of_run(report: Report, run: RunReport, lines: Iterable[str]) -> list[str]:
    return [f"{shortened_text(run.name, NAME)}: {line}" if len(report.runs) > 1 else line for line in lines]


def _hash(source: str) -> str:
    return base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
