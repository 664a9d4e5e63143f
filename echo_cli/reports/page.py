"""A report as one self-contained HTML file of at most `MOST_BYTES` bytes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from echo_cli.errors import EchoError
from echo_cli.reports.charts import Chart, charts, undrawn
from echo_cli.reports.content import (
    MEASURES,
    PageEpisode,
    Report,
    RunReport,
    differing,
    in_turn,
    least_predictable,
    mean_nats,
    most_improved,
    shortened,
)
from echo_cli.reports.html import figure, short, templates
from echo_cli.runs.parts import base_of, environment_in

_SEGMENT_CHARACTERS, _EPISODE_CHARACTERS = 20_000, 60_000
_LARGEST_NUMBER = 10**6
_SPARE = 400  # bytes reserved for the episode counts and the sentences around them


@dataclass(frozen=True)
class ShownEpisode:
    """An episode as the page shows it."""

    run: int
    """Index of the episode's run in the report, 0-based."""
    place: int
    """Index of the episode within its run, 0-based."""
    content: PageEpisode
    facts: dict[str, str]
    """Values shown above the text, by label."""


def fitting(report: Report, room: int) -> list[ShownEpisode]:
    """Return as many episodes as fit into `room` bytes, taken from all runs and origins in turn, in report order."""
    names = [short(run.name) for run in report.runs]
    parts: Any = templates().get_template("episodes.html").module
    used, found = len(parts.viewer(names, []).encode()) + _SPARE, []
    for run, place in in_turn(report.runs):
        episode = shortened(report.runs[run].episodes[place], _SEGMENT_CHARACTERS, _EPISODE_CHARACTERS)
        shown = ShownEpisode(run, place, episode, _facts(report.runs[run].name, episode))
        html = parts.article(shown, _LARGEST_NUMBER) + parts.option(names, shown, _LARGEST_NUMBER)
        if used + len(html.encode()) <= room:
            used += len(html.encode())
            found.append(shown)
    return sorted(found, key=lambda shown: (shown.run, shown.place))


def _facts(run: str, episode: PageEpisode) -> dict[str, str]:
    facts = {
        "run": run,
        "from": episode.origin if episode.step is None else f"{episode.origin} of step {episode.step}",
        "source": episode.source,
        "reward": "no verifier" if episode.reward is None else f"{episode.reward:g}",
        "stop reason": episode.stop_reason,
    }
    if episode.criteria:
        facts["criteria"] = ", ".join(
            f"{name} {'-' if value is None else f'{value:g}'}" for name, value in episode.criteria.items()
        )
    if episode.grader_fault is not None:
        facts["grader"] = episode.grader_fault
    if episode.advantage is not None:
        facts["advantage in its group"] = f"{episode.advantage:+.3f}"
    before, after = mean_nats(episode.texts, "env_output")
    if before is not None and after is not None:
        facts["env_output"] = f"{before:.3f} → {after:.3f} nats/token"
    return facts


MOST_BYTES = 2_000_000
_WITHOUT_EPISODES = 1_500_000  # bytes of everything else, so that some episodes fit
_POINTS = (500, 200, 80, 30, 10)  # points per line; the page uses the most that fit
_ON_CARDS = ("heldout/env_ce", "heldout/env_ce_seen", "heldout/pass_at_1", "ood/env_ce", "traces/env_ce")
_POOLS = {"heldout": "held-out", "ood": "OOD", "traces": "held-out traces'"}


def _pools_of(report: Report) -> dict[str, str]:
    """Return the titles of the pools, and of the parts of several environments."""
    parts = {pool for run in report.runs for pool in run.pairs if pool not in _POOLS}
    return _POOLS | {part: f"{_POOLS[base_of(part)]} {environment_in(part)}" for part in parts}


@dataclass(frozen=True)
class Page:
    """The HTML, with the number of episodes that it shows, truncates and omits."""

    html: str
    shown: int
    cut: int
    left_out: int


def page(report: Report) -> Page:
    """Return the page of `report`, with as many of its episodes as fit.

    Raises:
        EchoError: the curves and tables alone exceed `MOST_BYTES`.
    """
    values = {"report": report, "names": [short(run.name) for run in report.runs], "pools": _pools_of(report)}
    values |= _summary(report) | _tables(report)
    for most in _POINTS:
        values |= _curves(report, most)
        size = len(_page(values, report, []).html.encode())
        if size <= _WITHOUT_EPISODES:
            break
    found = _page(values, report, fitting(report, MOST_BYTES - size))
    if len(found.html.encode()) > MOST_BYTES:
        raise EchoError(f"the report of {len(report.runs)} runs is larger than 2 MB", "pass fewer runs")
    return found


