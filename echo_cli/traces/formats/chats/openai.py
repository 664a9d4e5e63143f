"""Conversations in OpenAI's chat completions format: messages, with tool calls and the tools' answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from echo_cli.trace import Trace, TraceSegment
from echo_cli.traces.builder import ImportOptions, Refusal, TraceBuilder, UnplacedError, tool_call
from echo_cli.traces.conversation import CONTEXT_ROLES
from echo_cli.traces.json_records import (
    arguments_of,
    listed,
    member,
    messages_of,
    parts_of,
    read_json,
    reward_of,
    task_of,
    tools_of,
)
from echo_cli.traces.recognition import Sample
from echo_cli.trajectory import TOOL_RESULT

ROLES = """\
input       {"messages": […]} or a list of messages: one, an array of them, or JSONL; optionally tools, reward or score
context     system, developer and user messages, each followed by a newline; tools; <tool_response> wrappers
action      each assistant message: its text, a newline, then each tool call as <tool_call> JSON </tool_call>, whose
            arguments keep their bytes. Neighbouring assistant messages are one action; one without text is none
env_output  tool and function messages, byte for byte; text parts are joined without a separator
warning     matches of --warning in a tool's answer
omitted     reasoning (reasoning_content, reasoning), names and ids
left out    images, audio, files, calls that are not function calls, messages of other roles
refused     an answer without an open call; a message without text or calls"""

_REASONING = ("reasoning_content", "reasoning")


def recognise(sample: Sample) -> str | None:
    """Return the evidence of messages with roles, or None."""
    messages = listed(sample.first if isinstance(sample.first, list) else member(sample.first, "messages"))
    if not messages or not all(isinstance(member(each, "role"), str) for each in messages):
        return None
    return "its records are messages, each with a role"


def read(path: Path, options: ImportOptions) -> Iterator[Trace | Refusal]:
    """Yield the conversations of a file."""
    return read_json(path, partial(_trace, options=options))


def _trace(record: Any, where: str, options: ImportOptions) -> Trace:
    whole, messages = messages_of(record)
    tools = tools_of(whole, "tools") if whole.get("tools") else []
    builder = TraceBuilder(options)
    for number, message in enumerate(messages):
        if member(message, "role") not in ("system", "developer"):
            builder.tools(tools)
            tools = []
        with builder.at(f"messages[{number}]"):
            _add(message, builder)
    return builder.trace(task_of(whole, where), reward=reward_of(whole, "reward", "score", builder=builder))


def _add(message: Any, builder: TraceBuilder) -> None:
    """Place one message."""
    role, calls = member(message, "role"), builder.calls
    if role in CONTEXT_ROLES:
        text, left_out = _text(message.get("content"), builder)
        builder.context(f"{text}\n", role)
        builder.add(*left_out)
    elif role == "assistant":
        _say(message, builder)
    elif role == "tool":
        calls.answer(message.get("tool_call_id"))
        _answer(message, builder)
    elif role == "function":  # a legacy answer has no id: it is matched by the function's name, the call's note
        named = (call for call, name in calls.open.items() if name is not None and name == message.get("name"))
        calls.answer(next(named, None))
        _answer(message, builder)
    else:
        text = member(message, "content")
        told = text if isinstance(text, str) else ""
        builder.add(builder.leave_out(f"a message of unknown role: {role!r}", told))


def _answer(message: Mapping[str, Any], builder: TraceBuilder) -> None:
    text, left_out = _text(message.get("content"), builder)
    builder.answer([*builder.observed(text, TOOL_RESULT), *left_out])


def _say(message: Mapping[str, Any], builder: TraceBuilder) -> None:
    """Place an assistant's message: its words, then its tool calls."""
    words, left_out = list[str](), list[TraceSegment]()
    for name in ("content", "refusal"):
        if message.get(name) is not None:
            text, without = _text(message[name], builder)
            words.append(text)
            left_out += without
    if message.get("audio") is not None:
        left_out.append(builder.leave_out("audio"))
    for name in _REASONING:
        if isinstance(message.get(name), str):
            builder.omit("reasoning", message[name])
    calls = message.get("tool_calls") or []
    if not isinstance(calls, list):
        raise UnplacedError("tool_calls is not a list")
    blocks = []
    for call in calls:
        if not isinstance(call, dict) or call.get("type", "function") != "function":
            left_out.append(builder.leave_out("a tool call that is not a function call"))
            continue
        if not isinstance(call.get("id"), str):
            raise UnplacedError("a tool call without an id")
        blocks.append(_call(call["id"], call.get("function"), builder, legacy=False))
    if message.get("function_call") is not None:
        legacy_id = f"call_{len(builder.calls.calls)}"
        blocks.append(_call(legacy_id, message["function_call"], builder, legacy=True))
    builder.say("".join(words), blocks)
    builder.add_later(*left_out)


def _call(call_id: str, function: Any, builder: TraceBuilder, *, legacy: bool) -> str:
    name = member(function, "name")
    if not isinstance(name, str):
        raise UnplacedError("a tool call without a function name")
    arguments = arguments_of(function.get("arguments"), builder)
    builder.calls.call(call_id, name if legacy else None)
    return tool_call(name, arguments)


def _text(content: Any, builder: TraceBuilder) -> tuple[str, list[TraceSegment]]:
    return parts_of(content, builder, ("text", "refusal"))
