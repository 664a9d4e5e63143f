"""Conversations in OpenAI's chat completions format: messages, with tool calls and the tools' answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from echo_cli.trace import Trace
from echo_cli.traces.builder import ImportOptions, Refusal, TraceBuilder, UnplacedError, tool_call
from echo_cli.traces.conversation import CONTEXT_ROLES
from echo_cli.traces.json_records import arguments_of, at, member, messages_of, read_json, reward_of, task_of, tools_of
from echo_cli.trajectory import TOOL_RESULT

ROLES = """\
input       {"messages": […]} or a list of messages: one, an array of them, or JSONL; optionally tools, reward or score
context     system, developer and user messages, each followed by a newline; tools; <tool_response> wrappers
action      each assistant message: its text, a newline, then each tool call as <tool_call> JSON </tool_call>, whose
            arguments keep their bytes. Neighbouring assistant messages are one action; one without text is none
env_output  tool and function messages, byte for byte; text parts are joined without a separator
warning     matches of --warning in a tool's answer
omitted     reasoning (reasoning_content), names and ids
refused     images, audio and files; arguments that are not JSON; an answer without an open call; other roles"""


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
        with at(f"messages[{number}]"):
            _add(message, builder)
    return builder.trace(task_of(whole, where), reward=reward_of(whole, "reward", "score"))


def _add(message: Any, builder: TraceBuilder) -> None:
    """Place one message."""
    role, calls = member(message, "role"), builder.calls
    if role in CONTEXT_ROLES:
        builder.context(f"{_text(message.get('content'))}\n", role)
    elif role == "assistant":
        builder.say(*_action(message, builder))
    elif role == "tool":
        calls.answer(message.get("tool_call_id"))
        builder.answer(builder.observed(_text(message.get("content")), TOOL_RESULT))
    elif role == "function":  # a legacy answer has no id: it is matched by the function's name, the call's note
        named = (call for call, name in calls.open.items() if name is not None and name == message.get("name"))
        calls.answer(next(named, None))
        builder.answer(builder.observed(_text(message.get("content")), TOOL_RESULT))
    else:
        raise UnplacedError(f"a message of unknown role: {role!r}")


def _action(message: Mapping[str, Any], builder: TraceBuilder) -> tuple[str, list[str]]:
    """Return the words and the tool calls of an assistant's message."""
    if message.get("audio") is not None:
        raise UnplacedError("audio is not text")
    text = "".join(_text(message[name]) for name in ("content", "refusal") if message.get(name) is not None)
    calls = message.get("tool_calls") or []
    if not isinstance(calls, list):
        raise UnplacedError("tool_calls is not a list")
    blocks = []
    for call in calls:
        if not isinstance(call, dict) or call.get("type", "function") != "function":
            raise UnplacedError("a tool call that is not a function call")
        if not isinstance(call.get("id"), str):
            raise UnplacedError("a tool call without an id")
        blocks.append(_call(call["id"], call.get("function"), builder, legacy=False))
    if message.get("function_call") is not None:
        legacy_id = f"call_{len(builder.calls.calls)}"
        blocks.append(_call(legacy_id, message["function_call"], builder, legacy=True))
    return text, blocks


def _call(call_id: str, function: Any, builder: TraceBuilder, *, legacy: bool) -> str:
    name, arguments = member(function, "name"), member(function, "arguments")
    if not isinstance(name, str):
        raise UnplacedError("a tool call without a function name")
    if not isinstance(arguments, (str, dict)):
        raise UnplacedError("the arguments of a tool call are neither JSON text nor an object")
    arguments_of(arguments)  # refuses text that is not JSON
    builder.calls.call(call_id, name if legacy else None)
    return tool_call(name, arguments)


def _text(content: Any) -> str:
    """Return a message's content, a text or a list of text parts, as text."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise UnplacedError("a message without text")
    return "".join(map(_part, content))


def _part(part: Any) -> str:
    kind = member(part, "type")
    if kind not in ("text", "refusal"):
        raise UnplacedError(f"a part that is not text: {kind!r}")
    text = part.get(kind)
    if not isinstance(text, str):
        raise UnplacedError(f"a part of type {kind} without its text")
    return text
