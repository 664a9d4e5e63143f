"""The world model in the environment's place: what a policy writes as the reply to a command."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from echo_cli.errors import EchoError
from echo_cli.evaluation.dream.replies import Generated, ReplyForm
from echo_cli.models.policy import TorchPolicy
from echo_cli.models.renderer import Renderer
from echo_cli.trajectory import Role, Trajectory, Turn, text_of


@dataclass(frozen=True)
class TrueReply:
    """The reply that a command got in a transcript."""

    turn: Turn
    context: tuple[int, ...]
    """Token ids of the transcript up to where the reply begins: the command, and the scaffold before a reply."""
    text: str
    tokens: int
    """Number of tokens."""
    output: str
    """Text of role env_output."""


def true_replies(trajectory: Trajectory, renderer: Renderer, form: ReplyForm) -> list[TrueReply]:
    """Return the replies in a trajectory without transient tokens (`trajectory.visible`), one a turn.

    Args:
        renderer: whose tokens the trajectory has.
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
    policy: TorchPolicy,
    form: ReplyForm,
    contexts: Sequence[Sequence[int]],
    max_tokens: Sequence[int],
    *,
    temperature: float = 0.0,
    seed: int = 0,
) -> list[Generated]:
    """The policy's replies to commands, all in one batch: each until its end, or its `max_tokens`.

    Args:
        contexts: transcripts up to where a reply begins, as `TrueReply.context`.
        max_tokens: of each reply, its end included; the model's own context may leave fewer.
        temperature: 0 takes the most probable token each time.

    Raises:
        EchoError: a transcript leaves no room for a token, or the logits are not finite.
    """
    room = [min(most, policy.model.max_length - len(ids)) for ids, most in zip(contexts, max_tokens, strict=True)]
    if min(room, default=1) < 1:
        raise EchoError(
            f"the transcript leaves no room for a reply: the model takes {policy.model.max_length} tokens",
            "begin a new episode",
        )
    sampler = policy.own_sampler(len(contexts), temperature, seed, form.stop_ids)
    sampler.append(contexts)
    written: list[list[int]] = [[] for _ in contexts]
    replies: dict[int, Generated] = {}
    going = list(range(len(contexts)))
    while going:
        # No row may pass the model's context, those included that have stopped and wait for the others.
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
