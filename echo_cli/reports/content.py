"""What a report shows, as plain values: curves, figures with intervals, shares, episodes with their heat, observations.

Everything here is pure; report_run.py fills it from a run directory, report_html.py writes it as a page.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain, zip_longest
from typing import Any, Literal

from echo_cli.runs.curves import Curve
from echo_cli.statistics import Estimate
from echo_cli.traces.inspection.account import RoleAccount

MEASURES: Mapping[str, str] = {
    "heldout/env_ce": "held-out env-CE, nats/token",
    "heldout/env_ce_start": "  the same pairs before training",
    "heldout/env_bits_per_byte": "held-out bits per byte",
    "heldout/token_accuracy": "held-out token accuracy",
    "heldout/pass_at_1": "held-out pass@1",
    "ood/env_ce": "OOD env-CE, nats/token",
    "ood/env_bits_per_byte": "OOD bits per byte",
    "ood/token_accuracy": "OOD token accuracy",
    "traces/env_ce": "held-out traces' env-CE, nats/token",
    "traces/env_bits_per_byte": "held-out traces' bits per byte",
    "traces/token_accuracy": "held-out traces' token accuracy",
}
"""The rows of the summary, with their titles."""

MOST_OBSERVATIONS = 10
"""How many observations each of the two tables has."""

Origin = Literal["held-out pool", "rollout"]


@dataclass(frozen=True)
class Column:
    """What one policy of a run scores: the policy before training, or that of a checkpoint."""

    label: str
    step: int | None
    figures: Mapping[str, Estimate]
    """By the keys of `MEASURES`."""


@dataclass(frozen=True)
class PageText:
    """A segment of an episode."""

    role: str
    channel: str | None
    pieces: tuple[str, ...]
    """Together the text; one a token where there is heat."""
    before: tuple[float, ...] | None = None
    """Nats of each piece under the policy before training."""
    after: tuple[float, ...] | None = None
    """The same under the checkpoint."""
    left_out: int = 0
    """Characters that were cut from its end."""


@dataclass(frozen=True)
class PageEpisode:
    """An episode to page through."""

    origin: Origin
    step: int | None
    """After which it was played; None in a pool."""
    task_id: str
    source: str
    stop_reason: str
    reward: float | None
    advantage: float | None
    """Within its group, where all of the group was kept."""
    texts: tuple[PageText, ...]

    @property
    def is_cut(self) -> bool:
        return any(text.left_out for text in self.texts)

    @property
    def has_heat(self) -> bool:
        return any(text.before is not None for text in self.texts)


@dataclass(frozen=True)
class ObservationHeat:
    """A (command, output) pair of the held-out pool, where it first occurs: nats per token of the output."""

    command: str
    output: str
    tokens: int
    before: float
    after: float
    novel: bool
    """Training had not executed it."""


@dataclass(frozen=True)
class RunReport:
    """One run."""

    name: str
    facts: Mapping[str, str]
    """Status, versions, command line and so on, by their names."""
    columns: tuple[Column, ...]
    measured: bool
    """The columns were measured from checkpoints, all over the same pairs, with intervals."""
    pairs: Mapping[str, int]
    """By pool, the pairs that the figures are over, where `measured`."""
    config: Mapping[str, Any]
    """By dotted key paths."""
    base: tuple[str, Mapping[str, Any]]
    """The shipped config, or the defaults, that it started from: name and keys."""
    roles: RoleAccount | None
    """Of all its kept rollouts; None where it has kept none."""
    trained_on: tuple[int, int]
    """Tokens of actions and targets of the env term over all of training."""
    alarms: tuple[str, ...]
    notes: tuple[str, ...]
    """What is missing or uncertain."""
    checkpoint: int | None
    """The step of the policy that `after` is of."""
    episodes: tuple[PageEpisode, ...]
    episodes_there: int
    """How many there were to choose from."""
    observations: tuple[ObservationHeat, ...]


@dataclass(frozen=True)
class Report:
    """The runs of a page and what is over all of them."""

    runs: tuple[RunReport, ...]
    curves: tuple[Curve, ...]
    notes: tuple[str, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """What the page says in figures: without curves, which are in metrics.jsonl, and without episodes."""
        return {"runs": [_run_json(run) for run in self.runs], "differences": differing(self), "notes": self.notes}


def plain_columns(summary: Mapping[str, Any]) -> tuple[Column, ...]:
    """The columns of summary.json: figures without intervals."""
    columns = []
    for label in ("before", "best", "last"):
        parts = {pool: (summary.get(pool) or {}).get(label) or {} for pool in ("heldout", "ood", "traces")}
        figures = {
            key: Estimate(value, None, None)
            for key in MEASURES
            if (value := parts[key.split("/")[0]].get(key.split("/")[1])) is not None
        }
        if figures:
            columns.append(Column(label, parts["heldout"].get("step"), figures))
    return tuple(columns)


def differing(report: Report) -> dict[str, dict[str, Any]]:
    """The config keys whose values are not the same in all runs, with the value of each; None: it has no such key.

    For one run, those in which it departs from what it started from.
    """
    configs = {run.name: run.config for run in report.runs}
    if len(report.runs) == 1:
        configs = dict([report.runs[0].base]) | configs
    keys = sorted({key for config in configs.values() for key in config})
    rows = {key: {name: config.get(key) for name, config in configs.items()} for key in keys}
    return {key: row for key, row in rows.items() if any(value != next(iter(row.values())) for value in row.values())}


def most_improved(observations: Sequence[ObservationHeat]) -> list[ObservationHeat]:
    """Those that training has made easier, the largest drop in nats per token first."""
    better = [found for found in observations if found.after < found.before]
    return sorted(better, key=lambda found: found.after - found.before)[:MOST_OBSERVATIONS]


def least_predictable(observations: Sequence[ObservationHeat]) -> list[ObservationHeat]:
    """The most nats per token after training first."""
    return sorted(observations, key=lambda found: -found.after)[:MOST_OBSERVATIONS]


def in_turn(runs: Sequence[RunReport]) -> Iterator[tuple[int, int]]:
    """(run, episode) of all episodes such that any beginning has its share of every run and origin."""
    queues: dict[tuple[int, str], list[tuple[int, int]]] = {}
    for number, run in enumerate(runs):
        for place, episode in enumerate(run.episodes):
            queues.setdefault((number, episode.origin), []).append((number, place))
    return (place for places in zip_longest(*queues.values()) for place in places if place is not None)


def shortened(episode: PageEpisode, segment_characters: int, characters: int) -> PageEpisode:
    """`episode` with at most that many characters of a segment, and in all; the texts say what was left out."""
    texts, left = [], characters
    for text in episode.texts:
        short = _shortened(text, min(segment_characters, left))
        left -= sum(map(len, short.pieces))
        texts.append(short)
    return replace(episode, texts=tuple(texts))


def _shortened(text: PageText, most: int) -> PageText:
    length = sum(map(len, text.pieces))
    if length <= most:
        return text
    kept, room = 0, most
    while len(text.pieces[kept]) <= room:
        room -= len(text.pieces[kept])
        kept += 1
    pieces = (*text.pieces[:kept], text.pieces[kept][:room]) if room else text.pieces[:kept]
    before, after = (None if nats is None else nats[: len(pieces)] for nats in (text.before, text.after))
    return replace(text, pieces=pieces, before=before, after=after, left_out=length - most)


def _run_json(run: RunReport) -> dict[str, Any]:
    kept = ("name", "facts", "measured", "pairs", "roles", "alarms", "notes", "checkpoint")
    record = {key: value for key, value in asdict(run).items() if key in kept}
    for name, chosen in (("most_improved", most_improved), ("least_predictable", least_predictable)):
        record[name] = [asdict(found) for found in chosen(run.observations)]
    return {**record, "columns": [asdict(c) for c in run.columns]}


def mean_nats(texts: Sequence[PageText], role: str) -> tuple[float | None, float | None]:
    """Nats per token before and after, over the scored texts of `role`."""
    chosen = [text for text in texts if text.role == role]
    return _mean([text.before for text in chosen]), _mean([text.after for text in chosen])


def _mean(parts: Sequence[Sequence[float] | None]) -> float | None:
    nats = list(chain.from_iterable(part for part in parts if part is not None))
    return math.fsum(nats) / len(nats) if nats else None
