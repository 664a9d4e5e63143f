"""Conversations in the form of Anthropic's messages: content blocks, of text, of tools used and of their results."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
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
from echo_cli.traces.json_records import at, conversations, json_records, messages_of, read_each, reward_of, task_of
from echo_cli.trajectory import TOOL_RESULT, TOOLS

TOOL_ERROR = "tool_error"
"""Channel of a result whose tool says that it failed."""
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
    """The conversations of a file."""
    return read_each(conversations(json_records(path)), partial(_trace, options=options))


@dataclass
class _Conversation:
    options: ImportOptions
    builder: TraceBuilder = field(default_factory=TraceBuilder)
    calls: ToolCalls = field(default_factory=ToolCalls)

    def add(self, message: Any) -> None:
        """Place one message.

        Raises:
            UnplacedError: it has no place.
        """
        role = message.get("role") if isinstance(message, dict) else None
        if role == "user":
            self._user(_blocks(message.get("content")))
        elif role == "assistant":
            self._assistant(_blocks(message.get("content")))
        else:
            raise UnplacedError(f"no message of a known role: {role!r}")

    def _user(self, blocks: Iterable[Mapping[str, Any]]) -> None:
        for kind, run in groupby(blocks, _kind):
            if kind == "text":
                self.builder.context(f"{_joined(run)}\n", "user")
            elif kind == "tool_result":
                for block in run:
                    self._result(block)
            else:
                raise UnplacedError(f"a user's block that is neither text nor a tool_result: {kind!r}")

    def _assistant(self, blocks: Iterable[Mapping[str, Any]]) -> None:
        parts = []
        for kind, run in groupby((block for block in blocks if _kind(block) not in _THINKING), _kind):
            if kind == "text":
                parts.append(said(_joined(run)))
            elif kind == "tool_use":
                parts += [self._call(block) for block in run]
            else:
                raise UnplacedError(f"an assistant's block that is neither text nor a tool_use: {kind!r}")
        self.builder.act("".join(parts) or said(""))

    def _call(self, block: Mapping[str, Any]) -> str:
        name, call_id, arguments = block.get("name"), block.get("id"), block.get("input")
        if not isinstance(name, str) or not isinstance(call_id, str):
            raise UnplacedError("a tool_use without a name or an id")
        if not isinstance(arguments, dict):
            raise UnplacedError("a tool_use whose input is not an object")
        self.calls.call(call_id)
        return tool_call(name, arguments)

    def _result(self, block: Mapping[str, Any]) -> None:
        self.calls.answer(block.get("tool_use_id"))
        content = block.get("content")
        text = "" if content is None else _joined(_blocks(content))
        channel = TOOL_ERROR if block.get("is_error") is True else TOOL_RESULT
        self.builder.observe(wrapped(observed(text, channel, self.options)))


def _trace(record: Any, where: str, options: ImportOptions) -> Trace:
    whole, messages = messages_of(record)
    conversation = _Conversation(options)
    if (system := whole.get("system")) is not None:
        with at("system"):
            conversation.builder.context(f"{_joined(_blocks(system))}\n", "system")
    if tools := whole.get("tools"):
        if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
            raise UnplacedError("not a list of tools", "tools")
        conversation.builder.context(tool_list(json.dumps(tool, sort_keys=True) for tool in tools), TOOLS)
    for number, message in enumerate(messages):
        with at(f"messages[{number}]"):
            conversation.add(message)
    reward = reward_of(whole, "reward", "score")
    return conversation.builder.trace(task_of(whole, where), reward=reward, meta=conversation.calls.meta)


def _blocks(content: Any) -> list[Mapping[str, Any]]:
    """A message's content as blocks.

    Raises:
        UnplacedError: it is neither text nor blocks.
    """
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if not isinstance(content, list) or not all(isinstance(block, dict) for block in content):
        raise UnplacedError("content that is neither text nor blocks")
    return content


def _kind(block: Mapping[str, Any]) -> Any:
    return block.get("type")


def _joined(blocks: Iterable[Mapping[str, Any]]) -> str:
    """The text of text blocks.

    Raises:
        UnplacedError: one is something else.
    """
    texts = []
    for block in blocks:
        if _kind(block) != "text" or not isinstance(block.get("text"), str):
            raise UnplacedError(f"a block that is not text: {_kind(block)!r}")
        texts.append(block["text"])
    return "".join(texts)
