"""Traces as conversations: messages with roles, whose texts keep the roles of their segments.

An importer of messages marks them in the channels of its segments: a system, developer or user message is one segment
of context, followed by a newline; a tool's answer stands between two wrappers. Other text, such as a terminal's, is
sent to an agent by the user.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from echo_cli.trace import ChatMessage, Conversation, MessageRole, ToolCall, Trace, TraceSegment
from echo_cli.traces.builder import COPIED, LEFT_OUT, json_text, tool_list
from echo_cli.traces.formats.harnesses.atif import DISPATCHED, SYSTEM_EVENT
from echo_cli.traces.strict_json import parse_json
from echo_cli.trajectory import CLOSE, OPEN, SCAFFOLD, TOOLS, WRAPPER, Role

CONTEXT_ROLES: tuple[MessageRole, ...] = ("system", "developer", "user")
"""Message roles of context; the segment's channel is the message role."""

_LINES = (COPIED, DISPATCHED, SYSTEM_EVENT)
"""Channels of further context that an importer ends with a newline."""

_START, _END = "<tool_call>\n", "\n</tool_call>\n"


def is_conversation(trace: Trace) -> bool:
    """Return whether an importer marked the messages of the trace."""
    marks = (*CONTEXT_ROLES, TOOLS)
    return trace.source == "trace" and any(
        segment.role is Role.CONTEXT and (segment.channel in marks or _wraps(segment, OPEN))
        for segment in trace.segments
    )


def conversation_of(trace: Trace) -> Conversation:
    """Return the messages of a trace, without a chat template's scaffold, and the tools offered to the agent.

    Each action is a message of the assistant; canonical tool calls at its end are its calls. A list of tools that are
    not JSON objects joins the system message.
    """
    reader = _Reader()
    for segment in trace.segments:
        reader.add(segment)
    reader.end_message()
    messages = reader.messages
    if reader.tool_names:
        first = messages[0].pieces if messages and messages[0].role == "system" else ()
        separator = (TraceSegment(Role.CONTEXT, "\n"),) if first else ()
        named = ChatMessage("system", (*first, *separator, *reader.tool_names))
        messages = [named, *messages[1 if first else 0 :]]
    return Conversation(tuple(messages), tuple(reader.tools))


def calls_of(action: str) -> tuple[str, list[ToolCall]]:
    """Split an action into its words and the canonical tool calls at its end.

    The inverse of `builder.said`: the newline that ends the words is removed.
    """
    calls: list[ToolCall] = []
    while action.endswith(_END):
        start = action.rfind(_START)
        call = _call(action[start:]) if start == 0 or action[start - 1 : start] == "\n" else None
        if call is None:
            break
        calls.append(call)
        action = action[:start]
    return action.removesuffix("\n"), calls[::-1]


def openai_record(trace: Trace) -> dict[str, Any]:
    """Return a trace as OpenAI's {"messages": […]}, with `tools` and `reward` if they are known.

    The inverse of formats/openai.py. Canonical tool calls at the end of an action become `tool_calls`, and their
    answers `tool` messages; an answer to other text is the user's, in its wrappers.
    """
    conversation = conversation_of(trace)
    calls, answers = list[dict[str, Any]](), list[dict[str, Any]]()
    messages = [_message(message, calls, answers) for message in conversation.messages]
    _name_calls(calls, answers, trace.meta)
    record: dict[str, Any] = {"messages": messages}
    if conversation.tools:
        record["tools"] = list(conversation.tools)
    return record if trace.reward is None else {**record, "reward": trace.reward}


