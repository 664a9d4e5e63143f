"""Generation of replies: the policy acts as the world model and writes the reply to a command."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from echo_cli.errors import EchoError
from echo_cli.evaluation.dream.replies import Generated, ReplyForm
from echo_cli.models.backend import Policy
from echo_cli.models.renderer import Renderer
from echo_cli.trajectory import Role, Trajectory, Turn, text_of


@dataclass(frozen=True)
class TrueReply:
    """The environment's reply to a command in a transcript."""

    turn: Turn
    context: tuple[int, ...]
    """Token ids of the transcript before the reply, including the command and the scaffold before a reply."""
    text: str
    tokens: int
    """Number of tokens in the reply."""
    output: str
    """Text of role env_output."""


def true_replies(trajectory: Trajectory, renderer: Renderer, form: ReplyForm) -> list[TrueReply]:
    """Return the replies in a trajectory, one per turn.

    Args:
        trajectory: a trajectory without transient tokens (see `trajectory.visible`), in the tokens of `renderer`.
    """
    found = []
    for exchange in trajectory.exchanges():
        before = renderer.reply(exchange.action.token_ids).before
        transcript = (*trajectory.segments[: exchange.place + 1], *before)
        context = tuple(token for segment in transcript for token in segment.token_ids)
        said = form.segments(exchange.segments[1:])
        size = sum(len(segment.token_ids) for segment in said)
        found.append(TrueReply(exchange.turn, context, form.text(said), size, text_of(said, Role.ENV_OUTPUT)))
    return found


def dream(
    policy: Policy,
    form: ReplyForm,
    contexts: Sequence[Sequence[int]],
    max_tokens: Sequence[int],
    *,
    temperature: float = 0.0,
    seed: int = 0,
) -> list[Generated]:
    """Generate the policy's replies to commands in one batch, each up to its end or its `max_tokens`.

    Args:
        contexts: token ids of transcripts before a reply, as in `TrueReply.context`.
        max_tokens: cap of each reply including its end, tokens; the model's context may have room for fewer.
        temperature: sampling temperature; 0 is greedy.

    Raises:
        EchoError: a transcript fills the model's context, or the logits are not finite.
    """
    room = [min(most, policy.model.max_length - len(ids)) for ids, most in zip(contexts, max_tokens, strict=True)]
    if min(room, default=1) < 1:
        raise EchoError(
            f"the transcript fills the model's context of {policy.model.max_length} tokens: no room for a reply",
            "begin a new episode",
        )
    sampler = policy.own_sampler(len(contexts), temperature, seed, form.stop_ids)
    sampler.append(contexts)
    written: list[list[int]] = [[] for _ in contexts]
    replies: dict[int, Generated] = {}
    going = list(range(len(contexts)))
    while going:
        # No row may exceed the model's context, including rows that have stopped and wait for the others.
        least = min(room[row] - len(written[row]) for row in going)
        for row, sample in zip(going, sampler.sample(least), strict=True):
            assert sample is not None, "the sampler finishes whole batches"
            written[row] += sample[0]
            reply = form.read(written[row])
            if reply.ended or len(written[row]) >= room[row]:
                replies[row] = reply
        left = [place for place, row in enumerate(going) if row not in replies]
        if len(left) < len(going):
            sampler.keep(left)
            going = [going[place] for place in left]
    return [replies[row] for row in range(len(contexts))]
