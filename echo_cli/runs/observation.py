"""What training has executed: each distinct (command, output, exit code) once, at the step where it first came up.

The output is the text of the observation tokens: one that was cut at its cap is the part that the policy met.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from echo_cli.files import Row
from echo_cli.runs.pools import Pair, pair_of
from echo_cli.trajectory import Trajectory


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
