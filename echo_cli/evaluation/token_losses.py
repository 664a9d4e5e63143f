"""Predictions and losses per token: a readout of one output of a pool, and the loss of every token of an episode."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from echo_cli.errors import EchoError
from echo_cli.models.backend import Policy
from echo_cli.models.tokenizer import Tokenizer
from echo_cli.runs.pools import Pair, Pool, pair_of
from echo_cli.trajectory import Role, Segment, Trajectory, visible


@dataclass(frozen=True)
class Output:
    """One output in a pool."""

    pair: Pair
    trajectory: Trajectory
    start: int
    """Position of its first token in the trajectory, 0-based."""
    token_ids: list[int]


def find_output(pool: Pool, command: str | None, seen: Collection[Pair], title: str, tip: str) -> Output:
    """Return the output to read out: the output of `command`, or by default of the first unseen `grep`.

    Args:
        seen: pairs that training has executed.
        title: the pool's name in messages.
        tip: how to fill the pool if it is empty.

    Raises:
        EchoError: `command` is not in the pool, or the pool is empty.
    """
    outputs = [output for trajectory in pool.trajectories for output in _outputs(trajectory)]
    if not outputs:
        raise EchoError(f"the {title} pool is empty", tip)
    executed = {words for words, _ in seen}
    if command is None:
        novel = [output for output in outputs if output.pair[0] not in executed]
        return next((output for output in novel if output.pair[0].startswith("grep ")), [*novel, *outputs][0])
    wanted = [output for output in outputs if output.pair[0] == " ".join(command.split())]
    if not wanted:
        known = [output.pair[0] for output in outputs]
        nearest = difflib.get_close_matches(command, known, n=1, cutoff=0.0)[0]
        raise EchoError(f"'{command}' is not a command of the {title} pool", f"the nearest command is: {nearest}")
    return wanted[0]


def read_out(output: Output, before: Policy, after: Policy) -> dict[str, Any]:
    """Return the output as a JSON object: its text, and both policies' teacher-forced most probable tokens."""
    return {
        "command": output.pair[0],
        "actual": after.tokenizer.decode(output.token_ids),
        "tokens": len(output.token_ids),
        "before": read(before, output),
        "after": read(after, output),
    }


def read(policy: Policy, output: Output) -> dict[str, Any]:
    """Return the policy's teacher-forced most probable tokens as text, and the number of correct ones."""
    predicted = policy.predict(output.trajectory)[output.start - 1 : output.start - 1 + len(output.token_ids)]
    correct = sum(guess == true for guess, true in zip(predicted, output.token_ids, strict=True))
    return {"text": policy.tokenizer.decode(predicted), "correct": correct}


def _outputs(trajectory: Trajectory) -> list[Output]:
    starts = trajectory.starts
    return [
        Output(pair_of(exchange.turn), trajectory, start, list(segment.token_ids))
        for exchange in trajectory.exchanges()
        for segment, start in zip(exchange.segments, starts[exchange.span], strict=True)
        if segment.role is Role.ENV_OUTPUT and segment.token_ids
    ]


_SCORED = (Role.ACTION, Role.ENV_OUTPUT, Role.WARNING, Role.END)


@dataclass(frozen=True)
class TokenLosses:
    """The tokens of one segment with a policy's losses."""

    segment: Segment
    pieces: tuple[str, ...]
    """Text of each token; the concatenation is the text of the segment."""
    nats: tuple[float, ...] | None
    """-log p of each token at temperature 1, given all preceding tokens; None for segments that are not scored:
    context, and actions with transient thinking."""


def pieces_of(segment: Segment, tokenizer: Tokenizer) -> tuple[str, ...]:
    """Return the text of `segment` split by token; the piece of a special token without text is empty."""
    return tuple(tokenizer.pieces(segment.text, segment.token_ids))


def token_losses(policy: Policy, trajectories: Sequence[Trajectory]) -> list[list[TokenLosses]]:
    """Return the token losses of each trajectory, one entry per segment in order.

    Args:
        trajectories: trajectories in the tokens of `policy`, with their ends marked where these are to be scored.
    """
    found = []
    for trajectory, scores in zip(trajectories, policy.score(trajectories, _SCORED), strict=True):
        nats, heats = iter((-scores.logprobs.double()).tolist()), []
        for segment, played in zip(visible(trajectory).segments, trajectory.segments, strict=True):
            scored = segment.role in _SCORED and not played.transient
            values = tuple(next(nats) for _ in segment.token_ids) if scored else None
            heats.append(TokenLosses(segment, pieces_of(segment, policy.tokenizer), values))
        found.append(heats)
    return found
