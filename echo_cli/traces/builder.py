"""Parts that the importers share: the text of tool calls and tools, refusals, and a trace in the making.

An importer decides roles where its format says who wrote a text, keeps that text byte for byte, and refuses what it
cannot place: it never guesses. Roles are OpenEnv RFC 010's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from echo_cli.trace import Trace, TraceSegment
from echo_cli.trajectory import CLOSE, OPEN, TOOLS, WRAPPER, Role, Turn, split_at_actions, text_of


@dataclass(frozen=True)
class Refusal:
    """A record, or a part of one, that an importer could not place."""

    where: str
    """`FILE:LINE` of JSONL or cast lines, `FILE: messages[3]` inside one JSON document."""
    reason: str


@dataclass(frozen=True)
class ImportOptions:
    """Options of the command line on how to read."""

    prompt: str | None = None
    """Regular expression of a shell prompt, for casts without input events."""
    warning: str | None = None
    """Regular expression; text of an observation that it matches is warning."""


class UnplacedError(ValueError):
    """Raised while one trace is read: what cannot be placed, and where in its record (`messages[3]`)."""

    def __init__(self, reason: str, place: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.place = place


def observed(text: str, channel: str | None, options: ImportOptions) -> list[TraceSegment]:
    """Split an observation into env_output, and warning where `options.warning` matches; together they are `text`."""
    segments, end = [], 0
    for match in () if options.warning is None else re.finditer(options.warning, text):
        if match.group():
            segments += [TraceSegment(Role.ENV_OUTPUT, text[end : match.start()], channel)]
            segments += [TraceSegment(Role.WARNING, match.group(), channel)]
            end = match.end()
    segments.append(TraceSegment(Role.ENV_OUTPUT, text[end:], channel))
    return [segment for segment in segments if segment.text]


def tool_call(name: str, arguments: Any) -> str:
    """Return a tool call as text, in the one form that this project writes it in.

    Raises:
        ValueError: `arguments` has a number that JSON has not.
    """
    call = json.dumps({"arguments": arguments, "name": name}, sort_keys=True, allow_nan=False)
    return f"<tool_call>\n{call}\n</tool_call>\n"


def said(text: str, calls: Iterable[str] = ()) -> str:
    """Return the text of an action: the words that an agent wrote, a newline, and its calls."""
    blocks = "".join(calls)
    return f"{text}\n{blocks}" if text or not blocks else blocks


def tool_list(tools: Iterable[str]) -> str:
    """Return the list of the tools that an agent was offered, one a line."""
    return "\n".join(["<tools>", *tools, "</tools>\n"])


def wrapped(segments: Iterable[TraceSegment]) -> list[TraceSegment]:
    """Put a tool's answer between the wrappers that tell a model so; the wrappers are context."""
    return [TraceSegment(Role.CONTEXT, OPEN, WRAPPER), *segments, TraceSegment(Role.CONTEXT, CLOSE, WRAPPER)]


@dataclass
class ToolCalls:
    """The tool calls of a conversation: no two open ones have one id, and each is answered at most once."""

    open: dict[str, Any] = field(default_factory=dict)
    """A note on each call without an answer yet, by its id."""
    calls: list[str] = field(default_factory=list)
    """Ids of all calls, in order."""
    answers: list[str] = field(default_factory=list)
    """Ids of all answers, in order."""

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
        """Close the call that is answered now, and return the note on it.

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
    """A trace in the making: segments in order, a turn for each action, and the tool calls among the actions."""

    options: ImportOptions
    segments: list[TraceSegment] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    """Command of each action's turn."""
    exit_codes: list[int | None] = field(default_factory=list)
    """Exit code of each action; None where nobody said."""
    calls: ToolCalls = field(default_factory=ToolCalls)

    def context(self, text: str, channel: str | None = None) -> None:
        """Add text that is neither the agent's nor the world's."""
        self.segments.append(TraceSegment(Role.CONTEXT, text, channel))

    def tools(self, tools: Sequence[str]) -> None:
        """Add the list of tools that the agent was offered, if there are any."""
        if tools:
            self.context(tool_list(tools), TOOLS)

    def act(self, text: str, channel: str | None = None, *, command: str | None = None) -> None:
        """Add an action, whose turn's command is by default `text` without the newline at its end."""
        self.segments.append(TraceSegment(Role.ACTION, text, channel))
        self.commands.append(text.removesuffix("\n") if command is None else command)
        self.exit_codes.append(None)

    def observed(self, text: str, channel: str | None) -> list[TraceSegment]:
        """Split an observation by the options, as `observed`."""
        return observed(text, channel, self.options)

    def observe(self, segments: Iterable[TraceSegment], exit_code: int | None = None) -> None:
        """Add what came back, and how the last action ended, where the record says it."""
        self.segments.extend(segments)
        if exit_code is not None and self.exit_codes:
            self.exit_codes[-1] = exit_code

    def answer(self, segments: Iterable[TraceSegment], exit_code: int | None = None) -> None:
        """Add the answer of a tool, in its wrappers."""
        self.observe(wrapped(segments), exit_code)

    def trace(self, task_id: str, *, reward: float | None = None, meta: Mapping[str, Any] | None = None) -> Trace:
        """Return the trace. Its meta names the tool calls too.

        Raises:
            UnplacedError: there is nothing but context.
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
