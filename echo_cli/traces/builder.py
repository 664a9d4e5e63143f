"""Parts shared by the importers: the text of tool calls and tools, refusals, and the builder of a trace.

An importer assigns a role where its format says who wrote a text, keeps the text byte for byte, and refuses a part that
it cannot place: it never guesses. Roles are OpenEnv RFC 010's.
"""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path
from typing import IO, Any, cast

from echo_cli.errors import EchoError
from echo_cli.text import escape_unprintable, foreign_encoding
from echo_cli.trace import Trace, TraceSegment, without_thinking
from echo_cli.trajectory import (
    CLOSE,
    OPEN,
    TOOLS,
    WRAPPER,
    Role,
    Turn,
    split_at_actions,
    text_of,
)

_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Refusal:
    """A record, or a part of a record, that an importer could not place."""

    where: str
    """`FILE:LINE` for a line of JSONL or of a cast, `FILE: messages[3]` inside a JSON document."""
    reason: str


STDIN = Path("-")
"""Name of standard input among the files to import."""

_OPENERS: dict[str, Callable[[Any], Any]] = {"gzip": gzip.open, "bzip2": bz2.open, "xz": lzma.open}


@contextmanager
def input_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a file to import, or standard input for STDIN; gzip, bzip2 and xz are decompressed, whatever the name.

    Raises:
        EchoError: the file is in an encoding that is not read, or its compressed data is damaged.
        OSError: the file cannot be read.
    """
    with ExitStack() as stack:
        raw = sys.stdin.buffer if path == STDIN else stack.enter_context(path.open("rb"))
        name = "standard input" if path == STDIN else escape_unprintable(path)
        encoding, tip = foreign_encoding(cast(BufferedReader, raw).peek(8)) or (None, "")
        if encoding is None:
            yield raw
            return
        if encoding not in _OPENERS:
            raise EchoError(f"{name} is {encoding}, not UTF-8 text", tip)
        try:
            yield stack.enter_context(_OPENERS[encoding](raw))
        except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
            raise EchoError(f"cannot read {name}: its {encoding} data is damaged", "copy the file again") from error


@dataclass(frozen=True)
class ImportOptions:
    """Command-line options that control how files are read."""

    prompt: str | None = None
    """Regular expression of a shell prompt, for casts without input events."""
    warning: str | None = None
    """Regular expression; matches in an observation get the role warning."""


class UnplacedError(ValueError):
    """A part of a record that cannot be placed in a trace; `place` is its path in the record (`messages[3]`)."""

    def __init__(self, reason: str, place: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.place = place


def observed(text: str, channel: str | None, options: ImportOptions) -> list[TraceSegment]:
    """Split an observation into env_output and, where `options.warning` matches, warning; joined, they equal `text`."""
    segments, end = [], 0
    for match in () if options.warning is None else re.finditer(options.warning, text):
        if match.group():
            segments += [TraceSegment(Role.ENV_OUTPUT, text[end : match.start()], channel)]
            segments += [TraceSegment(Role.WARNING, match.group(), channel)]
            end = match.end()
    segments.append(TraceSegment(Role.ENV_OUTPUT, text[end:], channel))
    return [segment for segment in segments if segment.text]


def tool_call(name: str, arguments: Any) -> str:
    """Return a tool call as text, in this project's canonical form.

    Args:
        arguments: JSON as text, which keeps its bytes; or any other value, written as a chat template writes it.

    Raises:
        ValueError: `arguments` contains a number that JSON cannot represent.
    """
    written = _escaped(arguments) if isinstance(arguments, str) else json_text(arguments)
    return f'<tool_call>\n{{"arguments": {written}, "name": {json_text(name)}}}\n</tool_call>\n'


def json_text(value: Any) -> str:
    """Return a value as JSON with its keys in order; outside ASCII only lone surrogates are escaped.

    Raises:
        ValueError: the value contains a number that JSON cannot represent.
    """
    return _escaped(json.dumps(value, ensure_ascii=False, allow_nan=False))


def _escaped(text: str) -> str:
    """Escape the lone surrogates of a JSON text."""
    return _SURROGATE.sub(lambda match: f"\\u{ord(match.group()):04x}", text)


def said(text: str, calls: Iterable[str] = ()) -> str:
    """Return the text of an action: the agent's words, a newline, and its tool calls."""
    blocks = "".join(calls)
    return f"{text}\n{blocks}" if text or not blocks else blocks


def tool_list(tools: Iterable[str]) -> str:
    """Return the list of the tools offered to an agent, one per line."""
    return "\n".join(["<tools>", *tools, "</tools>\n"])


def wrapped(segments: Iterable[TraceSegment]) -> list[TraceSegment]:
    """Put a tool's answer between the wrappers that mark it for a model; the wrappers are context."""
    return [TraceSegment(Role.CONTEXT, OPEN, WRAPPER), *segments, TraceSegment(Role.CONTEXT, CLOSE, WRAPPER)]


