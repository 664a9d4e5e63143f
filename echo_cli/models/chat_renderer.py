"""Rendering of conversations in the turn format of a chat model, by family of chat templates.

The opening of an episode comes from the model's own template. After it the conversation only grows, turn by turn in the
family's format: the marks are scaffold, the environment's text between them is encoded on its own, sampled ids stay as
sampled. A recorded conversation is the template's own text as a whole.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from operator import itemgetter
from typing import Literal, Protocol

from echo_cli.environments.protocol import JsonObject
from echo_cli.errors import EchoError
from echo_cli.models.renderer import Frame, Message, tools_segments
from echo_cli.models.tokenizer import Tokenizer
from echo_cli.text import escape_unprintable
from echo_cli.trace import END_THINK, THINK, Conversation
from echo_cli.trajectory import SCAFFOLD, Role, Segment

EMPTY_THINKING = f"{THINK}\n\n{END_THINK}\n\n"

Thinking = Literal["keep", "drop", "forbid"]

_Owned = tuple[int, int | None, str]
"""Token id, index of the span that the token belongs to (None if it straddles two), and the token's text."""

# Marks that an assistant writes as single tokens if the tokenizer has them.
_MARKS = ("<tool_call>", "</tool_call>", THINK, END_THINK)


@dataclass(frozen=True)
class ChatFamily:
    """Turn format of one family of chat templates: `header`, the text, `turn_end`, `separator`."""

    name: str
    header: str
    """Header with the placeholder {role}."""
    turn_end: str
    """Name of the token that ends a turn, and therefore an action."""
    separator: str
    tool: tuple[str, str]
    """Text before a tool's reply, header included, and text after it, before `turn_end`."""

    def turn(self, role: str) -> str:
        """Return the header of a turn of `role`."""
        return self.header.format(role=role)


CHATML = ChatFamily(
    name="chatml",
    header="<|im_start|>{role}\n",
    turn_end="<|im_end|>",
    separator="\n",
    tool=("<|im_start|>user\n<tool_response>\n", "\n</tool_response>"),
)
LLAMA3 = ChatFamily(
    name="llama3",
    header="<|start_header_id|>{role}<|end_header_id|>\n\n",
    turn_end="<|eot_id|>",
    separator="",
    tool=("<|start_header_id|>ipython<|end_header_id|>\n\n", ""),
)
FAMILIES = (CHATML, LLAMA3)


@dataclass(frozen=True)
class TextSpan:
    """Text of a rendered conversation, from one origin."""

    text: str
    role: Role
    channel: str | None = None
    """Origin of the text; SCAFFOLD for the template's own text, in which names of special tokens are tokens."""


class ConversationTemplate(Protocol):
    """A chat template that writes recorded conversations."""

    def spans(self, conversation: Conversation) -> list[TextSpan]:
        """Return the text of a conversation, split by origin; an action ends with the name of the turn's end token.

        Raises:
            EchoError: the template cannot write the conversation.
        """

    def opening(self, tools: Sequence[JsonObject]) -> str | None:
        """Return the text before a task in an episode with `tools`; None if the template has no form for tools."""


