"""The episodes of a report's page: as many as there is room for, cut where they are long."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from echo_cli.reports.content import PageEpisode, Report, in_turn, mean_nats, shortened
from echo_cli.reports.html import short, templates

_SEGMENT_CHARACTERS, _EPISODE_CHARACTERS = 20_000, 60_000
_LARGEST_NUMBER = 10**6
_SPARE = 400  # bytes, for the digits of the counts and the sentences about them


@dataclass(frozen=True)
class ShownEpisode:
    """An episode of the page."""

    run: int
    """Number of its run in the report, 0-based."""
    place: int
    """Number among the episodes of its run, 0-based."""
    content: PageEpisode
    facts: dict[str, str]
    """Values above its text, by their names."""


def fitting(report: Report, room: int) -> list[ShownEpisode]:
    """Return as many episodes as fit into `room` bytes, of every run and origin alike, in the order of the report."""
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
    if episode.advantage is not None:
        facts["advantage in its group"] = f"{episode.advantage:+.3f}"
    before, after = mean_nats(episode.texts, "env_output")
    if before is not None and after is not None:
        facts["env_output"] = f"{before:.3f} → {after:.3f} nats/token"
    return facts
