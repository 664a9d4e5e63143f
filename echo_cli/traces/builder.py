"""What reading the traces of others has in common: the formats by name, what is refused, and a trace in the making.

An importer decides roles where its format says who wrote a text, keeps that text byte for byte, and refuses what it
cannot place: it never guesses. Roles are OpenEnv RFC 010's.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, cast

from echo_cli.trace import Trace, TraceSegment
from echo_cli.trajectory import CLOSE, OPEN, WRAPPER, Role, Turn, split_at_actions, text_of

FORMATS: Mapping[str, str] = MappingProxyType(
    {
        "openai": "echo_cli.traces.formats.openai",
        "anthropic": "echo_cli.traces.formats.anthropic",
        "openenv": "echo_cli.traces.formats.openenv",
        "awm": "echo_cli.traces.formats.awm",
        "atif": "echo_cli.traces.formats.atif",
        "asciinema": "echo_cli.traces.formats.asciinema",
        "echo": "echo_cli.traces.formats.echo",
    }
)
"""The module of each format. It has `read: Importer` and `ROLES: str`, its role rules in a few lines."""


@dataclass(frozen=True)
class Refusal:
    """What an importer could not place."""

    where: str
    """`FILE:LINE` of JSONL or cast lines, `FILE: messages[3]` inside one JSON document."""
    reason: str


@dataclass(frozen=True)
class ImportOptions:
    """What the command line says on how to read."""

    prompt: str | None = None
    """Regular expression of a shell prompt, for casts without input events."""
    warning: str | None = None
    """Regular expression; what it matches in an observation is warning."""


Importer = Callable[[Path, ImportOptions], Iterator[Trace | Refusal]]
"""Streams the traces of one file, in order, each refused one in its place."""


class Format(Protocol):
    """A module of FORMATS."""

    ROLES: str

    def read(self, path: Path, options: ImportOptions) -> Iterator[Trace | Refusal]:
        """An `Importer`."""
        ...


def format_named(name: str) -> Format:
    """The module of a key of FORMATS, imported now."""
    return cast(Format, importlib.import_module(FORMATS[name]))


class UnplacedError(ValueError):
    """Raised while one trace is read: what cannot be placed, and where in its record (`messages[3]`)."""

    def __init__(self, reason: str, place: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.place = place


def observed(text: str, channel: str | None, options: ImportOptions) -> list[TraceSegment]:
    """An observation as segments: env_output, and warning where `options.warning` matches; together they are `text`."""
    segments, end = [], 0
    for match in () if options.warning is None else re.finditer(options.warning, text):
        if match.group():
            segments += [TraceSegment(Role.ENV_OUTPUT, text[end : match.start()], channel)]
            segments += [TraceSegment(Role.WARNING, match.group(), channel)]
            end = match.end()
    segments.append(TraceSegment(Role.ENV_OUTPUT, text[end:], channel))
    return [segment for segment in segments if segment.text]


def tool_call(name: str, arguments: Any) -> str:
    """A tool call as text, in the one form that this project writes it in.

    Raises:
        ValueError: `arguments` has a number that JSON has not.
    """
    call = json.dumps({"arguments": arguments, "name": name}, sort_keys=True, allow_nan=False)
    return f"<tool_call>\n{call}\n</tool_call>\n"


def said(text: str, calls: Iterable[str] = ()) -> str:
    """What an agent wrote in one turn, as the text of an action: its words, a newline, and its calls."""
    blocks = "".join(calls)
    return f"{text}\n{blocks}" if text or not blocks else blocks


def tool_list(tools: Iterable[str]) -> str:
    """The tools that an agent was offered, one a line, as context (channel `tools`)."""
    return "\n".join(["<tools>", *tools, "</tools>\n"])


def wrapped(segments: Iterable[TraceSegment]) -> list[TraceSegment]:
    """What a tool answered, between the wrappers that tell a model so; the wrappers are context."""
    return [TraceSegment(Role.CONTEXT, OPEN, WRAPPER), *segments, TraceSegment(Role.CONTEXT, CLOSE, WRAPPER)]


@dataclass
class ToolCalls:
    """The tool calls of a conversation: no two open ones have one id, and each is answered at most once."""

    open: dict[str, Any] = field(default_factory=dict)
    """What was noted of each call without an answer yet, by its id."""
    calls: list[str] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    """The ids of all calls, and of all answers, in order."""

    def call(self, call_id: str, note: Any = None) -> None:
        """Add a call.

        Raises:
            UnplacedError: an open one has its id.
        """
        if call_id in self.open:
            raise UnplacedError(f"two open tool calls have the id {call_id!r}")
        self.open[call_id] = note
        self.calls.append(call_id)

    def answer(self, call_id: Any) -> Any:
        """What was noted of the call that is answered now.

        Raises:
            UnplacedError: no open call has that id.
        """
        if not isinstance(call_id, str) or call_id not in self.open:
            raise UnplacedError("a tool's answer to no open tool call")
        self.answers.append(call_id)
        return self.open.pop(call_id)

    @property
    def meta(self) -> dict[str, list[str]]:
        """The ids, as a trace keeps them for `traces export`."""
        ids = {"tool_calls": self.calls, "tool_responses": self.answers}
        return {name: values for name, values in ids.items() if values}


@dataclass
class TraceBuilder:
    """A trace in the making: segments in order, and a turn for each action."""

    segments: list[TraceSegment] = field(default_factory=list)
    exit_codes: list[int | None] = field(default_factory=list)
    """Of each action; None where nobody said."""

    def context(self, text: str, channel: str | None = None) -> None:
        """Add text that is neither the agent's nor the world's."""
        self.segments.append(TraceSegment(Role.CONTEXT, text, channel))

    def act(self, text: str, channel: str | None = None) -> None:
        """Add an action. A newline at its end ends the action and is not part of its turn's command."""
        self.segments.append(TraceSegment(Role.ACTION, text, channel))
        self.exit_codes.append(None)

    def observe(self, segments: Iterable[TraceSegment], exit_code: int | None = None) -> None:
        """Add what came back, and how the last action ended, where the record says it."""
        self.segments.extend(segments)
        if exit_code is not None and self.exit_codes:
            self.exit_codes[-1] = exit_code

    def trace(self, task_id: str, *, reward: float | None = None, meta: Mapping[str, Any] | None = None) -> Trace:
        """The trace.

        Raises:
            UnplacedError: there is nothing but context.
            ValueError: a text is not Unicode.
        """
        if all(segment.role is Role.CONTEXT for segment in self.segments):
            raise UnplacedError("neither an action nor an observation")
        turns = tuple(map(_turn, split_at_actions(self.segments)[1:], self.exit_codes))
        return Trace(task_id, tuple(self.segments), turns, reward=reward, meta=dict(meta or {}))


def _turn(part: Sequence[TraceSegment], exit_code: int | None) -> Turn:
    """Return the turn of an action and what came back."""
    command, output = part[0].text.removesuffix("\n"), text_of(part, Role.ENV_OUTPUT)
    return Turn(command, output, exit_code, valid_action=True, clean_parse=True)
