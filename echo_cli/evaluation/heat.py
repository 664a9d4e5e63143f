"""How hard a policy finds each token of an episode: -log p, beside the text that the token stands for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from echo_cli.models.policy import TorchPolicy
from echo_cli.models.tokenizer import Tokenizer
from echo_cli.trajectory import Role, Segment, Trajectory
from echo_cli.view import visible

_SCORED = (Role.ACTION, Role.ENV_OUTPUT, Role.WARNING)


@dataclass(frozen=True)
class Heat:
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


def heat_of(policy: TorchPolicy, trajectories: Sequence[Trajectory]) -> list[list[Heat]]:
    """For each trajectory, the heat of its segments, in order; they must be in the tokens of `policy`."""
    found = []
    for trajectory, scores in zip(trajectories, policy.score(trajectories, _SCORED), strict=True):
        nats, heats = iter((-scores.logprobs.double()).tolist()), []
        for segment, played in zip(visible(trajectory).segments, trajectory.segments, strict=True):
            scored = segment.role in _SCORED and not played.transient
            values = tuple(next(nats) for _ in segment.token_ids) if scored else None
            heats.append(Heat(segment, pieces_of(segment, policy.tokenizer), values))
        found.append(heats)
    return found
