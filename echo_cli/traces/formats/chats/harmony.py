"""Conversations in OpenAI's Harmony format: the text that gpt-oss models read and write, or the library's messages.

Source: openai/harmony, the page on the format in its documentation, and the JSON of `Conversation` in its library.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from echo_cli.trace import Trace, TraceSegment
from echo_cli.traces.builder import ImportOptions, Record, Refusal, TraceBuilder, UnplacedError, json_text, tool_call
from echo_cli.traces.conversation import CONTEXT_ROLES
from echo_cli.traces.input_file import STDIN, first_bytes, input_file
from echo_cli.traces.json_records import (
    arguments_of,
    listed,
    member,
    messages_of,
    parts_of,
    read_json,
    read_records,
    reward_of,
    task_of,
    text_or_json,
)
from echo_cli.traces.recognition import Sample
from echo_cli.trajectory import TOOL_RESULT

ROLES = """\
input       Harmony text: a text file, or text, or prompt with completion or response, in a JSON document, an array or
            JSONL; or the messages of the library openai-harmony; optionally reward or score
context     system, developer and user messages, each followed by a newline; of the library's messages: system content
            as JSON, instructions, tools; <tool_response> wrappers
action      assistant messages of the channels final and commentary, or of none: their texts, a newline, then each
            message to a tool as <tool_call> JSON </tool_call>, without the namespace functions. Arguments keep their
            bytes; the code of a built-in tool is a JSON string. Neighbouring assistant messages are one action
env_output  messages of tools, byte for byte: the answer to the first open call of the tool, or to the only open call
warning     matches of --warning in a tool's answer
omitted     the channel analysis, special tokens, an assistant's message that was only begun
left out    text outside of messages, images, messages of other roles
refused     an answer without such a call; a message without its content

A text that itself contains a special token, such as <|end|>, is read as the format reads it."""

_MESSAGE = re.compile(
    r"<\|start\|>(?P<header>(?:(?!<\|start\|>|<\|message\|>).)*)<\|message\|>"
    r"(?P<content>(?:(?!<\|start\|>|<\|end\|>|<\|return\|>|<\|call\|>).)*)(?:<\|(?:end|return|call)\|>)?",
    re.DOTALL,
)
_HEADER = re.compile(r"(?P<author>[^\s<:]+)(?::(?P<name>[^\s<]+))?(?P<rest>.*)", re.DOTALL)
_CHANNEL, _RECIPIENT = re.compile(r"<\|channel\|>\s*(\w+)"), re.compile(r"(?:\A|\s)to=([^\s<]+)")
_BEGUN = re.compile(r"<\|start\|>assistant(?:<\|channel\|>[^<]*)?\Z")
"""Header of the message that the model was to write."""
_CHANNELS = ("analysis", "commentary", "final")
_STRUCTURED = ("system_content", "developer_content")
_TO_PEOPLE = (None, "", "all", "user", "assistant")


_FIELDS = ("role", "name", "channel", "recipient", "content")
"""Fields of the library's messages, in the order of `_Message`."""


@dataclass(frozen=True)
class _Message:
    role: str
    """system, developer, user, assistant, or tool."""
    name: str | None
    """Name of a tool."""
    channel: str | None
    recipient: str | None
    content: Any


def recognise(sample: Sample) -> str | None:
    """Return the evidence of Harmony's special tokens, or of its messages, or None."""
    if sample.start.startswith(b"<|start|>"):
        return "it begins with <|start|>"
    text = _text_of(sample.first) if isinstance(sample.first, dict) else None
    if text is not None and "<|message|>" in text:
        return "its text has <|message|>"
    messages = listed(member(sample.first, "messages"))
    channels = sorted({channel for each in messages if (channel := member(each, "channel")) in _CHANNELS})
    if channels:
        return f"its messages have the channels {', '.join(channels)}"
    kinds = {member(part, "type") for each in messages for part in listed(member(each, "content"))}
    found = next((kind for kind in _STRUCTURED if kind in kinds), None)
    return f"its messages have content of the type {found}" if found else None


def read(path: Path, options: ImportOptions) -> Iterator[Trace | Refusal]:
    """Yield the conversations of a file."""
    place = partial(_trace, options=options)
    if path != STDIN and first_bytes(path).startswith(b"<|start|>"):
        return read_records(_plain(path), place)
    return read_json(path, place, cursor=options.cursor)


def _plain(path: Path) -> Iterator[Record | Refusal]:
    """Yield the conversation in a file of plain text."""
    with input_file(path) as file:
        try:
            yield str(path), {"text": file.read().decode()}
        except UnicodeDecodeError:
            yield Refusal(str(path), "not UTF-8")


