"""Parts shared by the importers: the text of tool calls and tools, refusals, and the builder of a trace.

An importer assigns a role where its format says who wrote a text, and keeps the text byte for byte. It never guesses:
in place of a part that is not text, or whose author is unknown, a warning names what was left out; a record whose roles
are uncertain is refused. Roles are OpenEnv RFC 010's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from echo_cli.trace import Trace, TraceSegment, without_thinking
from echo_cli.traces.cursor import Cursor
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

LEFT_OUT = "left_out"
"""Channel of the warnings that stand for parts which an import left out."""

Record = tuple[str, Any]
"""Place of a JSON value, and the value."""

COPIED = "copied"
"""Channel of what was shown to an agent as an action or an observation: steps of another episode, demonstrations."""

_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False)
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Refusal:
    """A record, or a part of a record, that an importer could not place."""

    where: str
    """`FILE:LINE` for a line of JSONL or of a cast, `FILE: messages[3]` inside a JSON document."""
    reason: str


@dataclass(frozen=True)
class ImportOptions:
    """Command-line options that control what an import makes of a file."""

    prompt: str | None = None
    """Regular expression of a shell prompt, for casts without input events."""
    warning: str | None = None
    """Regular expression; matches in an observation get the role warning."""
    observation: str | None = None
    """Role whose messages are the environment's, or regular expression that is searched in the user's messages."""
    redact: bool | None = None
    """Whether secrets and what identifies a person are replaced; None: in logs of a person's sessions."""
    strict: bool = False
    """Whether a part that cannot be placed refuses the record, instead of being left out."""
    places: bool = False
    """Whether a trace's meta has the place in its record of every segment, as `places`."""
    cursor: Cursor | None = None
    """Place in the file to begin at, moved by formats of one episode per record as they read."""


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
    return _escaped(_ENCODER.encode(value))


def _escaped(text: str) -> str:
    """Escape the lone surrogates of a JSON text."""
    if text.isascii():
        return text
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
    return [_OPEN, *segments, _CLOSE]


_OPEN, _CLOSE = TraceSegment(Role.CONTEXT, OPEN, WRAPPER), TraceSegment(Role.CONTEXT, CLOSE, WRAPPER)


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
class LeftOut:
    """Parts of a record that are in no segment."""

    parts: int = 0
    bytes: int = 0
    """Size of their text, in UTF-8; 0 for what is not text."""


