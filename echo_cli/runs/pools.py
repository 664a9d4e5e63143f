"""Frozen pools: trajectories to measure a policy on, and where in them each (command, output) pair first occurs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from echo_cli.environments.protocol import Worlds
from echo_cli.environments.task import Task
from echo_cli.models.renderer import Renderer
from echo_cli.rollouts.episode import Limits
from echo_cli.rollouts.rollout import play_scripts
from echo_cli.trajectory import Role, Trajectory, Turn
from echo_cli.view import visible

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


def expert_pool(worlds: Worlds, tasks: Sequence[Task], renderer: Renderer, limits: Limits) -> Pool:
    """Expert trajectories on `tasks`; a task whose solution is not known is left out."""
    return pool_of(play_scripts(renderer, worlds, expert_scripts(worlds, tasks), limits, "expert"))


def expert_scripts(worlds: Worlds, tasks: Sequence[Task]) -> list[tuple[Task, list[str]]]:
    """Those of `tasks` whose solution is known, each with the actions that solve it."""
    return [(task, actions) for task in tasks if (actions := worlds.expert(task)) is not None]


def _spans(trajectory: Trajectory) -> list[Span]:
    """The outputs of a trajectory, one span a turn; empty ones are left out, as they have no token to predict.

    Output that precedes the first action answers no command and has no span.
    """
    spans: dict[int, Span] = {}
    turn, position = -1, 0
    for segment in trajectory.segments:
        if segment.role is Role.ACTION:
            turn += 1
        elif segment.role is Role.ENV_OUTPUT and segment.token_ids:
            tokens, output_bytes = len(segment.token_ids), len(segment.text.encode())
            if turn >= 0:
                exchange = trajectory.turns[turn]
                # A command that wrote to stdout and stderr has two segments, one after the other.
                before = spans.get(turn, Span(pair_of(exchange), position, 0, 0))
                spans[turn] = Span(before.pair, before.start, before.count + tokens, before.output_bytes + output_bytes)
            position += tokens
    return list(spans.values())


def pair_of(turn: Turn) -> Pair:
    """The pair of a turn; spaces that a shell ignores do not make a command another one."""
    return " ".join(turn.command.split()), turn.output