@dataclass
class ToolCalls:
    """Tool calls of a conversation: open calls have distinct ids, and each call is answered at most once."""

    open: dict[str, Any] = field(default_factory=dict)
    """Importer's note on each unanswered call, by id."""
    calls: list[str] = field(default_factory=list)
    """Ids of all calls, in order."""
    answers: list[str] = field(default_factory=list)
    """Ids of all answers, in order."""

    def call(self, call_id: str, note: Any = None) -> None:
        """Add a call.

        Raises:
            UnplacedError: an open call has the same id.
        """
        if call_id in self.open:
            raise UnplacedError(f"two open tool calls have the id {call_id!r}")
        self.open[call_id] = note
        self.calls.append(call_id)

    def answer(self, call_id: Any) -> Any:
        """Close the call that this answer belongs to, and return its note.

        Raises:
            UnplacedError: no open call has this id.
        """
        if not isinstance(call_id, str) or call_id not in self.open:
            raise UnplacedError("a tool answer without an open tool call")
        self.answers.append(call_id)
        return self.open.pop(call_id)

    @property
    def meta(self) -> dict[str, list[str]]:
        """Ids of calls and answers, kept in a trace's meta for `traces export`."""
        ids = {"tool_calls": self.calls, "tool_responses": self.answers}
        return {name: values for name, values in ids.items() if values}


@dataclass
class TraceBuilder:
    """A trace under construction: segments in order, one turn per action, and the tool calls of the actions."""

    options: ImportOptions
    segments: list[TraceSegment] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    """Command of each action's turn."""
    exit_codes: list[int | None] = field(default_factory=list)
    """Exit code of each action; None if it was not recorded."""
    calls: ToolCalls = field(default_factory=ToolCalls)
    _turn: tuple[list[str], list[str]] = field(default_factory=lambda: ([], []))
    """Words and tool calls of the assistant's turn that `say` continues."""

    def context(self, text: str, channel: str | None = None) -> None:
        """Add text that neither the agent nor the environment wrote."""
        self.segments.append(TraceSegment(Role.CONTEXT, text, channel))

    def tools(self, tools: Sequence[str]) -> None:
        """Add the list of tools offered to the agent, if there are any."""
        if tools:
            self.context(tool_list(tools), TOOLS)

    def act(self, text: str, channel: str | None = None, *, command: str | None = None) -> None:
        """Add an action and its turn, whose command is by default `text` without its final newline."""
        self.segments.append(TraceSegment(Role.ACTION, text, channel))
        self.commands.append(text.removesuffix("\n") if command is None else command)
        self.exit_codes.append(None)

    def say(self, words: str, calls: Iterable[str] = ()) -> None:
        """Add an assistant's message; neighbouring messages are one action: their words, then their tool calls.

        A message without calls and words, or whose words are thinking alone, is no action.
        """
        blocks = list(calls)
        if not blocks and not without_thinking(words).strip():
            return
        continued = bool(self.segments) and self.segments[-1].role is Role.ACTION
        if continued:
            self.segments.pop()
            self.commands.pop()
            self.exit_codes.pop()
        else:
            self._turn = ([], [])
        self._turn[0].extend([words] if words else [])
        self._turn[1].extend(blocks)
        text = "\n".join(self._turn[0])
        command = said(without_thinking(text), self._turn[1]).removesuffix("\n")
        self.act(said(text, self._turn[1]), command=command)

    def observed(self, text: str, channel: str | None) -> list[TraceSegment]:
        """Split an observation as the function `observed` does, with the builder's options."""
        return observed(text, channel, self.options)

    def observe(self, segments: Iterable[TraceSegment], exit_code: int | None = None) -> None:
        """Add the segments returned for the last action, and its exit code if it was recorded."""
        self.segments.extend(segments)
        if exit_code is not None and self.exit_codes:
            self.exit_codes[-1] = exit_code

    def answer(self, segments: Iterable[TraceSegment], exit_code: int | None = None) -> None:
        """Add a tool's answer in its wrappers."""
        self.observe(wrapped(segments), exit_code)

    def trace(self, task_id: str, *, reward: float | None = None, meta: Mapping[str, Any] | None = None) -> Trace:
        """Return the trace; its meta includes the ids of the tool calls.

        Raises:
            UnplacedError: all segments are context.
            ValueError: a text is not Unicode.
        """
        if all(segment.role is Role.CONTEXT for segment in self.segments):
            raise UnplacedError("neither an action nor an observation")
        outputs = (text_of(part, Role.ENV_OUTPUT) for part in split_at_actions(self.segments)[1:])
        turns = tuple(
            Turn(command, output, exit_code, valid_action=True, clean_parse=True)
            for command, output, exit_code in zip(self.commands, outputs, self.exit_codes, strict=True)
        )
        return Trace(task_id, tuple(self.segments), turns, reward=reward, meta={**(meta or {}), **self.calls.meta})