class ChatRenderer:
    """A `renderer.Renderer` of one family.

    Args:
        tokenizer: a tokenizer with the family's tokens.
        opening: text before the task: BOS, a system message, the header of the user's turn.
        primer: text after the header of each assistant turn: the start of a thinking block, or an empty block.
        reply_as: role of the turns with the environment's answers.
        thinking: `keep` leaves thinking in the transcript; `drop` makes it transient; `forbid` makes it a `problem`.
        template: writer of recorded conversations.

    Raises:
        EchoError: the tokenizer lacks the token that ends a turn, or `thinking` is `drop` and the primer opens a block.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        family: ChatFamily,
        opening: str,
        primer: str,
        reply_as: Literal["tool", "user"],
        thinking: Thinking,
        template: ConversationTemplate,
    ) -> None:
        turn_end_id = tokenizer.token_id(family.turn_end)
        if turn_end_id is None:
            raise EchoError(
                f"the tokenizer has no token {family.turn_end}, which ends a turn of {family.name}",
                "use the tokenizer and the chat template of the same model, or set conversation.renderer=plain",
            )
        self.notices: tuple[str, ...] = ()
        self.tokenizer = tokenizer
        self.family = family
        self.start_ids: tuple[int, ...] = ()
        self.stop_ids = tuple(dict.fromkeys((turn_end_id, *tokenizer.eos_ids)))
        self._turn_end_id = turn_end_id
        self._thinking = thinking
        self._template = template
        self._opened = primer.rstrip().endswith(THINK)
        if self._opened and thinking == "drop":
            raise EchoError(
                "conversation.thinking=drop is not possible: the chat template itself opens the thinking of every "
                "turn, in tokens that are not part of the action",
                "set conversation.thinking to keep or forbid",
            )
        before, after = family.tool if reply_as == "tool" else (family.turn("user"), "")
        prompt = family.turn_end + family.separator + family.turn("assistant") + primer
        self._opening = Frame(self._scaffold(opening), self._scaffold(prompt))
        self._with_tools: tuple[Sequence[JsonObject], Frame] | None = None  # rendered once for the tools of a run
        self._reply = Frame(self._scaffold(family.separator + before), self._scaffold(after + prompt))
        # If the action does not end with `turn_end`, the reply's scaffold ends the turn.
        cut = self._scaffold(family.turn_end + family.separator + before)
        self._reply_to_cut = Frame(cut, self._reply.after)
        self.overhead = sum(
            len(segment.token_ids)
            for frame in (self._opening, self._reply_to_cut)
            for segment in (*frame.before, *frame.after)
        )
        self._script_start = tokenizer.encode_scaffold(f"\n{END_THINK}\n\n") if self._opened else []
        marks = [re.escape(mark) for mark in _MARKS if tokenizer.token_id(mark) is not None]
        self._marks = re.compile(f"({'|'.join(marks)})") if marks else None
        names = sorted(tokenizer.added_tokens, key=len, reverse=True)
        self._names = re.compile(f"({'|'.join(map(re.escape, names))})") if names else None

    def opening(self, tools: Sequence[JsonObject] = ()) -> Frame:
        if not tools:
            return self._opening
        if self._with_tools is None or self._with_tools[0] != tools:
            text = self._template.opening(tools)
            before = (
                (*self._opening.before, *tools_segments(self.tokenizer, tools))
                if text is None
                else self._scaffold(text)
            )
            self._with_tools = tools, Frame(before, self._opening.after)
        return self._with_tools[1]

    def reply(self, action_ids: Sequence[int]) -> Frame:
        """Return the scaffold around an answer; it first ends the action's turn if the action did not."""
        ended = bool(action_ids) and action_ids[-1] == self._turn_end_id
        return self._reply if ended else self._reply_to_cut

    def message(self, action_ids: Sequence[int]) -> Message:
        """Decode an assistant's turn without its thinking, stripped of surrounding white space.

        Thinking is a block at the start of the turn. If the block does not end, the message is empty.
        """
        ids = list(action_ids)
        complete = bool(ids) and ids[-1] in self.stop_ids
        said = ids[:-1] if complete else ids
        text = self.tokenizer.decode(said)
        thinks = self._opened or text.lstrip().startswith(THINK)
        ended = END_THINK in text
        problem = None
        if self._thinking == "forbid" and (THINK in text or ended):
            problem = "thinking is not allowed: write the action alone"
        elif thinks and not ended:
            problem = "the thinking did not end, and no action came after it"
        transient = self._thinking_tokens(said) if thinks and self._thinking == "drop" else 0
        if thinks:
            text = text.partition(END_THINK)[2]
        return Message(text.strip(), complete, problem, transient)

    def script(self, text: str) -> list[int]:
        parts = [text] if self._marks is None else self._marks.split(text)
        ids = list(self._script_start)
        for part in parts:
            mark = self.tokenizer.token_id(part) if self._marks and self._marks.fullmatch(part) else None
            ids += self.tokenizer.encode(part) if mark is None else [mark]
        return [*ids, self._turn_end_id]

    def conversation(self, conversation: Conversation) -> tuple[Segment, ...]:
        """Encode a recorded conversation: the tokens of the template's whole text.

        Text between two special tokens is encoded as one, as the template's user does it. A token that straddles two
        spans, such as the newline after an output and the template's own, is scaffold: it is never a target.
        """
        spans = self._template.spans(conversation)
        owned: list[_Owned] = []
        stretch: list[tuple[int, str]] = []
        for index, span in enumerate(spans):
            for text, token_id in self._parts(span):
                if token_id is None:
                    stretch.append((index, text))
                    continue
                owned += [*self._encoded(stretch), (token_id, index, text)]
                stretch = []
        owned += self._encoded(stretch)
        segments = []
        for index, run in groupby(owned, key=itemgetter(1)):
            ids, _, texts = zip(*run, strict=True)
            of = TextSpan("", Role.CONTEXT, SCAFFOLD) if index is None else spans[index]
            segments.append(Segment(of.role, "".join(texts), ids, channel=of.channel))
        return tuple(segments)

    def _parts(self, span: TextSpan) -> list[tuple[str, int | None]]:
        """Split a span at its special tokens: the template's own, an action's marks and the end of its turn."""
        end = self.family.turn_end if span.role is Role.ACTION else ""
        pattern = self._names if span.channel == SCAFFOLD else self._marks if end else None
        text = span.text.removesuffix(end)
        parts = [text] if pattern is None else pattern.split(text)
        split = [(part, self.tokenizer.token_id(part) if number % 2 else None) for number, part in enumerate(parts)]
        return [part for part in (*split, (end, self._turn_end_id)) if part[0]]

    def _encoded(self, stretch: Sequence[tuple[int, str]]) -> list[_Owned]:
        """Encode neighbouring texts as one text."""
        text = "".join(part for _, part in stretch)
        ids = self.tokenizer.encode(text)
        pieces = self.tokenizer.pieces(text, ids)
        starts = [*accumulate((len(part.encode()) for _, part in stretch), initial=0)]
        owned, begin = [], 0
        for token_id, size, piece in zip(ids, self.tokenizer.byte_counts(ids), pieces, strict=True):
            first, last = (bisect_right(starts, at) - 1 for at in (begin, max(begin, begin + size - 1)))
            owned.append((token_id, stretch[first][0] if first == last else None, piece))
            begin += size
        return owned

    def _thinking_tokens(self, ids: list[int]) -> int:
        """Count the tokens of the thinking, its end mark and the space after it; all tokens if it does not end."""
        decode = self.tokenizer.decode
        count = bisect_left(range(len(ids)), True, key=lambda index: END_THINK in decode(ids[: index + 1])) + 1
        while count < len(ids) and decode([ids[count]]).isspace():
            count += 1
        return min(count, len(ids))

    def _scaffold(self, text: str) -> tuple[Segment, ...]:
        ids = tuple(self.tokenizer.encode_scaffold(text))
        return (Segment(Role.CONTEXT, text, ids, channel=SCAFFOLD),) if ids else ()


def family_of(name: str, template: str) -> ChatFamily:
    """Return the family `name`, or for `auto` the family whose header mark occurs in the chat template.

    Raises:
        EchoError: the template has no family's header mark.
    """
    for family in FAMILIES:
        mark = family.header.partition("{role}")[0]
        if family.name == name or (name == "auto" and mark in template):
            return family
    known = ", ".join(f"{family.name} ({family.header.partition('{role}')[0]})" for family in FAMILIES)
    raise EchoError(
        f"the chat template is of an unknown family: it has no mark of {known}; it begins with "
        f"'{escape_unprintable(template[:60])}'",
        "set conversation.renderer=plain (no turns), or replace the template with model.chat_template=FILE",
    )
