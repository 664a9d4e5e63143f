"""Conversations in the form of Anthropic's messages: content blocks, of text, of tools used and of their results."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from echo_cli.trace import Trace
from echo_cli.traces.builder import ImportOptions, Refusal, TraceBuilder, UnplacedError, said, tool_call
from echo_cli.traces.json_records import at, joined, member, messages_of, read_json, reward_of, task_of, tools_of
from echo_cli.trajectory import TOOL_ERROR, TOOL_RESULT

_THINKING = ("thinking", "redacted_thinking")

ROLES = """\
input       {"messages": […]} or a list of messages: one, an array of them, or JSONL; where known system, tools, reward
            or score
context     system; the text of user messages, a newline behind each run of blocks; tools; <tool_response> wrappers
action      each assistant message: its blocks in order, a newline behind each run of text, each tool_use as
            <tool_call> JSON </tool_call> with sorted keys
env_output  tool_result blocks, byte for byte (channel tool_error with is_error); text blocks within one are joined with
            nothing between them
warning     what --warning matches in a tool_result
left out    thinking and redacted_thinking; names and ids
refused     images, documents and tools that ran at the server; a result of no open tool_use; other roles"""


def read(path: Path, options: ImportOptions) -> Iterator[Trace | Refusal]:
    """Yield the conversations of a file."""
    return read_json(path, partial(_trace, options=options))


def _trace(record: Any, where: str, options: ImportOptions) -> Trace:
    whole, messages = messages_of(record)
    builder = TraceBuilder(options)
    if (system := whole.get("system")) is not None:
        with at("system"):
            builder.context(f"{_text(_blocks(system))}\n", "system")
    if whole.get("tools"):
        builder.tools(tools_of(whole, "tools"))
    for number, message in enumerate(messages):
        with at(f"messages[{number}]"):
            _add(message, builder)
    return builder.trace(task_of(whole, where), reward=reward_of(whole, "reward", "score"))


def _add(message: Any, builder: TraceBuilder) -> None:
    """Place one message."""
    role = member(message, "role")
    if role == "user":
        _add_user(_blocks(message.get("content")), builder)
    elif role == "assistant":
        _add_assistant(_blocks(message.get("content")), builder)
    else:
        raise UnplacedError(f"no message of a known role: {role!r}")


def _add_user(blocks: Iterable[Mapping[str, Any]], builder: TraceBuilder) -> None:
    for kind, run in groupby(blocks, _kind):
        if kind == "text":
            builder.context(f"{_text(run)}\n", "user")
        elif kind == "tool_result":
            for block in run:
                builder.calls.answer(block.get("tool_use_id"))
                text = "" if block.get("content") is None else _text(_blocks(block["content"]))
                channel = TOOL_ERROR if block.get("is_error") is True else TOOL_RESULT
                builder.answer(builder.observed(text, channel))
        else:
            raise UnplacedError(f"a user's block that is neither text nor a tool_result: {kind!r}")


def _add_assistant(blocks: Iterable[Mapping[str, Any]], builder: TraceBuilder) -> None:
    parts = []
    for kind, run in groupby((block for block in blocks if _kind(block) not in _THINKING), _kind):
        if kind == "text":
            parts.append(said(_text(run)))
        elif kind == "tool_use":
            parts += [_call(block, builder) for block in run]
        else:
            raise UnplacedError(f"an assistant's block that is neither text nor a tool_use: {kind!r}")
    builder.act("".join(parts) or said(""))


def _call(block: Mapping[str, Any], builder: TraceBuilder) -> str:
    name, call_id, arguments = block.get("name"), block.get("id"), block.get("input")
    if not isinstance(name, str) or not isinstance(call_id, str):
        raise UnplacedError("a tool_use without a name or an id")
    if not isinstance(arguments, dict):
        raise UnplacedError("a tool_use whose input is not an object")
    builder.calls.call(call_id)
    return tool_call(name, arguments)


def _blocks(content: Any) -> list[Mapping[str, Any]]:
    """Return a message's content, text or blocks, as blocks."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if not isinstance(content, list) or not all(isinstance(block, dict) for block in content):
        raise UnplacedError("content that is neither text nor blocks")
    return content


def _kind(block: Mapping[str, Any]) -> Any:
    return block.get("type")


def _text(blocks: Iterable[Mapping[str, Any]]) -> str:
    return joined(blocks, "a block")
