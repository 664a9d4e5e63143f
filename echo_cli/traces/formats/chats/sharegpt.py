"""Conversations in ShareGPT's format, with the roles of LLaMA-Factory and of Hermes for tools.

Source: LLaMA-Factory's data/README.md and the cards of ShareGPT-like data sets.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from echo_cli.trace import Trace
from echo_cli.traces.builder import ImportOptions, Refusal, TraceBuilder, UnplacedError
from echo_cli.traces.formats.chats.messages import Messages, Observation
from echo_cli.traces.framed_text import told_observation
from echo_cli.traces.json_records import listed, member, read_json, reward_of, task_of, tools_in, unquoted
from echo_cli.traces.recognition import Sample
from echo_cli.trajectory import OPEN, TOOL_RESULT

ROLES = """\
input       {"conversations": […]}, an array of them, or JSONL: messages with from and value; optionally system, tools
            (JSON text, or a list), reward or score
context     system; human and user messages; each followed by a newline; tools; <tool_response> wrappers
action      each gpt or assistant message; each function_call: JSON of one call or of a list, each as <tool_call> JSON
            </tool_call>, or else its text. Neighbours are one action
env_output  observation, tool and function_response messages, byte for byte; a message of <tool_response> blocks is an
            answer for each block. With --observation: the messages of that role, of the human's those after the first
            action; or the human messages in which the expression is found, as in openai
warning     matches of --warning in an observation
omitted     chosen and rejected answers of preference data
left out    images, videos and audios, messages without text, messages of other roles"""

_USERS = ("human", "user")
_AGENTS = ("gpt", "assistant", "chatgpt", "bing", "bard")
_CALLS = ("function_call", "function-call")
_ANSWERS = ("observation", "tool", "function_response", "function-response")
_MEDIA = ("image", "images", "video", "videos", "audio", "audios")
_BLOCK = re.compile(rf"{re.escape(OPEN)}((?:(?!{re.escape(OPEN)}).)*?)\n</tool_response>\s*", re.DOTALL)


def recognise(sample: Sample) -> str | None:
    """Return the evidence of conversations of messages with from and value, or None."""
    messages = listed(member(sample.first, "conversations"))
    if not messages or not all(isinstance(each, dict) and {"from", "value"} <= each.keys() for each in messages):
        return None
    return "its conversations are messages with from and value"


def read(path: Path, options: ImportOptions) -> Iterator[Trace | Refusal]:
    """Yield the conversations of a file."""
    return read_json(path, partial(_trace, options=options), cursor=options.cursor)


def _trace(record: Any, where: str, options: ImportOptions) -> Trace:
    messages = listed(member(record, "conversations"))
    if not messages:
        raise UnplacedError("no conversations")
    builder = TraceBuilder(options)

    def observe(message: Mapping[str, Any], text: str) -> Observation | None:
        role = message["from"]
        user = role if role in _USERS else ""
        told = told_observation(text, str(role), options, user=user, acted=bool(builder.commands))
        return None if told is None or role in _ANSWERS else Observation(told)

    placed = Messages(builder, observe)
    tools = tools_in(record, builder)
    if isinstance(record.get("system"), str) and record["system"]:
        with builder.at("system"):
            placed.add({"role": "system", "from": "system", "content": record["system"]})
    for number, message in enumerate(messages):
        if member(message, "from") != "system":
            builder.tools(tools)
            tools = []
        with builder.at(f"conversations[{number}]"):
            _add(message, builder, placed)
    for name in ("chosen", "rejected"):
        if isinstance(answer := member(record.get(name), "value"), str):
            builder.omit("chosen and rejected answers", answer)
    for name in _MEDIA:
        if record.get(name):
            builder.add_later(builder.leave_out(name))
    return builder.trace(task_of(record, where), reward=reward_of(record, "reward", "score", builder=builder))


def _add(message: Any, builder: TraceBuilder, placed: Messages) -> None:
    """Place one message."""
    role, value = member(message, "from"), member(message, "value")
    if role in _AGENTS:
        placed.add({"role": "assistant", "content": value if isinstance(value, str) else ""})
    elif role in _CALLS:
        _add_calls(value, builder, placed)
    elif role in _ANSWERS and isinstance(value, str):
        for text in _blocks(value):
            if builder.calls.open:
                placed.add({"role": "tool", "from": role, "content": text})
            else:  # the call is in the agent's words, as Hermes writes it
                builder.answer(builder.observed(text, TOOL_RESULT))
    else:
        known = "user" if role in _USERS else role
        placed.add({"role": known, "from": role, "content": value})


def _add_calls(value: Any, builder: TraceBuilder, placed: Messages) -> None:
    """Place a message of calls: JSON text of a call, or of a list of calls; any other text is the agent's words."""
    told = unquoted(value)
    calls = told if isinstance(told, list) else [told]
    if all(isinstance(member(call, "name"), str) for call in calls):
        placed.add({"role": "assistant", "tool_calls": [{"function": call} for call in calls]})
    else:
        builder.repair("a function_call that is not JSON of calls, kept as text")
        placed.add({"role": "assistant", "content": value if isinstance(value, str) else ""})


def _blocks(value: str) -> list[str]:
    """Return the texts of an answer: of its <tool_response> blocks, if it consists of them, or else the whole."""
    blocks = list(_BLOCK.finditer(value))
    whole = "".join(block.group() for block in blocks) == value
    return [block.group(1) for block in blocks] if blocks and whole else [value]
