"""Conversations of LLaMA-Factory v1: messages whose content is a list of parts with a type and a value.

Source: LLaMA-Factory's src/llamafactory/v1/utils/types.py and its data converters. Its earlier format is ShareGPT's.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from echo_cli.trace import Trace
from echo_cli.traces.builder import ImportOptions, Refusal, TraceBuilder
from echo_cli.traces.formats.chats.messages import Messages
from echo_cli.traces.json_records import listed, member, messages_in, messages_of, read_json, task_of, tools_in
from echo_cli.traces.recognition import Sample

ROLES = """\
input       {"messages": […]}, an array of them, or JSONL: messages with a role and a list of parts, each with type and
            value; optionally tools (JSON text)
context     system and user messages, each followed by a newline; tools; <tool_response> wrappers
action      each assistant message: its text parts, a newline, then each tool_call part as <tool_call> JSON
            </tool_call>. Neighbouring assistant messages are one action; one without text is none
env_output  tool messages, byte for byte; text parts are joined without a separator. An answer is to the first
            unanswered call of the last action
warning     matches of --warning in an observation
omitted     reasoning parts; loss_weight
left out    image_url, video_url and audio_url parts, tool_call parts that are not JSON of a call, messages of other
            roles, tools that are not a list of objects
refused     an answer without an open call"""

_TYPES = {"text", "reasoning", "tool_call", "image_url", "video_url", "audio_url"}


def recognise(sample: Sample) -> str | None:
    """Return the evidence of messages with parts of a type and a value, or None."""
    parts = [part for message in messages_in(sample.first) for part in listed(member(message, "content"))]
    known = all(isinstance(part, dict) and "value" in part and part.get("type") in _TYPES for part in parts)
    return "its messages have parts with type and value" if parts and known else None


def read(path: Path, options: ImportOptions) -> Iterator[Trace | Refusal]:
    """Yield the conversations of a file."""
    return read_json(path, partial(_trace, options=options), cursor=options.cursor)


def _trace(record: Any, where: str, options: ImportOptions) -> Trace:
    whole, messages = messages_of(record)
    builder = TraceBuilder(options)
    Messages(builder).add_all(map(_chat_message, messages), tools=tools_in(whole, builder))
    return builder.trace(task_of(whole, where))


def _chat_message(message: Any) -> Any:
    """Return a message in the shape of OpenAI's chat completions."""
    content = member(message, "content")
    if not isinstance(content, list):
        return message
    values: dict[str, list[Any]] = {"reasoning": [], "tool_call": []}
    shown = list[Any]()
    for part in content:
        kind, value = member(part, "type"), member(part, "value")
        if kind in values and isinstance(value, str):
            values[kind].append(value)
        else:
            shown.append({"type": kind, kind: value} if kind == "text" else part)
    reasoning = {"reasoning": "".join(values["reasoning"])} if values["reasoning"] else {}
    return {"role": member(message, "role"), "content": shown, "tool_calls": values["tool_call"], **reasoning}
