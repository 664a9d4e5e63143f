"""How a conversation is written as tokens: what stands around the environment's words, and where an action ends.

A policy only ever appends: its sampled ids stay exactly as sampled, and an environment's text is tokenised alone,
between scaffold that is `context`. Text never turns into scaffold, whatever it spells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from echo_cli.models.tokenizer import Tokenizer
from echo_cli.trajectory import Segment


@dataclass(frozen=True)
class Frame:
    """The scaffold around the environment's words; all of it is context."""

    before: tuple[Segment, ...] = ()
    after: tuple[Segment, ...] = ()
    """Left out where no action follows."""


@dataclass(frozen=True)
class Message:
    """What sampled tokens say to the environment."""

    text: str
    """Without the stop token and without thinking; what there is of it, where it was cut."""
    complete: bool
    """It ended with its stop token."""
    problem: str | None = None
    """Why the environment must not see it, in one short line."""
    transient: int = 0
    """Leading tokens that later turns do not see: thinking that is dropped."""


class Renderer(Protocol):
    """A way of writing conversations, for one tokenizer."""

    tokenizer: Tokenizer
    start_ids: tuple[int, ...]
    """Tokens in front of an episode's first segment that stand for no text."""
    stop_ids: tuple[int, ...]
    """Tokens that end an action."""
    overhead: int
    """The most tokens of scaffold that an opening and a reply have together."""

    def opening(self) -> Frame:
        """What stands around the text of a reset."""

    def reply(self, action_ids: Sequence[int]) -> Frame:
        """What stands around the answer to an action of these tokens."""

    def message(self, action_ids: Sequence[int]) -> Message:
        """What sampled tokens say."""

    def script(self, text: str) -> list[int]:
        """The tokens of an action as the policy would write it, its stop token included."""


class PlainRenderer:
    """A transcript without scaffold, for the built-in model and for base models: an action is one line and its end."""

    overhead = 1

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.start_ids: tuple[int, ...] = (tokenizer.start_id,)
        self.stop_ids: tuple[int, ...] = (*tokenizer.newline_ids, *tokenizer.eos_ids)

    def opening(self) -> Frame:
        return Frame()

    def reply(self, action_ids: Sequence[int]) -> Frame:
        return Frame()

    def message(self, action_ids: Sequence[int]) -> Message:
        """The first line of what was sampled; all of it where there is no end of a line."""
        ids, eos = list(action_ids), self.tokenizer.eos_ids
        if ids and ids[-1] in eos:
            return Message(self.tokenizer.decode(ids[:-1]).split("\n", 1)[0], complete=True)
        text = self.tokenizer.decode(ids)
        if not ids or ids[-1] not in self.stop_ids:
            return Message(text, complete=False)
        return Message(text.split("\n", 1)[0], complete=True)

    def script(self, text: str) -> list[int]:
        return self.tokenizer.encode(text + "\n")
