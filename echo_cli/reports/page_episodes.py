"""The episodes of a report as HTML: text with roles, and beside it, in numbers, how hard each of its tokens is.

Without a script they stand one below the other; report.js pages through them and paints the heat.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from echo_cli.reports.content import PageEpisode, PageText, Report, in_turn, mean_nats, shortened
from echo_cli.reports.html import VALUE, name, section, text
from echo_cli.text import LINES, escape_unprintable

_SEGMENT_CHARACTERS, _EPISODE_CHARACTERS = 20_000, 60_000
_FULL_HEAT = "4"  # nats of the strongest colour
_MODES = ("before", "after", "difference", "off")
_LARGEST_NUMBER = 10**6
_SPARE = 400  # bytes, for the digits of the counts and the sentences about them

Chosen = list[tuple[int, PageEpisode]]
"""Runs by their number, and what is shown of their episodes."""


def fitting(report: Report, room: int) -> Chosen:
    """As many episodes as fit into `room` bytes, of every run and origin alike, and cut where they are long."""
    used, found = len(episodes(report, []).encode()) + len(_controls(report, []).encode()) + _SPARE, []
    for run, place in in_turn(report.runs):
        episode = shortened(report.runs[run].episodes[place], _SEGMENT_CHARACTERS, _EPISODE_CHARACTERS)
        size = len(
            (_article(episode, report, run, _LARGEST_NUMBER) + _option(episode, report, run, _LARGEST_NUMBER)).encode()
        )
        if used + size <= room:
            used += size
            found.append((run, place, episode))
    return [(run, episode) for run, _, episode in sorted(found, key=lambda entry: entry[:2])]


def episodes(report: Report, chosen: Chosen) -> str:
    """The section of the episodes."""
    notes = []
    if left_out := sum(run.episodes_there for run in report.runs) - len(chosen):
        notes.append(f"{left_out} more are left out: --episodes bounds them, and the page never grows beyond 2 MB.")
    if cut := sum(episode.is_cut for _, episode in chosen):
        notes.append(f"{cut} of those shown are cut, and say where.")
    said = "".join(f'<p class="quiet">{note}</p>' for note in notes)
    if not chosen:
        return section("episodes", "Episodes", f"<p>None to show.</p>{said}")
    articles = "".join(_article(episode, report, run, number) for number, (run, episode) in enumerate(chosen, start=1))
    intro = f"<p>Shown: {len(chosen)}, of the held-out pool and of the evaluation rollouts that the run has kept."
    if any(episode.has_heat for _, episode in chosen):
        intro += " Nats per token are those of the policy before training, and of the checkpoint."
    intro += (
        '</p><p class="quiet scripted controls" hidden>Keys: left and right turn the pages, comma and full stop walk '
        "along the tokens.</p>"
    )
    viewer = f'<div id="viewer" role="group" aria-label="Episode" data-full="{_FULL_HEAT}">\n{articles}</div>'
    return section("episodes", "Episodes", f"{intro}{said}{_controls(report, chosen)}{viewer}")


def _controls(report: Report, chosen: Chosen) -> str:
    options = "".join(_option(episode, report, run, number) for number, (run, episode) in enumerate(chosen, start=1))
    runs = "".join(f'<option value="{number}">{name(run.name)}</option>' for number, run in enumerate(report.runs))
    modes = "".join(
        f'<label><input type="radio" name="heat" value="{mode}"{" checked" * (mode == "after")}> {mode}</label>'
        for mode in _MODES
    )
    return (
        '<div class="controls" hidden><button type="button" id="previous">← Previous</button>'
        '<button type="button" id="next">Next →</button>'
        f'<label>Episode <select id="episode">{options}</select></label>'
        f"<label{' hidden' * (len(report.runs) == 1)}>Run "
        f'<select id="run"><option value="">all runs</option>{runs}</select></label>'
        '<output id="position"></output></div>'
        f'<div class="controls" hidden><fieldset><legend>Heat map, nats per token</legend>{modes}</fieldset>'
        f'<span class="scale">0 <i></i> {_FULL_HEAT} nats</span>'
        f'<span class="scale difference" hidden>easier −{_FULL_HEAT} <i></i> +{_FULL_HEAT} harder, underlined</span>'
        "</div>"
        '<output id="readout" class="controls" hidden></output>'
    )


def _option(episode: PageEpisode, report: Report, run: int, number: int) -> str:
    reward = "" if episode.reward is None else f", reward {episode.reward:g}"
    several = f"{name(report.runs[run].name)}, " if len(report.runs) > 1 else ""
    said = f"{number}: {several}{name(episode.task_id)}, {_origin(episode)}{reward}"
    return f'<option value="episode-{number}">{said}</option>'


def _origin(episode: PageEpisode) -> str:
    return episode.origin if episode.step is None else f"{episode.origin} of step {episode.step}"


def _article(episode: PageEpisode, report: Report, run: int, number: int) -> str:
    facts = {
        "run": report.runs[run].name,
        "from": _origin(episode),
        "source": episode.source,
        "reward": "no verifier" if episode.reward is None else f"{episode.reward:g}",
        "stop reason": episode.stop_reason,
    }
    if episode.advantage is not None:
        facts["advantage in its group"] = f"{episode.advantage:+.3f}"
    before, after = mean_nats(episode.texts, "env_output")
    if before is not None and after is not None:
        facts["env_output"] = f"{before:.3f} → {after:.3f} nats/token"
    rows = "".join(f"<div><dt>{key}</dt><dd>{text(value, VALUE)}</dd></div>" for key, value in facts.items())
    return (
        f'<article class="episode" id="episode-{number}" data-run="{run}">'
        f"<h3>Episode {number}: {name(episode.task_id)}</h3><dl>{rows}</dl>"
        f"{''.join(map(_segment, episode.texts))}</article>\n"
    )


def _segment(segment: PageText) -> str:
    pieces = [escape_unprintable(piece, keep=LINES) for piece in segment.pieces]
    if not any(pieces) and not segment.left_out:
        return ""
    heat, said = "", ""
    if segment.before is not None and segment.after is not None and pieces:
        heat = (
            f' data-pieces="{_numbers(map(_units, pieces))}" data-before="{_hundredths(segment.before)}"'
            f' data-after="{_hundredths(segment.after)}"'
        )
        before, after = (sum(nats) / len(nats) for nats in (segment.before, segment.after))
        said = f"<span>{before:.2f} → {after:.2f} nats/token</span>"
    channel = f" {name(segment.channel)}" if segment.channel else ""
    cut = f'<p class="cut">… {segment.left_out} characters left out</p>' if segment.left_out else ""
    return (
        f'<div class="segment role-{segment.role}"><p class="label"><b>{segment.role}</b>{channel}{said}</p>'
        f'<div class="text"{heat}>{escape("".join(pieces))}</div>{cut}</div>'
    )


def _hundredths(nats: Sequence[float]) -> str:
    return _numbers(round(100 * value) for value in nats)


def _numbers(values: Iterable[int]) -> str:
    return " ".join(map(str, values))


def _units(piece: str) -> int:
    """The length of a text as JavaScript counts it."""
    return len(piece.encode("utf-16-le")) // 2
