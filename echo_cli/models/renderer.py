"""Rendering of conversations as tokens: the scaffold around the environment's text, and the end of an action.

A transcript is append-only: sampled ids stay exactly as sampled, and the environment's text is tokenised on its own,
between scaffold segments with role `context`. Text never becomes scaffold, whatever it spells.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Protocol

from echo_cli.environments.protocol import JsonObject
from echo_cli.environments.tool_text import tools_text
from echo_cli.models.tokenizer import Tokenizer
from echo_cli.trace import Conversation
from echo_cli.trajectory import SCAFFOLD, TOOLS, VOLATILE, Role, Segment, Trajectory


@dataclass(frozen=True)
class Frame:
    """The scaffold around the environment's text; every segment has role `context`."""

    before: tuple[Segment, ...] = ()
    after: tuple[Segment, ...] = ()
    """Scaffold after the text; omitted if no action follows."""


@dataclass(frozen=True)
class Message:
    """The policy's message to the environment, decoded from sampled tokens."""

    text: str
    """Message without stop token and thinking; incomplete if the action was cut."""
    complete: bool
    """Whether the action ended with a stop token."""
    problem: str | None = None
    """Reason for not sending the message to the environment, one short line; None if it is sent."""
    transient: int = 0
    """Number of leading tokens that later turns do not see: dropped thinking."""


class Renderer(Protocol):
    """A format of conversations, for one tokenizer."""

    tokenizer: Tokenizer
    start_ids: tuple[int, ...]
    """Tokens without text at the start of an episode, such as BOS."""
    stop_ids: tuple[int, ...]
    """Tokens that end an action."""
    overhead: int
    """Maximum number of scaffold tokens of an opening without tools and a reply together."""
    notices: tuple[str, ...]
    """Notes for the start of a run, one line each."""

    def opening(self, tools: Sequence[JsonObject] = ()) -> Frame:
        """Return the scaffold around the text of a reset, with the environment's tools before the text.

        A chat template writes the tools in its own form; formats without one have them as text of channel `tools`.
        """

    def reply(self, action_ids: Sequence[int]) -> Frame:
        """Return the scaffold around the environment's answer to the action `action_ids`."""

    def message(self, action_ids: Sequence[int]) -> Message:
        """Decode sampled tokens into the message to the environment."""

    def script(self, text: str) -> list[int]:
        """Encode an action as the policy would write it, including its stop token."""

    def conversation(self, conversation: Conversation) -> tuple[Segment, ...] | None:
        """Encode a recorded conversation, one action per message of the assistant; None if the format has no messages.

        Raises:
            EchoError: the format cannot express the conversation.
        """


class PlainRenderer:
    """A renderer without scaffold, for the built-in model and base models: an action is one line with its newline."""

    overhead = 1
    notices: tuple[str, ...] = ()

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.start_ids: tuple[int, ...] = (tokenizer.start_id,)
        self.stop_ids: tuple[int, ...] = (*tokenizer.newline_ids, *tokenizer.eos_ids)

    def opening(self, tools: Sequence[JsonObject] = ()) -> Frame:
        return Frame(before=tools_segments(self.tokenizer, tools))

    def reply(self, action_ids: Sequence[int]) -> Frame:
        return Frame()

    def message(self, action_ids: Sequence[int]) -> Message:
        """Return the first sampled line, or the whole text if it has no newline."""
        ids, eos = list(action_ids), self.tokenizer.eos_ids
        if ids and ids[-1] in eos:
            return Message(self.tokenizer.decode(ids[:-1]).split("\n", 1)[0], complete=True)
        text = self.tokenizer.decode(ids)
        if not ids or ids[-1] not in self.stop_ids:
            return Message(text, complete=False)
        return Message(text.split("\n", 1)[0], complete=True)

    def script(self, text: str) -> list[int]:
        return self.tokenizer.encode(text + "\n")

    def conversation(self, conversation: Conversation) -> None:
        return None


def tools_segments(tokenizer: Tokenizer, tools: Sequence[JsonObject]) -> tuple[Segment, ...]:
    """Return the list of tools as context, for a format that has no form for it; nothing without tools."""
    text = tools_text(tools)
    return (Segment(Role.CONTEXT, text, tuple(tokenizer.encode(text)), channel=TOOLS),) if text else ()


def tools_tokens(renderer: Renderer, tools: Sequence[JsonObject]) -> int:
    """Return the number of tokens that `tools` add to an opening."""
    plain, full = (sum(len(segment.token_ids) for segment in renderer.opening(listed).before) for listed in ((), tools))
    return full - plain


def mark_ends(trajectory: Trajectory, tokenizer: Tokenizer) -> Trajectory:
    """Return `trajectory` with the role END for the tokens that end its outputs; its token ids do not change.

    An output ends with the context after it, after its warnings and volatile text if it has any:

    - With a chat template's scaffold: the scaffold up to and including its first token that no text contains. A single
      leading newline would be ambiguous, as an output may contain it.
    - Without such a token: the first token of the context that is not white space, and the white space before it. If
      the environment's prompt precedes a chat template's scaffold, the prompt's token and the scaffold's are marked.

    An output without context after it has no end: the last output of an episode that is over.
    """
    segments: list[Segment] = []
    ends = False
    for is_context, group in groupby(trajectory.segments, key=_is_context):
        run = list(group)
        if is_context:
            counts = _end_counts(run, tokenizer) if ends else [0] * len(run)
            run = [part for segment, n in zip(run, counts, strict=True) for part in _split(segment, n, tokenizer)]
        else:
            roles = [segment.role for segment in run if segment.token_ids]
            ends = [role for role in roles if role not in (Role.WARNING, Role.CONTEXT)][-1:] == [Role.ENV_OUTPUT]
        segments += run
    return replace(trajectory, segments=tuple(segments))


def _is_context(segment: Segment) -> bool:
    return segment.role is Role.CONTEXT and segment.channel != VOLATILE


def _end_counts(run: Sequence[Segment], tokenizer: Tokenizer) -> list[int]:
    """Return, for each segment of the context after an output, how many of its first tokens end the output."""
    counts = [0] * len(run)
    scaffold = [
        (place, number, token)
        for place, segment in enumerate(run)
        if segment.channel == SCAFFOLD
        for number, token in enumerate(segment.token_ids, start=1)
    ]
    marks = [index for index, (_, _, token) in enumerate(scaffold) if token in tokenizer.added_ids]
    for place, number, _ in scaffold[: marks[0] + 1] if marks else ():
        counts[place] = number
    first = next((place for place, segment in enumerate(run) if segment.token_ids), 0)
    if not counts[first]:
        counts[first] = end_count(tokenizer.pieces(run[first].text, run[first].token_ids))
    return counts


def end_count(pieces: Sequence[str]) -> int:
    """Return how many of the tokens of a prompt, given as `pieces` of its text, end the output before it."""
    return next((count for count, piece in enumerate(pieces, start=1) if piece.strip()), len(pieces))


def _split(segment: Segment, count: int, tokenizer: Tokenizer) -> Iterator[Segment]:
    """Yield the first `count` tokens of a segment with the role END, then the rest; either only if it has tokens."""
    if count:
        text = "".join(tokenizer.pieces(segment.text, segment.token_ids)[:count])
        yield replace(segment, role=Role.END, text=text, token_ids=segment.token_ids[:count])
        segment = replace(segment, text=segment.text[len(text) :], token_ids=segment.token_ids[count:])
    if not count or segment.token_ids:
        yield segment
