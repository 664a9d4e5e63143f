"""A model's own chat template, and recorded conversations as it writes them, with the origin of each part of the text.

A template is a program, so it is run twice: on the messages, and on the messages with a placeholder in each text. The
second result shows where the template puts each text; the first result is the text that is encoded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count, groupby, pairwise
from typing import Any, Literal

from echo_cli.environments.protocol import JsonObject
from echo_cli.errors import EchoError, first_line
from echo_cli.models.chat_renderer import ChatFamily, TextSpan, Thinking
from echo_cli.text import escape_unprintable
from echo_cli.trace import END_THINK, THINK, ChatMessage, Conversation, ToolCall, TraceSegment, without_thinking
from echo_cli.trajectory import SCAFFOLD, Role

TASK = "List the files of this folder."
"""Text of a user's turn with which a template is tried."""

# Llama 3's templates write today's date. A run resumed tomorrow needs the same text; this is the templates' fallback.
_DATE = "26 Jul 2024"

_EMPTY_THINKING = re.compile(rf"{THINK}\s*{END_THINK}\s*")
_THINK_MARKS = re.compile(f"({THINK}|{END_THINK})")
_ANSWER_MARKS = ("<tool_response>", "</tool_response>")

_Calls = Literal["text", "object", "words"]
"""Form in which a template gets tool calls: arguments as JSON text or as an object, or calls as part of the words."""


@dataclass(frozen=True)
class ChatTemplate:
    """A model's own chat template, as `transformers` applies it."""

    theirs: Any
    source: str
    system: str | None
    thinking: Thinking

    def text(self, messages: Sequence[tuple[str, str]]) -> str:
        """Render the system message, messages of (role, content), and the prompt for an assistant's turn.

        Raises:
            EchoError: the template fails.
        """
        return self.render([{"role": role, "content": content} for role, content in messages], prompt=True)

    def render(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = (), *, prompt: bool = False
    ) -> str:
        """Render messages; the configured system message precedes them if they do not begin with one.

        Args:
            prompt: whether to add the prompt for an assistant's turn.

        Raises:
            EchoError: the template fails, or its text is not Unicode.
        """
        own = bool(messages) and messages[0]["role"] in ("system", "developer")
        system = [] if self.system is None or own else [{"role": "system", "content": self.system}]
        chat = [*system, *messages]
        mode = {"enable_thinking": False} if self.thinking == "forbid" else {}
        options = {"tokenize": False, "add_generation_prompt": prompt, "date_string": _DATE, **mode}
        try:
            text: str = self.theirs.apply_chat_template(chat, tools=list(tools) or None, **options)
            text.encode()
        except Exception as error:  # a template is a program and may raise anything
            raise EchoError(
                f"the chat template fails on a conversation of {', '.join(message['role'] for message in chat)}: "
                f"{escape_unprintable(first_line(error))}",
                "try conversation.system=null or conversation.reply_as=user, or replace the template with "
                "model.chat_template=FILE",
            ) from error
        return text

    def ids(self, text: str) -> list[int]:
        """Encode a rendered text with the model's own tokenizer."""
        ids: list[int] = self.theirs(text, add_special_tokens=False)["input_ids"]
        return ids


@dataclass(frozen=True)
class _Slot:
    """A text, and the form with a placeholder in which the template gets it."""

    message: int
    """Index of the message."""
    form: str
    pieces: tuple[TraceSegment, ...]
    """Segments of the text."""
    required: bool
    """Whether the template must write the text."""
    answer: bool = False
    """Whether the text is a tool's answer."""


@dataclass(frozen=True)
class _Place:
    """The place of a slot in the outline, and its pieces as the template writes them."""

    start: int
    end: int
    slot: _Slot
    pieces: tuple[TraceSegment, ...]


