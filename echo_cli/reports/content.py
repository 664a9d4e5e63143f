"""Content of a report as plain values: curves, figures with intervals, role shares, episodes and observations.

*Heat* is the loss of each token of an episode. The functions here are pure; run_content.py reads the content from a run
directory, page.py renders it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain, zip_longest
from typing import Any, Literal

from echo_cli.runs.curves import Curve
from echo_cli.runs.summary import is_met, measures_at, summary_of
from echo_cli.statistics import Estimate
from echo_cli.traces.inspection.account import RoleAccount

MEASURES: Mapping[str, str] = {
    "heldout/env_ce": "held-out env-CE, nats/token",
    "heldout/env_ce_start": "  the same pairs before training",
    "heldout/env_ce_shown": "  of pairs whose lines were all shown in training",
    "heldout/env_ce_unshown": "  of pairs with a line never shown",
    "heldout/env_ce_seen": "held-out env-CE of seen pairs, as none is novel",
    "heldout/env_bits_per_byte": "held-out bits per byte",
    "heldout/token_accuracy": "held-out token accuracy",
    "heldout/pass_at_1": "held-out pass@1",
    "heldout/mean_reward": "held-out mean reward",
    "ood/env_ce": "OOD env-CE, nats/token",
    "ood/env_ce_seen": "OOD env-CE of seen pairs, as none is novel",
    "ood/env_bits_per_byte": "OOD bits per byte",
    "ood/token_accuracy": "OOD token accuracy",
    "traces/env_ce": "held-out traces' env-CE, nats/token",
    "traces/env_ce_seen": "held-out traces' env-CE of seen pairs, as none is novel",
    "traces/env_bits_per_byte": "held-out traces' bits per byte",
    "traces/token_accuracy": "held-out traces' token accuracy",
}
"""Rows of the summary, with their titles."""


_EACH = {
    "heldout/env_ce": "held-out env-CE, nats/token",
    "heldout/env_ce_seen": "held-out env-CE of seen pairs, as none is novel",
    "heldout/pass_at_1": "held-out pass@1",
    "heldout/mean_reward": "held-out mean reward",
    "ood/env_ce": "OOD env-CE, nats/token",
}
"""Rows of the summary for each of several environments, with their titles."""


def measures_of(criteria: Iterable[str], environments: Iterable[str] = ()) -> Mapping[str, str]:
    """Return the rows of the summary of runs whose graders have these criteria, with their titles."""
    each = {key.replace("/", f"/{name}/"): f"{name}: {title}" for name in environments for key, title in _EACH.items()}
    return {**MEASURES, **each, **{f"heldout/criterion_{name}": f"held-out criterion {name}" for name in criteria}}


MOST_OBSERVATIONS = 10
"""Maximum number of observations in each table: most improved, least predictable."""

Origin = Literal["held-out pool", "rollout"]


@dataclass(frozen=True)
class Column:
    """Figures of one policy of a run: the initial policy or a checkpoint."""

    label: str
    step: int | None
    figures: Mapping[str, Estimate]
    """Figures by the keys of `measures_of`."""


@dataclass(frozen=True)
class PageText:
    """A segment of an episode."""

    role: str
    channel: str | None
    pieces: tuple[str, ...]
    """Parts of the text; one per token if the segment has heat."""
    before: tuple[float, ...] | None = None
    """Nats of each piece under the initial policy."""
    after: tuple[float, ...] | None = None
    """Nats of each piece under the checkpoint."""
    left_out: int = 0
    """Number of characters truncated at the end."""


@dataclass(frozen=True)
class PageEpisode:
    """An episode on the page."""

    origin: Origin
    step: int | None
    """Step after which it was played; None for an episode of a pool."""
    task_id: str
    source: str
    stop_reason: str
    reward: float | None
    advantage: float | None
    """Advantage within its group; None without an RL term, or if the run has not kept the whole group."""
    texts: tuple[PageText, ...]
    criteria: Mapping[str, float | None] = field(default_factory=dict)
    """Values of a grader's criteria."""
    grader_fault: str | None = None
    """Description of the grader's failure; None if it did not fail."""

    @property
    def is_cut(self) -> bool:
        return any(text.left_out for text in self.texts)

    @property
    def has_heat(self) -> bool:
        return any(text.before is not None for text in self.texts)


@dataclass(frozen=True)
class ObservationHeat:
    """Loss of the output of a (command, output) pair of the held-out pool, at the pair's first occurrence."""

    command: str
    output: str
    tokens: int
    """Number of tokens of the output."""
    before: float
    """Nats per token under the initial policy."""
    after: float
    """Nats per token under the checkpoint."""
    novel: bool
    """Whether training had not executed the pair."""


