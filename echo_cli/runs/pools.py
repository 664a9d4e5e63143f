"""Frozen pools: trajectories to measure a policy on, with the first occurrence of each (command, output) pair."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from echo_cli.environments.several import environment_of
from echo_cli.files import Row
from echo_cli.trajectory import Role, Trajectory, Turn, visible

Pair = tuple[str, str]
"""A command and its output as shown to the policy: an output truncated at its cap is the part shown."""


@dataclass(frozen=True)
class Span:
    """Output of a command in a pool: `count` env_output tokens from the 0-based index `start` among the trajectory's
    env_output tokens.
    """

    pair: Pair
    start: int
    count: int
    output_bytes: int


@dataclass(frozen=True)
class Pool:
    """Frozen trajectories, with the first span of each pair in them."""

    trajectories: tuple[Trajectory, ...]
    spans: tuple[tuple[Span, ...], ...]
    cut: int = 0
    """Number of source trajectories truncated to the model's context length."""

    @property
    def pairs(self) -> frozenset[Pair]:
        return frozenset(span.pair for spans in self.spans for span in spans)


def pool_of(trajectories: Iterable[Trajectory]) -> Pool:
    """Return the pool of `trajectories` of any actor; trajectories without a new pair are omitted.

    The pool stores trajectories without transient tokens (`visible`): an observation has the context that preceded it.
    """
    seen: set[Pair] = set()
    kept, all_spans = [], []
    for trajectory in trajectories:
        # Only the first occurrence of each pair: a policy could copy a repetition, also within a trajectory.
        first = {span.pair: span for span in reversed(_spans(trajectory)) if span.pair not in seen}
        if first:
            seen |= first.keys()
            kept.append(visible(trajectory))
            all_spans.append(tuple(sorted(first.values(), key=lambda span: span.start)))
    return Pool(tuple(kept), tuple(all_spans))


def _spans(trajectory: Trajectory) -> list[Span]:
    """Return the outputs of a trajectory, one span per exchange; an exchange without output tokens has no span.

    Output before the first action belongs to no command and has no span.
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
    """Return the pair of a turn; whitespace that a shell ignores is normalised in the command."""
    return " ".join(turn.command.split()), turn.output


@dataclass(frozen=True)
class Observation:
    """A command, with whitespace normalised as in `pair_of`, its output and its exit code."""

    command: str
    output: str
    exit_code: int | None
    environment: str = ""
    """Name of its environment; "" in a run with one."""

    def to_json(self) -> Row:
        """Return its row of observations.jsonl, without the step."""
        return {key: value for key, value in vars(self).items() if key != "environment" or value}


def observations(trajectories: Iterable[Trajectory]) -> list[Observation]:
    """Return the observations of rollouts, in order. Answers and truncated actions run no command and have none."""
    return [
        Observation(*pair_of(turn), turn.exit_code, environment_of(trajectory))
        for trajectory in trajectories
        for turn in trajectory.turns
        if turn.exit_code is not None or turn.output
    ]


class ObservationLog:
    """Observations known to a run, initialised with the rows of its observations.jsonl; identifies new observations."""

    def __init__(self, rows: Iterable[Row] = ()) -> None:
        self._known = {
            Observation(row["command"], row["output"], row["exit_code"], row.get("environment", "")) for row in rows
        }

    def add(self, trajectories: Sequence[Trajectory], step: int) -> list[Row]:
        """Add the observations of rollouts and return rows of the new observations, in order of occurrence."""
        new = [seen for seen in dict.fromkeys(observations(trajectories)) if seen not in self._known]
        self._known.update(new)
        return [{"step": step, **seen.to_json()} for seen in new]


def lines_of(pairs: Iterable[Pair]) -> set[str]:
    """Return the distinct lines of the outputs of `pairs`."""
    return {line for _, output in pairs for line in output.splitlines()}


def pairs_of(rows: Iterable[Row], environment: str = "") -> set[Pair]:
    """Return the (command, output) pairs of rows of observations.jsonl; given an environment's name, those of it."""
    return {(row["command"], row["output"]) for row in rows if not environment or row.get("environment") == environment}
