"""One command of a pool, read out: what its output is, and what two policies take for the most probable tokens."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from echo_cli.errors import EchoError
from echo_cli.models.policy import TorchPolicy
from echo_cli.models.tokenizer import Tokenizer
from echo_cli.runs.pools import Pair, Pool, pair_of
from echo_cli.trajectory import Role, Segment, Trajectory, visible


@dataclass(frozen=True)
class Output:
    """One output in a pool, `start` tokens into its trajectory."""

    pair: Pair
    trajectory: Trajectory
    start: int
    token_ids: list[int]


def find_output(pool: Pool, command: str | None, seen: Collection[Pair], title: str) -> Output:
    """The output to read out: that of `command`, or else the first of a `grep` that training has not executed.

    Raises:
        EchoError: `command` is not in the pool, or the pool is empty; its `title` is in the message.
    """
    outputs = [output for trajectory in pool.trajectories for output in _outputs(trajectory)]
    if not outputs:
        raise EchoError(f"the {title} pool is empty", "the environment needs held-out tasks")
    executed = {words for words, _ in seen}
    if command is None:
        novel = [output for output in outputs if output.pair[0] not in executed]
        return next((output for output in novel if output.pair[0].startswith("grep ")), [*novel, *outputs][0])
    wanted = [output for output in outputs if output.pair[0] == " ".join(command.split())]
    if not wanted:
        known = [output.pair[0] for output in outputs]
        nearest = difflib.get_close_matches(command, known, n=1, cutoff=0.0)[0]
        raise EchoError(f"'{command}' is not a command of the {title} pool", f"one that is: {nearest}")
    return wanted[0]


def read_out(output: Output, before: TorchPolicy, after: TorchPolicy) -> dict[str, Any]:
    """The output as JSON values: its text, and both policies' most probable tokens given the true ones before."""
    return {
        "command": output.pair[0],
        "actual": after.tokenizer.decode(output.token_ids),
        "tokens": len(output.token_ids),
        "before": read(before, output),
        "after": read(after, output),
    }


def read(policy: TorchPolicy, output: Output) -> dict[str, Any]:
    """The policy's most probable tokens as text, and how many of them are the true ones."""
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


_SCORED = (Role.ACTION, Role.ENV_OUTPUT, Role.WARNING)


@dataclass(frozen=True)
class TokenLosses:
    """The tokens of one segment, as pieces of its text, with what a policy makes of them."""

    segment: Segment
    pieces: tuple[str, ...]
    """A piece for each token; together the text."""
    nats: tuple[float, ...] | None
    """-log p of each token at temperature 1, given all that precedes it; None where nothing was scored: context, and
    an action that lost its thinking."""


def pieces_of(segment: Segment, tokenizer: Tokenizer) -> tuple[str, ...]:
    """The text of `segment` in a piece for each of its tokens; what a token's name alone stands for is empty."""
    return tuple(tokenizer.pieces(segment.text, segment.token_ids))


def token_losses(policy: TorchPolicy, trajectories: Sequence[Trajectory]) -> list[list[TokenLosses]]:
    """For each trajectory, the heat of its segments, in order; they must be in the tokens of `policy`."""
    found = []
    for trajectory, scores in zip(trajectories, policy.score(trajectories, _SCORED), strict=True):
        nats, heats = iter((-scores.logprobs.double()).tolist()), []
        for segment, played in zip(visible(trajectory).segments, trajectory.segments, strict=True):
            scored = segment.role in _SCORED and not played.transient
            values = tuple(next(nats) for _ in segment.token_ids) if scored else None
            heats.append(TokenLosses(segment, pieces_of(segment, policy.tokenizer), values))
        found.append(heats)
    return found
