"""Conversations in OpenAI's chat completions format, as OpenAI, vLLM and Hugging Face's TRL have them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from echo_cli.trace import Trace
from echo_cli.traces.builder import ImportOptions, Refusal, TraceBuilder
from echo_cli.traces.formats.chats.messages import ANSWERS, Messages, Observation
from echo_cli.traces.framed_text import told_observation
from echo_cli.traces.json_records import member, messages_in, messages_of, read_json, reward_of, task_of, tools_in
from echo_cli.traces.recognition import Sample

ROLES = """\
input       {"messages": […]} or a list of messages: one, an array of them, or JSONL; optionally system, tools, reward
            or score. messages, tools and tool calls may be JSON text
context     system; system, developer and user messages, each followed by a newline; tools; <tool_response> wrappers
action      each assistant message: its text, a newline, then each tool call as <tool_call> JSON </tool_call>, whose
            arguments keep their bytes. Neighbouring assistant messages are one action; one without text is none
env_output  tool and function messages, byte for byte; text parts are joined without a separator. An answer without an
            id is to the call of its name in the last action, or else to the first unanswered one. With --observation:
            the messages of that role, of the user's those after the first action; or the user messages in which the
            expression is found, of which its groups, if it has any, and the rest is context (channel wrapper)
warning     matches of --warning in an observation
omitted     reasoning (reasoning_content, reasoning, thinking), names and ids
left out    images, audio, files, calls that are not function calls, messages without text, messages of other roles,
            tools that are not a list of objects
refused     an answer without an open call"""


def recognise(sample: Sample) -> str | None:
    """Return the evidence of messages with roles, or None."""
    messages = messages_in(sample.first)
    if not messages or not all(isinstance(member(each, "role"), str) for each in messages):
        return None
    return "its records are messages, each with a role"


def read(path: Path, options: ImportOptions) -> Iterator[Trace | Refusal]:
    """Yield the conversations of a file."""
    return read_json(path, partial(_trace, options=options), cursor=options.cursor)


def _trace(record: Any, where: str, options: ImportOptions) -> Trace:
    whole, messages = messages_of(record)
    builder = TraceBuilder(options)

    def observe(message: Mapping[str, Any], text: str) -> Observation | None:
        role = str(message.get("role"))
        told = None if role in ANSWERS else told_observation(text, role, options, acted=bool(builder.commands))
        return None if told is None else Observation(told)

    if isinstance(system := whole.get("system"), str) and system:
        with builder.at("system"):
            builder.context(f"{system}\n", "system")
    Messages(builder, observe).add_all(messages, tools=tools_in(whole, builder))
    return builder.trace(task_of(whole, where), reward=reward_of(whole, "reward", "score", builder=builder))