def _page(values: dict[str, Any], report: Report, episodes: list[ShownEpisode]) -> Page:
    cut = sum(shown.content.is_cut for shown in episodes)
    left_out = sum(run.episodes_there for run in report.runs) - len(episodes)
    html = templates().get_template("report.html").render(values, episodes=episodes, cut=cut, left_out=left_out)
    return Page(html, len(episodes), cut, left_out)


def _summary(report: Report) -> dict[str, Any]:
    """Return the template values of the head and the summary: title, cards, rows of measures, warnings and notes."""
    names = [short(run.name) for run in report.runs]
    columns = [{column.label: column for column in run.columns} for run in report.runs]
    labels = list(dict.fromkeys(label for of in columns for label in of))
    steps = {label: {of[label].step for of in columns if label in of} for label in labels}
    measures = []
    for key, title in report.measures.items():
        found = [[of[label].figures.get(key) if label in of else None for label in labels] for of in columns]
        if rows := [(run, estimates) for run, estimates in enumerate(found) if any(estimates)]:
            measures.append((title, rows))
    uneven = [
        f"{name}: {', '.join(f'{c.label} step {c.step}' for c in run.columns if c.label != 'before')}"
        for name, run in zip(names, report.runs, strict=True)
    ]
    one = len(names) == 1
    alarms, notes = (
        [line if one else f"{short(run.name)}: {line}" for run in report.runs for line in getattr(run, kind)]
        for kind in ("alarms", "notes")
    )
    return {
        "title": short(f"Report: {names[0]}" if one else f"Report of {len(names)} runs: {', '.join(names)}", 300),
        "cards": [_card(run) for run in report.runs],
        # A heading contains the step if it is the same in all runs.
        "headings": [
            f"{label} (step {next(iter(steps[label]))})"
            if label in ("best", "last") and len(steps[label]) == 1
            else label
            for label in labels
        ],
        "measures": measures,
        "uneven": uneven if any(len(of) > 1 for of in steps.values()) else [],
        "alarms": alarms,
        "notes": [*report.notes, *notes],
    }


def _card(run: RunReport) -> tuple[str, list[tuple[str, str]]]:
    """Return a run's status, and its main measures before and after training."""
    columns = {column.label: column.figures for column in run.columns}
    before, now = columns.get("before", {}), columns.get("best") or columns.get("last") or {}
    changes = []
    for key in _ON_CARDS:
        if key in now:
            # Without checkpoints "before" covers more pairs; `*_start` is the measure before training on these pairs.
            start = now.get(f"{key}_start") or before.get(key)
            values = [figure(estimate.value) for estimate in (start, now[key]) if estimate]
            changes.append((MEASURES[key], " → ".join(values)))
    return ", λ = ".join(run.facts[key] for key in ("status", "λ") if key in run.facts), changes


def _curves(report: Report, most: int) -> dict[str, Any]:
    """Return the charts, with at most `most` points per line, and remarks on them."""
    found = charts(report.curves, most)
    return {"box": Chart.box, "charts": found, "remarks": list(_remarks(report, found, most))}


def _remarks(report: Report, found: list[Chart], most: int) -> Iterator[str]:
    if any(chart.best for chart in found):
        measures = sorted({curve.selected_by for curve in report.curves if curve.best_step is not None})
        yield f"A star marks the held-out figure at the best step, which {' or '.join(measures)} has chosen."
    if any(len(points) > most for curve in report.curves for points in curve.series.values()):
        yield f"Lines of more than {most} points are thinned; their minima and maxima are kept."
    if missing := undrawn(report.curves):
        yield f"No run has values for: {', '.join(missing)}."


def _tables(report: Report) -> dict[str, Any]:
    """Return the template values of the tables below the episodes."""
    rows = differing(report)
    departures = list(next(iter(rows.values()))) if rows else [report.runs[0].base[0]]
    keys = dict.fromkeys(key for run in report.runs for key in run.facts)
    return {
        "most_improved": most_improved,
        "least_predictable": least_predictable,
        "departures": departures,
        "differences": [(key, [_value(row[name]) for name in departures]) for key, row in rows.items()],
        "facts": [(key, [run.facts.get(key, "–") for run in report.runs]) for key in keys],
    }


def _value(value: Any) -> str:
    return "–" if value is None else value if isinstance(value, str) else json.dumps(value)
