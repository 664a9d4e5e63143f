"""Rendering of conversations as tokens: the scaffold around the environment's text, and the end of an action.

A transcript is append-only: sampled ids stay exactly as sampled, and the environment's text is tokenised on its own,
between scaffold segments with role `context`. Text never becomes scaffold, whatever it spells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from echo_cli.models.tokenizer import Tokenizer
from echo_cli.trace import Conversation
from echo_cli.trajectory import Segment


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
    """Maximum number of scaffold tokens of an opening and a reply together."""
    notices: tuple[str, ...]
    """Notes for the start of a run, one line each."""

    def opening(self) -> Frame:
        """Return the scaffold around the text of a reset."""

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

    def opening(self) -> Frame:
        return Frame()

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
