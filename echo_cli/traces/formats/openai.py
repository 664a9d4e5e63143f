"""Conversations in the form of OpenAI's chat completions: messages, with tool calls and what the tools answered."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from echo_cli.trace import Trace
from echo_cli.traces.builder import (
    ImportOptions,
    Refusal,
    ToolCalls,
    TraceBuilder,
    UnplacedError,
    observed,
    said,
    tool_call,
    tool_list,
    wrapped,
)
from echo_cli.traces.json_records import (
    at,
    conversations,
    json_records,
    messages_of,
    parse_json,
    read_each,
    reward_of,
    task_of,
)
from echo_cli.trajectory import TOOL_RESULT, TOOLS

CONTEXT_ROLES = ("system", "developer", "user")
"""Whose messages are context; the channel of their segments says whose."""

ROLES = """\
input       {"messages": […]} or a list of messages: one, an array of them, or JSONL; where known tools, reward or score
context     system, developer and user messages, a newline behind each; tools; <tool_response> wrappers
action      each assistant message: its text, a newline, then each tool call as <tool_call> JSON </tool_call>; arguments
            are parsed and written with sorted keys
env_output  tool and function messages, byte for byte; text parts are joined with nothing between them
warning     what --warning matches in a tool's answer
left out    reasoning (reasoning_content), names and ids
refused     images, audio and files; arguments that are not JSON; an answer to no open call; other roles"""


def read(path: Path, options: ImportOptions) -> Iterator[Trace | Refusal]:
    """The conversations of a file."""
    return read_each(conversations(json_records(path)), partial(_trace, options=options))


@dataclass
class _Conversation:
    options: ImportOptions
    builder: TraceBuilder = field(default_factory=TraceBuilder)
    calls: ToolCalls = field(default_factory=ToolCalls)
    """Of one in the legacy form, the function's name is noted."""

    def add(self, message: Any) -> None:
        """Place one message.

        Raises:
            UnplacedError: it has no place.
        """
        role = message.get("role") if isinstance(message, dict) else None
        if role in CONTEXT_ROLES:
            self.builder.context(f"{_text(message.get('content'))}\n", role)
        elif role == "assistant":
            self._assistant(message)
        elif role == "tool":
            self._answer(message.get("tool_call_id"), message)
        elif role == "function":
            named = [call for call, name in self.calls.open.items() if name is not None and name == message.get("name")]
            self._answer(named[0] if named else None, message)
        else:
            raise UnplacedError(f"no message of a known role: {role!r}")

    def _assistant(self, message: Mapping[str, Any]) -> None:
        if message.get("audio") is not None:
            raise UnplacedError("audio is not text")
        content, refusal = message.get("content"), message.get("refusal")
        text = "" if content is None else _text(content)
        text += "" if refusal is None else _text(refusal)
        blocks = []
        calls = message.get("tool_calls") or []
        if not isinstance(calls, list):
            raise UnplacedError("tool_calls is not a list")
        for call in calls:
            if not isinstance(call, dict) or call.get("type", "function") != "function":
                raise UnplacedError("a tool call that is not of a function")
            if not isinstance(call.get("id"), str):
                raise UnplacedError("a tool call without an id")
            blocks.append(self._call(call["id"], call.get("function"), legacy=False))
        if message.get("function_call") is not None:
            blocks.append(self._call(f"call_{len(self.calls.calls)}", message["function_call"], legacy=True))
        self.builder.act(said(text, blocks))

    def _call(self, call_id: str, function: Any, *, legacy: bool) -> str:
        name = function.get("name") if isinstance(function, dict) else None
        if not isinstance(name, str):
            raise UnplacedError("a tool call without a function's name")
        arguments = function.get("arguments")
        if isinstance(arguments, str):
            try:
                arguments = parse_json(arguments)
            except ValueError as error:
                raise UnplacedError(f"the arguments of a tool call are not JSON: {error}") from error
        elif not isinstance(arguments, dict):
            raise UnplacedError("the arguments of a tool call are neither JSON text nor an object")
        self.calls.call(call_id, name if legacy else None)
        return tool_call(name, arguments)

    def _answer(self, call_id: Any, message: Mapping[str, Any]) -> None:
        self.calls.answer(call_id)
        text = _text(message.get("content"))
        self.builder.observe(wrapped(observed(text, TOOL_RESULT, self.options)))


def _trace(record: Any, where: str, options: ImportOptions) -> Trace:
    whole, messages = messages_of(record)
    tools = whole.get("tools") or []
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise UnplacedError("not a list of tools", "tools")
    conversation = _Conversation(options)
    for number, message in enumerate(messages):
        if tools and not (isinstance(message, dict) and message.get("role") in ("system", "developer")):
            lines = [json.dumps(tool, sort_keys=True) for tool in tools]
            conversation.builder.context(tool_list(lines), TOOLS)
            tools = []
        with at(f"messages[{number}]"):
            conversation.add(message)
    reward = reward_of(whole, "reward", "score")
    return conversation.builder.trace(task_of(whole, where), reward=reward, meta=conversation.calls.meta)


def _text(content: Any) -> str:
    """The text of a message's content.

    Raises:
        UnplacedError: there is none, or something else beside it.
    """
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise UnplacedError("a message without text")
    return "".join(map(_part, content))


def _part(part: Any) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind not in ("text", "refusal"):
        raise UnplacedError(f"a part that is not text: {kind!r}")
    text = part.get(kind)
    if not isinstance(text, str):
        raise UnplacedError(f"a part of type {kind} without its text")
    return text