@dataclass(frozen=True)
class RunReport:
    """Content of one run."""

    name: str
    facts: Mapping[str, str]
    """Status, versions, command line etc., by name."""
    columns: tuple[Column, ...]
    measured: bool
    """Whether the columns were measured from checkpoints, with intervals and over the same pairs."""
    pairs: Mapping[str, int]
    """Number of pairs that the figures cover, by pool; empty unless `measured`."""
    config: Mapping[str, Any]
    """Config values by dotted key path."""
    base: tuple[str, Mapping[str, Any]]
    """Name and keys of the config that the run's config is based on: a shipped config or the defaults."""
    roles: RoleAccount | None
    """Role shares over all kept rollouts; None if the run has kept none."""
    trained_on: tuple[int, int]
    """Number of action tokens and of env-term target tokens over all of training."""
    alarms: tuple[str, ...]
    notes: tuple[str, ...]
    """Notes on missing or uncertain content."""
    checkpoint: int | None
    """Step of the checkpoint to which `after` refers in episodes and observations; None without a policy."""
    episodes: tuple[PageEpisode, ...]
    episodes_there: int
    """Number of episodes available."""
    observations: tuple[ObservationHeat, ...]
    criteria: tuple[str, ...] = ()
    """Names of the criteria of the run's graders."""
    environments: tuple[str, ...] = ()
    """Names of several environments; empty for a run in one."""


@dataclass(frozen=True)
class Report:
    """Content of a page: its runs, and the curves and notes over all of them."""

    runs: tuple[RunReport, ...]
    curves: tuple[Curve, ...]
    notes: tuple[str, ...] = field(default=())

    @property
    def measures(self) -> Mapping[str, str]:
        """Rows of the summary, with their titles."""
        environments = dict.fromkeys(name for run in self.runs for name in run.environments)
        return measures_of((name for run in self.runs for name in run.criteria), environments)

    def to_json(self) -> dict[str, Any]:
        """Return the figures of the page, without episodes and without curves, which are in metrics.jsonl."""
        return {"runs": [_run_json(run) for run in self.runs], "differences": differing(self), "notes": self.notes}


def plain_columns(
    summary: Mapping[str, Any], criteria: Sequence[str] = (), environments: Sequence[str] = ()
) -> tuple[Column, ...]:
    """Return the columns of summary.json; their figures have no intervals."""
    columns = []
    for label in ("before", "best", "last"):
        parts = {pool: measures_at(summary, pool, label) for pool in ("heldout", "ood", "traces")}
        for name in environments:
            own = summary_of(summary, name)
            parts |= {f"{pool}/{name}": measures_at(own, pool, label) for pool in ("heldout", "ood")}
        figures = {
            key: Estimate(value, None, None)
            for key in measures_of(criteria, environments)
            for pool, _, measure in [key.rpartition("/")]
            if (value := parts[pool].get(measure)) is not None and (measure != "env_ce_seen" or is_met(parts[pool]))
        }
        if figures:
            columns.append(Column(label, parts["heldout"].get("step"), figures))
    return tuple(columns)


def differing(report: Report) -> dict[str, dict[str, Any]]:
    """Return the config keys whose values differ between runs, with each run's value; None for a missing key.

    For a single run, return the keys that differ from its base config.
    """
    configs = {run.name: run.config for run in report.runs}
    if len(report.runs) == 1:
        configs = dict([report.runs[0].base]) | configs
    keys = sorted({key for config in configs.values() for key in config})
    rows = {key: {name: config.get(key) for name, config in configs.items()} for key in keys}
    return {key: row for key, row in rows.items() if any(value != next(iter(row.values())) for value in row.values())}


def most_improved(observations: Sequence[ObservationHeat]) -> list[ObservationHeat]:
    """Return the observations with the largest drop in nats per token over training, in decreasing order."""
    better = [found for found in observations if found.after < found.before]
    return sorted(better, key=lambda found: found.after - found.before)[:MOST_OBSERVATIONS]


def least_predictable(observations: Sequence[ObservationHeat]) -> list[ObservationHeat]:
    """Return the observations with the most nats per token after training, in decreasing order."""
    return sorted(observations, key=lambda found: -found.after)[:MOST_OBSERVATIONS]


def in_turn(runs: Sequence[RunReport]) -> Iterator[tuple[int, int]]:
    """Yield the (run, episode) indices of all episodes, alternating between runs and origins."""
    queues: dict[tuple[int, str], list[tuple[int, int]]] = {}
    for number, run in enumerate(runs):
        for place, episode in enumerate(run.episodes):
            queues.setdefault((number, episode.origin), []).append((number, place))
    return (place for places in zip_longest(*queues.values()) for place in places if place is not None)


def shortened(episode: PageEpisode, segment_characters: int, characters: int) -> PageEpisode:
    """Truncate an episode to `segment_characters` per segment and `characters` in total; see `PageText.left_out`."""
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
    """Return nats per token before and after training over the scored texts of `role`; None without scored texts."""
    chosen = [text for text in texts if text.role == role]
    return _mean([text.before for text in chosen]), _mean([text.after for text in chosen])


def _mean(parts: Sequence[Sequence[float] | None]) -> float | None:
    nats = list(chain.from_iterable(part for part in parts if part is not None))
    return math.fsum(nats) / len(nats) if nats else None