@dataclass(frozen=True)
class ConversationWriter:
    """Writer of recorded conversations with a template of a known family (`ConversationTemplate`).

    `primer` is the text after the header of an assistant's turn; `answers_as` is the role of the tools' answers.
    """

    template: ChatTemplate
    family: ChatFamily
    primer: str
    answers_as: Literal["tool", "user"]

    def spans(self, conversation: Conversation) -> list[TextSpan]:
        """Return the template's text of a conversation, split by origin.

        A template without a form for tool calls, or for several in one message, gets the calls in the words; one
        without a form for a tool's answer gets the answer as a user's message. With `thinking: forbid`, the primer
        precedes each action, as in an episode; only `keep` gives recorded thinking to the template.

        Raises:
            EchoError: the template fails on the messages, or changes a text.
        """
        problems = []
        for calls, answers in self._forms(conversation):
            try:
                return self._spans(conversation, calls, answers)
            except EchoError as error:
                problems.append(error)
        raise problems[0]

    def opening(self, tools: Sequence[JsonObject]) -> str | None:
        """Return the template's text before a task in an episode with `tools`; None if it has no form for tools.

        It has none if it fails on tools, omits their names or descriptions, or writes a part of them after the task.
        """
        try:
            text = self.template.render([{"role": "user", "content": TASK}], tools, prompt=True)
        except EchoError:
            return None
        before, task, after = text.partition(TASK)
        if not task or not after.startswith(self.family.turn_end):
            return None
        shown = (str(tool["function"][key]) for tool in tools for key in ("name", "description"))
        return before if all(_in_json(text) in before or text in before for text in shown) else None

    def _forms(self, conversation: Conversation) -> Iterator[tuple[_Calls, str]]:
        if any(message.calls for message in conversation.messages):
            yield "text", self.answers_as
            yield "object", self.answers_as
        yield "words", self.answers_as
        if self.answers_as == "tool" and any(message.role == "tool" for message in conversation.messages):
            yield "words", "user"

    def _spans(self, conversation: Conversation, calls: _Calls, answers: str) -> list[TextSpan]:
        system = "developer" if "developer" in self.template.source else "system"
        names = {"tool": answers, "developer": system}
        messages = [self._prepared(message, calls) for message in conversation.messages]
        roles = [names.get(message.role, message.role) for message in messages]
        numbers, mark = count(), _unused_character(messages)
        made = [_outlined(message, n, mark, numbers, calls) for n, message in enumerate(messages)]
        chat = [_given(role, message.text, message.calls, calls) for role, message in zip(roles, messages, strict=True)]
        forms = [_given(role, words, invoked, calls) for role, (words, invoked, _) in zip(roles, made, strict=True)]
        text, outline = (self.template.render(each, conversation.tools) for each in (chat, forms))
        places = sorted(
            (place for _, _, slots in made for slot in slots if (place := _place(slot, outline)) is not None),
            key=lambda place: place.start,
        )
        turns = [n for n, message in enumerate(messages) if message.role == "assistant"]
        spans = self._labelled(outline, places, [self._turn(outline, places, number) for number in turns])
        if "".join(span.text for span in spans) != text:
            raise _changed()
        return self._primed(spans) if self.template.thinking == "forbid" else spans

    def _prepared(self, message: ChatMessage, calls: _Calls) -> ChatMessage:
        """Return a message as the template gets it: an assistant's words without thinking, or with its calls."""
        if message.role != "assistant":
            return message
        words = message.text if self.template.thinking == "keep" else without_thinking(message.text)
        if calls == "words" and message.calls:
            blocks = "".join(call.text for call in message.calls)
            words = (f"{words}\n{blocks}" if words else blocks).removesuffix("\n")
        kept = () if calls == "words" else message.calls
        return ChatMessage("assistant", (TraceSegment(Role.ACTION, words),), kept)

    def _turn(self, outline: str, places: Sequence[_Place], number: int) -> tuple[int, int]:
        """Return the start and end of an action in the outline: its turn, without the header and an empty block."""
        own = [place for place in places if place.slot.message == number]
        if not own:
            raise _changed()
        header = self.family.turn("assistant")
        before = outline.rfind(header, 0, own[0].start)
        end = outline.find(self.family.turn_end, own[-1].end)
        if before < 0 or end < 0:
            raise _changed()
        start = before + len(header)
        empty = _EMPTY_THINKING.match(outline, start)
        return empty.end() if empty else start, end + len(self.family.turn_end)

    @staticmethod
    def _labelled(outline: str, places: Sequence[_Place], turns: Sequence[tuple[int, int]]) -> list[TextSpan]:
        """Return the outline with the texts in place of the placeholders, as spans; each turn is one action."""
        filled = {place.start: place for place in places}
        edges = {0, len(outline), *(edge for turn in turns for edge in turn)}
        edges |= {edge for place in places for edge in (place.start, place.end)}
        labelled: list[tuple[tuple[int, int] | None, TextSpan]] = []
        for start, end in pairwise(sorted(edges)):
            turn = next((turn for turn in turns if turn[0] <= start < turn[1]), None)
            place = filled.get(start)
            if place is None:
                labelled.append((turn, TextSpan(outline[start:end], Role.CONTEXT, SCAFFOLD)))
            else:
                labelled += [(turn, TextSpan(piece.text, piece.role, piece.channel)) for piece in place.pieces]
        spans: list[TextSpan] = []
        for turn, run in groupby(labelled, key=lambda each: each[0]):
            found = [span for _, span in run]
            spans += found if turn is None else [TextSpan("".join(span.text for span in found), Role.ACTION)]
        return spans

    def _primed(self, spans: Sequence[TextSpan]) -> list[TextSpan]:
        """Insert the primer before each action that it does not precede."""
        primed: list[TextSpan] = []
        for span in spans:
            if span.role is Role.ACTION and primed and not primed[-1].text.endswith(self.primer):
                primed.append(TextSpan(self.primer, Role.CONTEXT, SCAFFOLD))
            primed.append(span)
        return primed


