"""Frozen pools: trajectories to measure a policy on, and where in them each (command, output) pair first occurs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from echo_cli.files import Row
from echo_cli.trajectory import Role, Trajectory, Turn, visible

Pair = tuple[str, str]
"""A command and the output it gave, as the policy met it: an output cut at its cap is the part that was shown."""


@dataclass(frozen=True)
class Span:
    """One command's output within a pool: `count` env_output tokens from `start`, counted over the trajectory's own."""

    pair: Pair
    start: int
    count: int
    output_bytes: int


@dataclass(frozen=True)
class Pool:
    """Frozen trajectories, and in them the first span of each pair."""

    trajectories: tuple[Trajectory, ...]
    spans: tuple[tuple[Span, ...], ...]
    cut: int = 0
    """Trajectories, of those that it was made of, that were longer than the model's context and were cut there."""

    @property
    def pairs(self) -> frozenset[Pair]:
        return frozenset(span.pair for spans in self.spans for span in spans)


def pool_of(trajectories: Iterable[Trajectory]) -> Pool:
    """The pool of `trajectories`, whatever actor played them; one that shows no new pair is left out.

    They are as `visible` has them: that is what their observations followed.
    """
    seen: set[Pair] = set()
    kept, all_spans = [], []
    for trajectory in trajectories:
        # The first of each pair: a repetition, in this trajectory too, could be copied.
        first = {span.pair: span for span in reversed(_spans(trajectory)) if span.pair not in seen}
        if first:
            seen |= first.keys()
            kept.append(visible(trajectory))
            all_spans.append(tuple(sorted(first.values(), key=lambda span: span.start)))
    return Pool(tuple(kept), tuple(all_spans))


def _spans(trajectory: Trajectory) -> list[Span]:
    """Return the outputs of a trajectory, one span an exchange; an empty one has no token to predict and no span.

    Output that precedes the first action answers no command and has no span.
    """
    tokens = [len(segment.token_ids) if segment.role is Role.ENV_OUTPUT else 0 for segment in trajectory.segments]
    before = [0, *accumulate(tokens)]
    return [
        Span(
            pair_of(exchange.turn),
            start=before[exchange.place],
            count=sum(tokens[exchange.span]),
            output_bytes=sum(len(segment.text.encode()) for segment in exchange.outputs if segment.token_ids),
        )
        for exchange in trajectory.exchanges()
        if any(tokens[exchange.span])
    ]


def pair_of(turn: Turn) -> Pair:
    """The pair of a turn; spaces that a shell ignores do not make a command another one."""
    return " ".join(turn.command.split()), turn.output


@dataclass(frozen=True)
class Observation:
    """A command, its spaces normalised as in `pool.pair_of`, and what the world returned."""

    command: str
    output: str
    exit_code: int | None


def observations(trajectories: Iterable[Trajectory]) -> list[Observation]:
    """The observations of rollouts, in their order. Answers and actions cut at their cap ran nothing and have none."""
    return [
        Observation(*pair_of(turn), turn.exit_code)
        for trajectory in trajectories
        for turn in trajectory.turns
        if turn.exit_code is not None or turn.output
    ]


class ObservationLog:
    """Tells which observations are new to a run; `rows` are those of its observations.jsonl so far."""

    def __init__(self, rows: Iterable[Row] = ()) -> None:
        self._known = {Observation(row["command"], row["output"], row["exit_code"]) for row in rows}

    def add(self, trajectories: Sequence[Trajectory], step: int) -> list[Row]:
        """The rows of what these rollouts observed for the first time, in order of occurrence."""
        new = [seen for seen in dict.fromkeys(observations(trajectories)) if seen not in self._known]
        self._known.update(new)
        return [{"step": step, **vars(seen)} for seen in new]


def pairs_of(rows: Iterable[Row]) -> set[Pair]:
    """The (command, output) pairs of rows of observations.jsonl."""
    return {(row["command"], row["output"]) for row in rows}
