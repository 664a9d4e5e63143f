"""Messages in the shape of OpenAI's chat completions, which many tools write, placed one at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from echo_cli.trace import TraceSegment
from echo_cli.traces.builder import TraceBuilder, UnplacedError, tool_call
from echo_cli.traces.conversation import CONTEXT_ROLES
from echo_cli.traces.json_records import arguments_of, member, parts_of, unquoted
from echo_cli.trajectory import TOOL_RESULT, WRAPPER

ANSWERS = ("tool", "function")
"""Roles of a tool's answer; `function` is the legacy one."""

_REASONING = ("reasoning_content", "reasoning", "thinking")


@dataclass(frozen=True)
class Observation:
    """What the environment wrote in a message, in its frame."""

    segments: Sequence[TraceSegment]
    exit_code: int | None = None


Observe = Callable[[Mapping[str, Any], str], Observation | None]
"""Returns the observation in a message of this text; None if the message's role alone says what the text is."""


@dataclass
class Messages:
    """Placer of the messages of a conversation."""

    builder: TraceBuilder
    observe: Observe = lambda message, text: None
    _waiting: dict[str, str] = field(default_factory=dict)
    """Names of the functions that the last action called, by the id of the call."""
    _acting: bool = False
    """Whether the last message is the assistant's, so that another one continues its action."""

    def add_all(self, messages: Iterable[Any], name: str = "messages", tools: Sequence[str] = ()) -> None:
        """Place messages, and the tools before the first that is neither of the system nor of a developer.

        Args:
            name: path of the messages in their record.
        """
        for number, message in enumerate(messages):
            if member(message, "role") not in ("system", "developer"):
                self.builder.tools(tools)
                tools = ()
            with self.builder.at(f"{name}[{number}]"):
                self.add(message)

    def add(self, message: Any) -> None:
        """Place one message.

        Raises:
            UnplacedError: an answer belongs to no open call; or a message cannot be placed, and the options are strict.
        """
        role = member(message, "role")
        if role == "assistant":
            self._say(message)
            return
        self._acting = False
        if role in ANSWERS:
            self._answer(message)
        else:
            self._tell(message, role)

    def _tell(self, message: Any, role: Any) -> None:
        """Place a message of neither the assistant nor a tool: context, unless the environment wrote it."""
        text, left_out = self._content(message)
        seen = self.observe(message, text) if isinstance(message, dict) else None
        if seen is not None:
            self.builder.observe([*seen.segments, *left_out], seen.exit_code)
            self.builder.context("\n", WRAPPER)
        elif role in CONTEXT_ROLES:
            self.builder.context(f"{text}\n", role)
            self.builder.add(*left_out)
        else:
            self.builder.add(self.builder.leave_out(f"a message of unknown role: {role!r}", text))

    def _answer(self, message: Mapping[str, Any]) -> None:
        """Place a tool's answer: to the call of its id, or else of its name, or else to the first unanswered call."""
        name, call_id = message.get("name"), message.get("tool_call_id")
        if not call_id:
            named = (call for call, of in self._waiting.items() if not name or of == name)
            call_id = next((call for call in named if call in self.builder.calls.open), None)
        self.builder.calls.answer(call_id)
        text, left_out = self._content(message)
        seen = self.observe(message, text) or Observation(self.builder.observed(text, TOOL_RESULT))
        self.builder.answer([*seen.segments, *left_out], seen.exit_code)

    def _say(self, message: Mapping[str, Any]) -> None:
        """Place an assistant's message: its words, then its tool calls."""
        if not self._acting:
            self._waiting = {}
        self._acting = True
        words, left_out = self._words(message)
        blocks = list[str]()
        for call in _calls(message):
            function = _function(call)
            if function is None:
                text = call if isinstance(call, str) else ""
                left_out.append(self.builder.leave_out("a tool call that is not a function call", text))
            else:
                blocks.append(self._called(function))
                self._open(call.get("id"), str(function["name"]))
        self.builder.say(words, blocks)
        self.builder.add_later(*left_out)

    def _words(self, message: Mapping[str, Any]) -> tuple[str, list[TraceSegment]]:
        """Return the words of an assistant's message, and warnings for its parts that are not text."""
        words, left_out = list[str](), list[TraceSegment]()
        for name in ("content", "refusal"):
            if message.get(name) is not None:
                text, without = _text(message[name], self.builder)
                words.append(text)
                left_out += without
        if message.get("audio") is not None:
            left_out.append(self.builder.leave_out("audio"))
        for name in _REASONING:
            if isinstance(message.get(name), str):
                self.builder.omit("reasoning", message[name])
        return "".join(words), left_out

    def _called(self, function: Mapping[str, Any]) -> str:
        """Return the text of a call."""
        name = function.get("name")
        if not isinstance(name, str):
            raise UnplacedError("a tool call without a function name")
        return tool_call(name, arguments_of(function.get("arguments"), self.builder))

    def _open(self, call_id: Any, name: str) -> None:
        """Open a call; one without an id gets an id."""
        number = len(self.builder.calls.calls)
        while not isinstance(call_id, str) or not call_id:
            call_id = None if f"call_{number}" in self.builder.calls.open else f"call_{number}"
            number += 1
        self.builder.calls.call(call_id)
        self._waiting[call_id] = name

    def _content(self, message: Any) -> tuple[str, list[TraceSegment]]:
        """Return the text of a message, and warnings for its parts that are not text; null is no text of a tool."""
        content = member(message, "content")
        if isinstance(content, (str, list)):
            return _text(content, self.builder)
        if content is None and member(message, "role") in ANSWERS:
            return "", []
        return "", [self.builder.leave_out("a message without text")]


def _calls(message: Mapping[str, Any]) -> list[Any]:
    """Return the tool calls of an assistant's message; some tools write them, or each of them, as JSON text."""
    calls = unquoted(message.get("tool_calls") or [])
    if not isinstance(calls, list):
        raise UnplacedError("tool_calls is not a list")
    legacy = message.get("function_call")
    return [*map(unquoted, calls), *([] if legacy is None else [{"function": legacy}])]


def _function(call: Any) -> Mapping[str, Any] | None:
    """Return the function that a call names, under `function` or, as chat templates accept it, in the call itself."""
    if not isinstance(call, dict) or call.get("type") not in (None, "function"):
        return None
    function = call.get("function", call)
    return function if isinstance(function, dict) else {}


def _text(content: Any, builder: TraceBuilder) -> tuple[str, list[TraceSegment]]:
    return parts_of(content, builder, ("text", "refusal"))
