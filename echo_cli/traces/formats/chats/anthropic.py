"""Conversations in Anthropic's messages format: content blocks of text, tool use and tool results."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from echo_cli.trace import Trace, TraceSegment
from echo_cli.traces.builder import ImportOptions, Refusal, TraceBuilder, UnplacedError, tool_call
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
from echo_cli.trajectory import TOOL_ERROR, TOOL_RESULT

_THINKING = ("thinking", "redacted_thinking")

ROLES = """\
input       {"messages": […]} or a list of messages: one, an array of them, or JSONL; optionally system, tools, reward
            or score
context     system; the text of user messages, each run of text blocks followed by a newline; tools; <tool_response>
            wrappers
action      each assistant message: its runs of text blocks, each followed by a newline, then each tool_use as
            <tool_call> JSON </tool_call>. Neighbouring assistant messages are one action; one without text is none
env_output  tool_result blocks, byte for byte (channel tool_error with is_error); the text blocks of a result are joined
            without a separator
warning     matches of --warning in a tool_result
omitted     thinking and redacted_thinking; names and ids
left out    images, documents, server-side tools, messages of other roles
refused     a result without an open tool_use"""


def recognise(sample: Sample) -> str | None:
    """Return the evidence of messages with blocks of Anthropic's types, or None."""
    messages = sample.first if isinstance(sample.first, list) else member(sample.first, "messages")
    blocks = {member(block, "type") for each in listed(messages) for block in listed(member(each, "content"))}
    found = sorted(blocks & {"tool_use", "tool_result", "thinking"})
    return f"its messages have blocks of the types {', '.join(found)}" if found else None


def read(path: Path, options: ImportOptions) -> Iterator[Trace | Refusal]:
    """Yield the conversations of a file."""
    return read_json(path, partial(_trace, options=options), cursor=options.cursor)


def _trace(record: Any, where: str, options: ImportOptions) -> Trace:
    whole, messages = messages_of(record)
    builder = TraceBuilder(options)
    if (system := whole.get("system")) is not None:
        with builder.at("system"):
            text, left_out = parts_of(system, builder)
            builder.context(f"{text}\n", "system")
            builder.add(*left_out)
    if whole.get("tools"):
        builder.tools(tools_of(whole, "tools"))
    for number, message in enumerate(messages):
        with builder.at(f"messages[{number}]"):
            _add(message, builder)
    return builder.trace(task_of(whole, where), reward=reward_of(whole, "reward", "score", builder=builder))


def _add(message: Any, builder: TraceBuilder) -> None:
    """Place one message."""
    role = member(message, "role")
    if role == "user":
        _add_user(_blocks(message.get("content")), builder)
    elif role == "assistant":
        _add_assistant(_blocks(message.get("content")), builder)
    else:
        builder.add(builder.leave_out(f"a message of unknown role: {role!r}"))


def _add_user(blocks: Iterable[Mapping[str, Any]], builder: TraceBuilder) -> None:
    for kind, run in groupby(blocks, _kind):
        if kind == "text":
            builder.context(f"{_text(run, builder)[0]}\n", "user")
        elif kind == "tool_result":
            for block in run:
                builder.calls.answer(block.get("tool_use_id"))
                content = block.get("content")
                text, left_out = ("", []) if content is None else parts_of(content, builder)
                channel = TOOL_ERROR if block.get("is_error") is True else TOOL_RESULT
                builder.answer([*builder.observed(text, channel), *left_out])
        else:
            for _ in run:
                builder.add(builder.leave_out(f"a block that is neither text nor a tool_result: {kind!r}"))


def _add_assistant(blocks: Iterable[Mapping[str, Any]], builder: TraceBuilder) -> None:
    words, calls, left_out = list[str](), list[str](), list[TraceSegment]()
    for kind, run in groupby(blocks, _kind):
        if kind in _THINKING:
            for block in run:
                builder.omit("reasoning", str(block.get("thinking") or ""))
        elif kind == "text":
            words.append(_text(run, builder)[0])
        elif kind == "tool_use":
            calls += [_call(block, builder) for block in run]
        else:
            for _ in run:
                left_out.append(builder.leave_out(f"a block that is neither text nor a tool_use: {kind!r}"))
    builder.say("\n".join(words), calls)
    builder.add_later(*left_out)


def _call(block: Mapping[str, Any], builder: TraceBuilder) -> str:
    name, call_id, arguments = block.get("name"), block.get("id"), block.get("input")
    if not isinstance(name, str) or not isinstance(call_id, str):
        raise UnplacedError("a tool_use without a name or an id")
    builder.calls.call(call_id)
    return tool_call(name, arguments_of(arguments, builder))


def _blocks(content: Any) -> list[Mapping[str, Any]]:
    """Return a message's content, a text or a list of blocks, as blocks."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if not isinstance(content, list) or not all(isinstance(block, dict) for block in content):
        raise UnplacedError("content that is neither text nor blocks")
    return content


def _kind(block: Mapping[str, Any]) -> Any:
    return block.get("type")


def _text(blocks: Iterable[Mapping[str, Any]], builder: TraceBuilder) -> tuple[str, list[TraceSegment]]:
    return parts_of(list(blocks), builder)