@dataclass
class TraceBuilder:
    """A trace under construction: segments in order, one turn per action, the tool calls of the actions, and what was
    left out."""

    options: ImportOptions
    segments: list[TraceSegment] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    """Command of each action's turn."""
    exit_codes: list[int | None] = field(default_factory=list)
    """Exit code of each action; None if it was not recorded."""
    calls: ToolCalls = field(default_factory=ToolCalls)
    left_out: dict[str, LeftOut] = field(default_factory=dict)
    """Parts of the record that are in no segment, by what they are."""
    _place: str = ""
    _places: dict[int, str] = field(default_factory=dict)
    """Place in the record where each segment was begun, by the segment's index, if the options want places."""
    _waiting: list[TraceSegment] = field(default_factory=list)
    """Segments that wait for the end of the assistant's turn."""
    _turn: tuple[list[str], list[str]] = field(default_factory=lambda: ([], []))
    """Words and tool calls of the assistant's turn that `say` continues."""

    def at(self, place: str) -> AbstractContextManager[None]:
        """Name the part of the record that the body reads: in errors, and as the place of the segments that it adds."""
        return _At(self, place)

    def omit(self, what: str, text: str = "") -> None:
        """Count a part that the format's rules leave out, such as reasoning."""
        found = self.left_out.setdefault(what, LeftOut())
        found.parts += 1
        found.bytes += len(text.encode(errors="surrogatepass"))

    def leave_out(self, what: str, text: str = "") -> TraceSegment:
        """Count a part that cannot be placed, and return the warning that stands for it.

        Raises:
            UnplacedError: the options are strict.
        """
        if self.options.strict:
            raise UnplacedError(what)
        self.omit(what, text)
        return TraceSegment(Role.WARNING, f"[left out: {what}]\n", LEFT_OUT)

    def repair(self, what: str) -> None:
        """Count a part that was read in the only way in which it can be meant, such as empty arguments.

        Raises:
            UnplacedError: the options are strict.
        """
        if self.options.strict:
            raise UnplacedError(what)
        self.omit(what)

    def add(self, *segments: TraceSegment) -> None:
        """Add segments."""
        for segment in segments:
            if self._waiting and segment.role is not Role.ACTION:
                self._flush()
            self._append(segment)

    def add_later(self, *segments: TraceSegment) -> None:
        """Add segments once the assistant's turn is over, so that its messages remain one action."""
        self._waiting.extend(segments)

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        for segment in waiting:
            self._append(segment)

    def _append(self, segment: TraceSegment) -> None:
        if self.options.places:
            self._places.setdefault(len(self.segments), self._place)
        self.segments.append(segment)

    def context(self, text: str, channel: str | None = None) -> None:
        """Add text that neither the agent nor the environment wrote."""
        self.add(TraceSegment(Role.CONTEXT, text, channel))

    def tools(self, tools: Sequence[str]) -> None:
        """Add the list of tools offered to the agent, if there are any."""
        if tools:
            self.context(tool_list(tools), TOOLS)

    def act(self, text: str, channel: str | None = None, *, command: str | None = None) -> None:
        """Add an action and its turn, whose command is by default `text` without its final newline."""
        self.add(TraceSegment(Role.ACTION, text, channel))
        self.commands.append(text.removesuffix("\n") if command is None else command)
        self.exit_codes.append(None)

    def say(self, words: str, calls: Iterable[str] = ()) -> None:
        """Add an assistant's message; neighbouring messages are one action: their words, then their tool calls.

        A message without calls and words, or whose words are thinking alone, is no action; its text is omitted.
        """
        blocks = list(calls)
        if not blocks and not without_thinking(words).strip():
            if words:
                self.omit("an assistant's message without words", words)
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

    def quote(self) -> None:
        """Make the actions and observations so far context: they were shown to the agent, which acts from now on."""
        self._flush()
        played = (Role.ACTION, Role.ENV_OUTPUT)
        self.segments = [
            replace(segment, role=Role.CONTEXT, channel=COPIED) if segment.role in played else segment
            for segment in self.segments
        ]
        self.commands, self.exit_codes = [], []
        self.calls.calls, self.calls.answers = [], []

    def observed(self, text: str, channel: str | None) -> list[TraceSegment]:
        """Split an observation as the function `observed` does, with the builder's options."""
        return observed(text, channel, self.options)

    def observe(self, segments: Iterable[TraceSegment], exit_code: int | None = None) -> None:
        """Add the segments returned for the last action, and its exit code if it was recorded."""
        self.add(*segments)
        if exit_code is not None and self.exit_codes:
            self.exit_codes[-1] = exit_code

    def answer(self, segments: Iterable[TraceSegment], exit_code: int | None = None) -> None:
        """Add a tool's answer in its wrappers."""
        self.observe(wrapped(segments), exit_code)

    def trace(self, task_id: str, *, reward: float | None = None, meta: Mapping[str, Any] | None = None) -> Trace:
        """Return the trace; its meta includes the ids of the tool calls, and what was left out.

        Raises:
            UnplacedError: there is neither an action nor an observation.
            ValueError: a text is not Unicode.
        """
        self._flush()
        if all(segment.role in (Role.CONTEXT, Role.WARNING) for segment in self.segments):
            raise UnplacedError("neither an action nor an observation")
        outputs = (text_of(part, Role.ENV_OUTPUT) for part in split_at_actions(self.segments)[1:])
        turns = tuple(
            Turn(command, output, exit_code, valid_action=True, clean_parse=True)
            for command, output, exit_code in zip(self.commands, outputs, self.exit_codes, strict=True)
        )
        segments = tuple(self.segments)
        return Trace(task_id, segments, turns, reward=reward, meta={**(meta or {}), **self.calls.meta, **self._told()})

    def _told(self) -> dict[str, Any]:
        left_out = {"left_out": {what: asdict(of) for what, of in self.left_out.items()}} if self.left_out else {}
        if not self.options.places:
            return left_out
        return {**left_out, "places": [self._places[index] for index in range(len(self.segments))]}


class _At:
    """Part of a record that is read: a class, since it is entered for every message."""

    __slots__ = ("_before", "_builder", "_place")

    def __init__(self, builder: TraceBuilder, place: str) -> None:
        self._builder, self._place, self._before = builder, place, builder._place

    def __enter__(self) -> None:
        self._builder._place = f"{self._before}.{self._place}" if self._before else self._place

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._builder._place = self._before
        if isinstance(error, UnplacedError):
            place = f"{self._place}.{error.place}" if error.place else self._place
            raise UnplacedError(error.reason, place) from error
