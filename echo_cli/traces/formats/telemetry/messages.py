"""Messages of a recorded model call, in one form: a role and parts, as OpenTelemetry's GenAI conventions write them.

The parts are `text` and `reasoning` with content, `tool_call` with id, name and arguments, `tool_call_response` with id
and response; parts of other types are left out. Messages of the chat completions API, with Anthropic's blocks, or of
older telemetry become this form.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from echo_cli.trace import TraceSegment
from echo_cli.traces.builder import TraceBuilder, UnplacedError, tool_call
from echo_cli.traces.json_records import arguments_of, listed, member, text_or_json
from echo_cli.traces.strict_json import parse_json
from echo_cli.trajectory import TOOL_ERROR, TOOL_RESULT

Message = Mapping[str, Any]
"""A message: `role` and `parts`."""

_ROLES = {"ai": "assistant", "model": "assistant", "human": "user", "function": "tool"}
"""Roles by the other names that are in use."""
_REASONING = ("reasoning", "thinking", "redacted_thinking")


def message_of(value: Any) -> Message:
    """Return a message with its parts, whether they are recorded as parts or as content and tool calls."""
    role = _ROLES.get(str(member(value, "role")), member(value, "role"))
    recorded = member(value, "parts")
    if isinstance(recorded, list):
        return {"role": role, "parts": [_part(part) for part in recorded]}
    content = member(value, "content")
    if role == "tool":
        call_id = next((found for name in ("tool_call_id", "id") if (found := member(value, name)) is not None), None)
        answer = {"id": call_id, "response": content, "is_error": member(value, "status") == "error"}
        return {"role": role, "parts": [{"type": "tool_call_response", **answer}]}
    parts = [_part(part) for part in content] if isinstance(content, list) else []
    if isinstance(content, str):
        parts = [{"type": "text", "content": content}]
    reasoning = member(value, "reasoning_content")
    if isinstance(reasoning, str):
        parts.insert(0, {"type": "reasoning", "content": reasoning})
    calls = [_called(call) for call in listed(member(value, "tool_calls"))]
    known = {call["id"] for call in calls}
    parts = [part for part in parts if not (part.get("type") == "tool_call" and part.get("id") in known)]
    return {"role": role, "parts": [*parts, *calls]}


def _part(part: Any) -> dict[str, Any]:
    """Return a part in its one form; a part of another type as it is."""
    kind = member(part, "type")
    if isinstance(part, str):
        return {"type": "text", "content": part}
    if not isinstance(part, dict):
        return {"type": None}
    if kind in ("text", "output_text", "input_text") and "content" not in part:
        return {"type": "text", "content": part.get("text")}
    if kind in _REASONING:
        told = (part.get(name) for name in ("content", "thinking", "reasoning", "text"))
        return {"type": "reasoning", "content": next((text for text in told if isinstance(text, str)), "")}
    if kind == "tool_use":
        return {"type": "tool_call", "id": part.get("id"), "name": part.get("name"), "arguments": part.get("input")}
    if kind == "tool_result":
        answer = {"id": part.get("tool_use_id"), "response": part.get("content")}
        return {"type": "tool_call_response", **answer, "is_error": part.get("is_error") is True}
    if kind == "tool_call_response" and "response" not in part:
        return {**part, "response": part.get("result")}
    return part


def _called(call: Any) -> dict[str, Any]:
    """Return the part of a tool call, recorded with a function or with its name and args."""
    function = member(call, "function")
    name, arguments = (member(function or call, key) for key in ("name", "arguments"))
    arguments = member(call, "args") if function is None and arguments is None else arguments
    return {"type": "tool_call", "id": member(call, "id"), "name": name, "arguments": arguments}


def text_of_parts(message: Message) -> str:
    """Return what a message says, its text and its calls, to count what is left out of it."""
    told = (text_or_json(part.get("content")) for part in message["parts"] if part.get("type") == "text")
    calls = (text_or_json(part.get("arguments")) for part in message["parts"] if part.get("type") == "tool_call")
    return "".join((*told, *calls))


def same_message(message: Message) -> str:
    """Return a key that is equal for messages that say the same, however a call recorded them.

    Ids, reasoning, and the white space of arguments are not in it.
    """
    parts: list[Any] = []
    for part in message["parts"]:
        kind = part.get("type")
        if kind == "text":
            parts.append(part.get("content"))
        elif kind == "tool_call":
            parts.append([part.get("name"), _canonical(part.get("arguments"))])
        elif kind == "tool_call_response":
            parts.append({"response": _canonical(part.get("response"))})
    return json.dumps([message["role"], parts], sort_keys=True)


def _canonical(value: Any) -> Any:
    try:
        found = parse_json(value) if isinstance(value, str) else value
    except ValueError:
        return value
    return found or None


def add_message(message: Message, builder: TraceBuilder) -> None:
    """Place one message.

    Raises:
        UnplacedError: a tool call has no name.
    """
    role, parts = message["role"], message["parts"]
    if role not in ("system", "developer", "user", "assistant", "tool"):
        builder.add(builder.leave_out(f"a message of unknown role: {role!r}", text_of_parts(message)))
        return
    words, calls, left_out = list[str](), list[str](), list[TraceSegment]()
    answered = False
    for part in parts:
        kind, content = part.get("type"), part.get("content")
        if kind == "text" and isinstance(content, str) and role == "tool":
            answered = True
            _answer({"response": content}, builder)
        elif kind == "text" and isinstance(content, str):
            words.append(content)
        elif kind == "reasoning":
            builder.omit("reasoning", text_or_json(content))
        elif kind == "tool_call" and role == "assistant":
            calls.append(_call(part, builder))
        elif kind == "tool_call_response":
            answered = True
            _answer(part, builder)
        else:
            left_out.append(builder.leave_out(f"a part that is not text: {kind!r}"))
    if role == "assistant":
        builder.say("".join(words), calls)
        builder.add_later(*left_out)
        return
    if words or not (answered or left_out):
        builder.context("".join(words) + "\n", role)
    builder.add(*left_out)


def _call(part: Mapping[str, Any], builder: TraceBuilder) -> str:
    name = part.get("name")
    if not isinstance(name, str):
        raise UnplacedError("a tool call without a name")
    call_id = part.get("id")
    arguments = arguments_of(part.get("arguments"), builder)
    builder.calls.call(call_id if isinstance(call_id, str) else f"call_{len(builder.calls.calls)}")
    return tool_call(name, arguments)


def _answer(part: Mapping[str, Any], builder: TraceBuilder) -> None:
    """Place a tool's answer; one without an id belongs to the first open call."""
    open_calls, call_id = builder.calls.open, part.get("id")
    response = part.get("response")
    texts = [_text(each) for each in listed(response)]
    text = text_or_json(response) if not texts or None in texts else "".join(text or "" for text in texts)
    known = call_id if isinstance(call_id, str) else next(iter(open_calls), None)
    if known not in open_calls:
        builder.add(builder.leave_out("a tool's answer without its call", text))
        return
    builder.calls.answer(known)
    builder.answer(builder.observed(text, TOOL_ERROR if part.get("is_error") is True else TOOL_RESULT))


def _text(value: Any) -> str | None:
    """Return the text of a part; None if it is no text."""
    part = _part(value)
    content = part.get("content")
    return content if part.get("type") == "text" and isinstance(content, str) else None