def _message(message: ChatMessage, calls: list[dict[str, Any]], answers: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a message, and add its calls to `calls` or itself to `answers`."""
    text = message.text
    if message.role == "tool":
        if len(answers) == len(calls):
            return {"role": "user", "content": f"{OPEN}{text}{CLOSE}"}
        answers.append({"role": "tool", "tool_call_id": calls[len(answers)]["id"], "content": text})
        return answers[-1]
    if not message.calls:
        return {"role": message.role, "content": text}
    made = [
        {
            "id": f"call_{number}",
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        }
        for number, call in enumerate(message.calls, start=len(calls))
    ]
    calls += made
    return {"role": message.role, "content": text or None, "tool_calls": made}


def _name_calls(calls: list[dict[str, Any]], answers: list[dict[str, Any]], meta: Mapping[str, Any]) -> None:
    """Set the ids that an importer kept in the trace's meta, if they match the calls and answers in the text."""
    called, answered = meta.get("tool_calls"), meta.get("tool_responses") or []
    if not isinstance(called, list) or not isinstance(answered, list):
        return
    if (len(called), len(answered)) != (len(calls), len(answers)):
        return
    if all(isinstance(name, str) for name in called) and all(name in called for name in answered):
        for call, name in zip(calls, called, strict=True):
            call["id"] = name
        for answer, name in zip(answers, answered, strict=True):
            answer["tool_call_id"] = name


class _Reader:
    """Converter of segments to messages, one at a time."""

    def __init__(self) -> None:
        self.messages: list[ChatMessage] = []
        self.tools: list[Any] = []
        self.tool_names: list[TraceSegment] = []
        """Lists of tools that are not JSON objects."""
        self._pending: list[TraceSegment] = []
        """Text of the user message under construction."""
        self._answer: list[TraceSegment] | None = None
        """Text of the tool answer under construction; None outside its wrappers."""

    def add(self, segment: TraceSegment) -> None:
        """Add one segment."""
        context = segment.role is Role.CONTEXT
        if context and segment.channel == SCAFFOLD:
            return
        if segment.role is Role.ACTION:
            self.end_message()
            words, calls = calls_of(segment.text)
            self._message("assistant", [TraceSegment(Role.ACTION, words)], calls)
        elif _wraps(segment, OPEN) and self._answer is None:
            self.end_message()
            self._answer = []
        elif _wraps(segment, CLOSE) and self._answer is not None:
            self._message("tool", self._answer)
            self._answer = None
        elif self._answer is not None:
            self._answer.append(segment)
        elif context and segment.channel == TOOLS:
            tools = _tools(segment.text)
            self.tools += tools
            self.tool_names += [] if tools else [_line(segment)]
        elif context and (role := _context_role(segment.channel)) is not None:
            self.end_message()
            self._message(role, [_line(segment)])
        elif segment.channel == LEFT_OUT and not self._pending and self._follows_context():
            last = self.messages.pop()
            notice = replace(segment, text="\n" + _line(segment).text)
            self.messages.append(replace(last, pieces=(*last.pieces, notice)))
        else:
            self._pending.append(segment)

    def _follows_context(self) -> bool:
        return bool(self.messages) and self.messages[-1].role in CONTEXT_ROLES

    def end_message(self) -> None:
        """Append the user message under construction, if there is one; an importer ends its context with a newline."""
        if self._answer is not None:
            self._pending += [TraceSegment(Role.CONTEXT, OPEN, WRAPPER), *self._answer]
            self._answer = None
        if self._pending:
            *before, last = self._pending
            line = last.channel in _LINES or (last.channel, last.text) == (WRAPPER, "\n")
            self._message("user", [*before, _line(last) if line else last])
            self._pending = []

    def _message(self, role: MessageRole, pieces: list[TraceSegment], calls: list[ToolCall] | None = None) -> None:
        self.messages.append(ChatMessage(role, tuple(piece for piece in pieces if piece.text), tuple(calls or ())))


def _wraps(segment: TraceSegment, wrapper: str) -> bool:
    return segment.role is Role.CONTEXT and segment.channel == WRAPPER and segment.text == wrapper


def _context_role(channel: str | None) -> MessageRole | None:
    return next((role for role in CONTEXT_ROLES if role == channel), None)


def _line(segment: TraceSegment) -> TraceSegment:
    return replace(segment, text=segment.text.removesuffix("\n"), token_ids=None)


def _call(block: str) -> ToolCall | None:
    """Return the tool call of a block; None if the block is not canonical."""
    text = block.removeprefix(_START).removesuffix(_END)
    try:
        name = parse_json(text)["name"]
    except (ValueError, RecursionError, TypeError, KeyError):  # a model can write anything between the tags
        return None
    for written in {json_text(name), json.dumps(name)}:  # earlier versions escaped everything outside ASCII
        arguments = text.removeprefix('{"arguments": ').removesuffix(f', "name": {written}}}')
        canonical = f'{{"arguments": {arguments}, "name": {written}}}' == text
        if canonical and isinstance(name, str) and _is_json(arguments):
            return ToolCall(name, arguments, block)
    return None


def _is_json(text: str) -> bool:
    try:
        parse_json(text)
    except ValueError:
        return False
    return True


def _tools(text: str) -> list[Any]:
    """Return the tools of a `tool_list` of JSON objects; empty for any other text."""
    lines = text.split("\n")[1:-2]
    if tool_list(lines) != text:
        return []
    try:
        tools = [parse_json(line) for line in lines]
    except ValueError:  # a list of names, one per line
        return []
    return tools if all(isinstance(tool, dict) for tool in tools) else []