def _text_of(record: Mapping[str, Any]) -> str | None:
    """Return the Harmony text of a record, or None; a completion alone is the assistant's."""
    prompt, text = record.get("prompt"), record.get("text")
    completion = next((record[name] for name in ("completion", "response") if isinstance(record.get(name), str)), None)
    if isinstance(text, str):
        found = text
    elif completion is not None:
        found = f"{prompt if isinstance(prompt, str) else ''}{completion}"
    else:
        return None
    return f"<|start|>assistant{found}" if found.startswith(("<|channel|>", "<|message|>")) else found


def _trace(record: Any, where: str, options: ImportOptions) -> Trace:
    builder = TraceBuilder(options)
    reader = _Reader(builder)
    text = _text_of(record) if isinstance(record, dict) else None
    whole = record if text is not None else messages_of(record)[0]
    if text is not None:
        reader.add_text(text)
    else:
        for number, message in enumerate(whole["messages"]):
            with builder.at(f"messages[{number}]"):
                reader.add(_Message(*(member(message, name) for name in _FIELDS)))
    return builder.trace(task_of(whole, where), reward=reward_of(whole, "reward", "score", builder=builder))


@dataclass
class _Reader:
    """Importer of messages, one by one."""

    builder: TraceBuilder
    _made: int = field(default=0)
    """Number of tool calls."""

    def add_text(self, text: str) -> None:
        """Place the messages of a text."""
        end = 0
        for number, found in enumerate(_MESSAGE.finditer(text)):
            self._stray(text[end : found.start()])
            with self.builder.at(f"messages[{number}]"):
                self.add(_parsed(found["header"], found["content"]))
            end = found.end()
        rest = text[end:]
        begun = _BEGUN.search(rest)
        self._stray(rest if begun is None else rest[: begun.start()])

    def _stray(self, text: str) -> None:
        if text.strip():
            self.builder.add(self.builder.leave_out("text outside of messages", text))

    def add(self, message: _Message) -> None:
        """Place one message."""
        if message.role in CONTEXT_ROLES:
            self._add_context(message)
        elif message.role == "assistant":
            text, left_out = parts_of(message.content, self.builder)
            if message.recipient not in _TO_PEOPLE:
                self.builder.say("", [self._call(str(message.recipient), text)])
            elif message.channel == "analysis":
                self.builder.omit("reasoning", text)
            else:
                self.builder.say(text)
            self.builder.add_later(*left_out)
        elif message.role == "tool":
            text, left_out = parts_of(message.content, self.builder)
            self._close(message.name)
            self.builder.answer([*self.builder.observed(text, TOOL_RESULT), *left_out])
        else:
            told = text_or_json(message.content)
            self.builder.add(self.builder.leave_out(f"a message of unknown role: {message.role!r}", told))

    def _add_context(self, message: _Message) -> None:
        plain, left_out, tools = list[str](), list[TraceSegment](), list[str]()
        for part in message.content if isinstance(message.content, list) else [message.content]:
            kind = member(part, "type")
            if kind == "system_content":
                plain.append(json_text({name: value for name, value in part.items() if name != "type"}))
            elif kind == "developer_content":
                plain += [part["instructions"]] if isinstance(part.get("instructions"), str) else []
                spaces = part.get("tools") if isinstance(part.get("tools"), dict) else {}
                tools += [json_text(tool) for space in spaces.values() for tool in listed(member(space, "tools"))]
            else:
                text, more = parts_of([part] if isinstance(part, dict) else part, self.builder)
                plain.append(text)
                left_out += more
        self.builder.context("".join(plain) + "\n", message.role)
        self.builder.add(*left_out)
        self.builder.tools(tools)

    def _call(self, recipient: str, text: str) -> str:
        is_code = not recipient.startswith(("functions.", "browser.")) and not text.lstrip().startswith("{")
        arguments = json_text(text) if is_code else arguments_of(text, self.builder)
        self.builder.calls.call(f"call_{self._made}", recipient)
        self._made += 1
        return tool_call(recipient.removeprefix("functions."), arguments)

    def _close(self, name: str | None) -> None:
        """Close the call that a tool's message answers: the first open one of this name, or the only open one."""
        open_calls = self.builder.calls.open
        named = [call for call, recipient in open_calls.items() if recipient == name]
        if not named and len(open_calls) != 1:
            raise UnplacedError("a tool's answer that belongs to no open call, or to several")
        self.builder.calls.answer((named or list(open_calls))[0])


def _parsed(header: str, content: str) -> _Message:
    """Return the message of a header and its content; an author that is no role is a tool."""
    author = _HEADER.fullmatch(header)
    if author is None:
        raise UnplacedError("a message without an author")
    role, rest = author["author"], author["rest"]
    channel, recipient = _CHANNEL.search(rest), _RECIPIENT.search(rest)
    is_tool = role not in (*CONTEXT_ROLES, "assistant")
    name = (author["name"] if role == "tool" else role) if is_tool else None
    return _Message(
        "tool" if is_tool else role,
        name,
        channel[1] if channel else None,
        recipient[1] if recipient else None,
        content,
    )