def _outlined(
    message: ChatMessage, number: int, mark: str, numbers: Iterator[int], calls: _Calls
) -> tuple[str, tuple[ToolCall, ...], list[_Slot]]:
    """Return the words and the calls of a message with placeholders, and their slots."""
    if message.role != "assistant":
        if not message.text:
            return "", (), []
        before, inner, after = _edges(message.text)
        if not inner and not after and (opening := before.rstrip()):  # space after a lone mark is the text's edge
            before, after = opening, before[len(opening) :]
        name = f'{mark}{next(numbers)}"{mark}'  # the quotation mark tells whether it is within a JSON text
        form = f"{before}{name}{after}"
        slot = _Slot(number, form, message.pieces, message.role != "system", answer=message.role == "tool")
        return form, (), [slot]
    words, slots = "", list[_Slot]()
    for part in _THINK_MARKS.split(message.text):
        core = "" if part in (THINK, END_THINK) else part.strip()
        name = f"{mark}{next(numbers)}{mark}"
        words += part.replace(core, name, 1) if core else part
        slots += [_slot(number, name, core, required=False)] if core else []
    if not slots and not message.calls:
        words += (name := f"{mark}{next(numbers)}{mark}")
        slots.append(_slot(number, name, "", required=True))
    invoked = []
    for call in message.calls:
        name, key = (f"{mark}{next(numbers)}{mark}" for _ in range(2))
        form = json.dumps({key: 0}, ensure_ascii=False)
        written = call.arguments if calls == "text" else json.dumps(json.loads(call.arguments), ensure_ascii=False)
        slots += [_slot(number, name, call.name, required=True), _slot(number, form, written, required=True)]
        invoked.append(ToolCall(name, form, ""))
    return words, tuple(invoked), slots


def _edges(text: str) -> tuple[str, str, str]:
    """Split white space and a mark from both edges of a text, which templates strip or test for."""
    opening, closing = _ANSWER_MARKS
    rest = text.lstrip().removeprefix(opening).lstrip()
    inner = rest.rstrip().removesuffix(closing).rstrip()
    return text[: len(text) - len(rest)], inner, rest[len(inner) :]


def _slot(number: int, form: str, text: str, *, required: bool) -> _Slot:
    return _Slot(number, form, (TraceSegment(Role.ACTION, text),), required)


def _place(slot: _Slot, outline: str) -> _Place | None:
    """Find a slot in the outline: as it was given, stripped of white space or, for a tool's answer, in a JSON text.

    Raises:
        EchoError: the text is required and not there, or it is there twice.
    """
    ways = [(slot.form, slot.pieces), (slot.form.strip(), _stripped(slot.pieces))]
    if slot.answer:
        ways.append((_in_json(slot.form), tuple(replace(piece, text=_in_json(piece.text)) for piece in slot.pieces)))
    for form, pieces in ways:
        start = outline.find(form)
        if start >= 0:
            if outline.find(form, start + 1) >= 0:
                raise _changed()
            return _Place(start, start + len(form), slot, pieces)
    if slot.required:
        raise _changed()
    return None


def _given(role: str, words: str, invoked: Sequence[ToolCall], calls: _Calls) -> dict[str, Any]:
    """Return a message as `apply_chat_template` takes it."""
    if not invoked:
        return {"role": role, "content": words}
    made = [
        {
            "type": "function",
            "function": {
                "name": call.name,
                "arguments": call.arguments if calls == "text" else json.loads(call.arguments),
            },
        }
        for call in invoked
    ]
    return {"role": role, "content": words, "tool_calls": made}


def _stripped(pieces: Sequence[TraceSegment]) -> tuple[TraceSegment, ...]:
    """Strip white space from both ends of the pieces' joined text."""
    text = "".join(piece.text for piece in pieces)
    first, last = len(text) - len(text.lstrip()), len(text.rstrip())
    kept, start = [], 0
    for piece in pieces:
        end = start + len(piece.text)
        kept.append(replace(piece, text=text[max(start, first) : min(end, last)]))
        start = end
    return tuple(kept)


def _in_json(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _unused_character(messages: Sequence[ChatMessage]) -> str:
    """Return a private-use character that occurs in no message."""
    used = {character for message in messages for character in message.text}
    used |= {character for message in messages for call in message.calls for character in call.name + call.arguments}
    return next(character for character in map(chr, range(0xE000, 0xF900)) if character not in used)


def _changed() -> EchoError:
    return EchoError(
        "the chat template changes the texts of a recorded conversation",
        "replace the template with model.chat_template=FILE, or set conversation.renderer=plain (no turns)",
    )
