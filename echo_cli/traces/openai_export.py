"""Export of any trace as OpenAI-style messages: the inverse of formats/openai.py."""

from __future__ import annotations

import json
from typing import Any

from echo_cli.trace import Trace, TraceSegment
from echo_cli.traces.builder import tool_call, tool_list
from echo_cli.traces.formats.openai import CONTEXT_ROLES
from echo_cli.traces.json_records import parse_json
from echo_cli.trajectory import CLOSE, OPEN, SCAFFOLD, TOOLS, WRAPPER, Role

_START, _END = "<tool_call>\n", "\n</tool_call>\n"


def openai_record(trace: Trace) -> dict[str, Any]:
    """Return a trace as {"messages": […]}, with `tools` and `reward` if they are known.

    Canonical tool calls at the end of an action become `tool_calls`, and their answers `tool` messages. Text whose
    channel names no message role, as in a terminal's transcript, becomes user messages. A chat template's scaffold is
    omitted: the template adds it again.
    """
    writer = _Writer()
    for segment in trace.segments:
        writer.add(segment)
    writer.end_message()
    writer.name_calls(trace.meta.get("tool_calls"), trace.meta.get("tool_responses"))
    record: dict[str, Any] = {"messages": writer.messages}
    if writer.tools:
        record["tools"] = writer.tools
    return record if trace.reward is None else {**record, "reward": trace.reward}


def calls_of(action: str) -> tuple[str, list[tuple[str, Any]]]:
    """Split an action into its words and the (name, arguments) of the canonical tool calls at its end.

    The inverse of `builder.said`: the newline that ends the words is removed.
    """
    calls: list[tuple[str, Any]] = []
    while action.endswith(_END):
        start = action.rfind(_START)
        call = _call(action[start:]) if start == 0 or action[start - 1 : start] == "\n" else None
        if call is None:
            break
        calls.append(call)
        action = action[:start]
    return action.removesuffix("\n"), calls[::-1]


class _Writer:
    """Converter of segments to messages, one at a time."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.tools: list[Any] = []
        self._pending: list[str] = []
        """Text of the user message under construction."""
        self._answer: list[str] | None = None
        """Text of the tool answer under construction; None outside its wrappers."""
        self._calls: list[dict[str, Any]] = []
        """Tool calls in `messages`."""
        self._answers: list[dict[str, Any]] = []
        """Tool messages in `messages`."""

    def add(self, segment: TraceSegment) -> None:
        """Add one segment."""
        context, text = segment.role is Role.CONTEXT, segment.text
        wrapper = context and segment.channel == WRAPPER
        if context and segment.channel == SCAFFOLD:
            return
        if segment.role is Role.ACTION:
            self._act(text)
        elif wrapper and text == OPEN and self._answer is None:
            self._answer = []
        elif wrapper and text == CLOSE and self._answer is not None:
            self._end_answer(self._answer)
        elif self._answer is not None:
            self._answer.append(text)
        elif context and segment.channel == TOOLS and (tools := _tools(text)):
            self.tools += tools
        elif context and segment.channel in CONTEXT_ROLES:
            self.end_message()
            self.messages.append({"role": segment.channel, "content": text.removesuffix("\n")})
        else:
            self._pending.append(text)

    def end_message(self) -> None:
        """Append the user message under construction, if there is one."""
        if self._answer is not None:
            self._pending += [OPEN, *self._answer]
            self._answer = None
        if self._pending:
            self.messages.append({"role": "user", "content": "".join(self._pending)})
            self._pending = []

    def name_calls(self, calls: Any, answers: Any) -> None:
        """Set the ids that an importer kept in the trace's meta, if they match the calls and answers in the text."""
        if not isinstance(calls, list) or not isinstance(answers or [], list):
            return
        answers = answers or []
        if (len(calls), len(answers)) != (len(self._calls), len(self._answers)):
            return
        if all(isinstance(name, str) for name in calls) and all(name in calls for name in answers):
            for call, name in zip(self._calls, calls, strict=True):
                call["id"] = name
            for answer, name in zip(self._answers, answers, strict=True):
                answer["tool_call_id"] = name

    def _act(self, action: str) -> None:
        self.end_message()
        text, found = calls_of(action)
        calls = [
            {
                "id": f"call_{number}",
                "type": "function",
                "function": {"name": name, "arguments": json.dumps(arguments, sort_keys=True)},
            }
            for number, (name, arguments) in enumerate(found, start=len(self._calls))
        ]
        self._calls += calls
        message: dict[str, Any] = {"role": "assistant", "content": text}
        self.messages.append({**message, "content": text or None, "tool_calls": calls} if calls else message)

    def _end_answer(self, parts: list[str]) -> None:
        self._answer = None
        if len(self._answers) == len(self._calls):  # an answer to text that is not a canonical call
            self._pending += [OPEN, *parts, CLOSE]
            return
        self.end_message()
        call = self._calls[len(self._answers)]
        message = {"role": "tool", "tool_call_id": call["id"], "content": "".join(parts)}
        self._answers.append(message)
        self.messages.append(message)


def _call(block: str) -> tuple[str, Any] | None:
    """Return the name and arguments of a tool call; None if the block is not canonical."""
    try:
        value = parse_json(block.removeprefix(_START).removesuffix(_END))
        name, arguments = value["name"], value["arguments"]
        return (name, arguments) if isinstance(name, str) and tool_call(name, arguments) == block else None
    except (ValueError, RecursionError, TypeError, KeyError):  # a model can write anything between the tags
        return None


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
