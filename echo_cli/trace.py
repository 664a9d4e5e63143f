"""Traces: episodes as text with roles, from any recorder. A trajectory file holds one trace per line, as JSON.

A `Trajectory` is an episode in the tokens of one policy. An imported trace has no token ids, or ids of another
tokenizer; `retokenize.render_trace` encodes it for a policy. docs/trajectory-format.md documents the format.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from echo_cli.errors import EchoError
from echo_cli.symlinks import opener
from echo_cli.text import escape_unprintable, foreign_encoding
from echo_cli.trajectory import (
    FORMAT,
    Exchange,
    NamedRole,
    Role,
    Source,
    StopReason,
    Trajectory,
    Turn,
    bad_line,
    exchanges,
    first_problem,
)

_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True)


@dataclass(frozen=True)
class TraceSegment:
    """A run of text of one role, byte for byte as it was recorded."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    role: NamedRole
    """Role of the text, as in OpenEnv RFC 010."""
    text: str
    """Text, byte for byte as it was recorded."""
    channel: str | None = None
    """Origin of the text within its role: stdout, exit_status, scaffold, ...; null if it was not recorded."""
    token_ids: tuple[int, ...] | None = None
    """Ids under the tokenizer of the model that sampled or read the text; null if they are unknown."""
    logprobs: tuple[float, ...] | None = None
    """Behaviour logprobs of an action's tokens, nats; one per token id."""
    transient: Annotated[int, Field(json_schema_extra={"minimum": 0})] = 0
    """Number of leading tokens of an action that later turns do not see: dropped thinking."""

    def __post_init__(self) -> None:
        tokens = len(self.token_ids or ())
        if self.logprobs is not None:
            if self.role is not Role.ACTION:
                raise ValueError(f"only action segments carry logprobs, not {self.role.name.lower()}")
            if len(self.logprobs) != tokens:
                raise ValueError(f"{len(self.logprobs)} logprobs for {tokens} action tokens")
        if self.transient and (self.role is not Role.ACTION or not 0 < self.transient <= tokens):
            raise ValueError(
                f"{self.transient} transient tokens in a segment of {tokens} {self.role.name.lower()} tokens"
            )


@dataclass(frozen=True)
class Trace:
    """One episode, with one turn per action segment, in order."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    task_id: str
    """Id of the task, shared by all rollouts of the task."""
    segments: Annotated[tuple[TraceSegment, ...], Field(json_schema_extra={"minItems": 1})]
    """Segments of the episode, in order; joined, their texts are the transcript."""
    turns: tuple[Turn, ...]
    """One turn per action segment, in order."""
    group_id: str = ""
    """Id shared by the rollouts of one task in one step; empty if there are no groups."""
    reward: float | None = None
    """Reward of the episode; null if it was not scored."""
    stop_reason: StopReason = "unknown"
    """Reason for the end of the episode."""
    source: Source = "trace"
    """Actor: a policy in training, a script (explorer, expert), or the agent of an imported trace."""
    world_model_only: bool = True
    """Whether the episode gets the env term and no RL term."""
    meta: dict[str, Any] = field(default_factory=dict)
    """Further metadata; not part of the text."""
    format: Literal["echo-cli trajectory 1"] = FORMAT

    def __post_init__(self) -> None:
        if not self.segments:
            raise ValueError("a trace needs at least one segment")
        actions = sum(segment.role is Role.ACTION for segment in self.segments)
        if actions != len(self.turns):
            raise ValueError(f"{actions} action segments and {len(self.turns)} turns")
        for number, segment in enumerate(self.segments):
            if not (segment.text.isascii() and (segment.channel or "").isascii()):  # most are: no name is made for them
                _check_unicode(segment.text, f"segments[{number}].text")
                _check_unicode(segment.channel, f"segments[{number}].channel")
        for number, turn in enumerate(self.turns):
            if not (turn.command.isascii() and turn.output.isascii()):
                _check_unicode(turn.command, f"turns[{number}].command")
                _check_unicode(turn.output, f"turns[{number}].output")
        _check_unicode([self.task_id, self.group_id], "task_id or group_id")
        _check_unicode(self.meta, "meta")

    @property
    def has_token_ids(self) -> bool:
        """Whether every segment has token ids."""
        return all(segment.token_ids is not None for segment in self.segments)

    def exchanges(self) -> list[Exchange[TraceSegment]]:
        """Return the exchanges, in order, one per turn. See `trajectory.exchanges`."""
        return exchanges(self.segments, self.turns)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object of the trace's line."""
        record: dict[str, Any] = _adapter().dump_python(self, mode="json")
        return record


MessageRole = Literal["system", "developer", "user", "assistant", "tool"]


@dataclass(frozen=True)
class ToolCall:
    """A call of a tool in an action."""

    name: str
    arguments: str
    """Arguments as JSON, byte for byte as they were recorded."""
    text: str
    """Text of the whole call in the action."""


@dataclass(frozen=True)
class ChatMessage:
    """A message of a recorded conversation; its text is that of `pieces`, each with its role."""

    role: MessageRole
    pieces: tuple[TraceSegment, ...]
    calls: tuple[ToolCall, ...] = ()

    @property
    def text(self) -> str:
        """Text of the message, without its tool calls."""
        return "".join(piece.text for piece in self.pieces)


@dataclass(frozen=True)
class Conversation:
    """The messages of a recorded conversation, and the tools offered to the agent, as JSON objects."""

    messages: tuple[ChatMessage, ...]
    tools: tuple[Mapping[str, Any], ...] = ()


THINK, END_THINK = "<think>", "</think>"
"""Marks around an assistant's thinking."""


def without_thinking(text: str) -> str:
    """Return the words of an action without the thinking at their start; thinking that does not end is all of it."""
    return text.lstrip().partition(END_THINK)[2].lstrip() if text.lstrip().startswith(THINK) else text


def trace_of(trajectory: Trajectory) -> Trace:
    """Convert a trajectory to a trace that keeps its token ids."""
    return _adapter().validate_json(json.dumps(trajectory.to_json()))


def trajectory_of(trace: Trace) -> Trajectory:
    """Convert a trace that `has_token_ids` to a trajectory; the inverse of `trace_of`.

    Raises:
        ValueError: the trace violates an invariant of `Trajectory`; the message names it.
    """
    return Trajectory.from_json(trace.to_json())


def write_traces(path: Path, traces: Iterable[Trace]) -> None:
    """Append `traces` to a trajectory file, one at a time."""
    with open(path, "ab", opener=opener) as file:
        for trace in traces:
            file.write(trace_line(trace))


def trace_line(trace: Trace) -> bytes:
    """Return the trace as a line of a trajectory file, newline included; `parse_trace` is the inverse."""
    return _adapter().dump_json(trace) + b"\n"


def read_traces(path: Path, *, growing: bool = False) -> Iterator[Trace]:
    """Stream the traces of a trajectory file, with one trace in memory at a time.

    Args:
        growing: whether a run may be writing the file, or was killed while writing it. If so, an incomplete last line
            (no newline, and not a trace) is skipped.

    Raises:
        EchoError: a line is not a trace; the message names file and line.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield parse_trace(line)
            except ValueError as error:
                if growing and not line.endswith(b"\n"):  # only the last line can lack it
                    return
                raise line_error(path, number, line, error) from error


def line_error(path: Path, number: int, line: bytes, error: ValueError) -> EchoError:
    """Return the error for a line of a trajectory file that is not a trace, or for a file in another encoding."""
    found = foreign_encoding(line) if number == 1 else None
    if found is None:
        bad = bad_line(path, number, error, "trace")
        first = "if another tool wrote it: `echo-cli traces import FILE -o OUT.jsonl`; else "
        return EchoError(bad.message, f"{first}{bad.tip}") if number == 1 else bad
    return EchoError(f"{escape_unprintable(path)} is {found[0]}, not a trajectory file as text", found[1])


def parse_trace(line: bytes) -> Trace:
    """Parse a line of a trajectory file.

    Raises:
        ValueError: a field is missing, unknown, of the wrong type (including text that is not Unicode) or violates an
            invariant; the message names it.
    """
    try:
        return _adapter().validate_json(line)
    except ValidationError as error:
        raise ValueError(first_problem(error)) from error


def trace_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a line, as stored in traces/schemas/trajectory.schema.json.

    The schema cannot express that each action has a turn, nor which fields `logprobs` and `transient` require;
    `parse_trace` checks both.
    """
    schema = _adapter().json_schema()
    about = "One line of an echo-cli trajectory file: an episode as text with roles. See docs/trajectory-format.md."
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "echo-cli trajectory 1",
        "description": about,
    }


def _check_unicode(value: Any, name: str) -> None:
    """Raise ValueError if a text has a lone surrogate, which UTF-8 cannot encode."""
    if isinstance(value, str):
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError as error:
                raise ValueError(f"{name} is not Unicode: it contains a lone surrogate") from error
    elif isinstance(value, Mapping):
        for key, entry in value.items():
            _check_unicode(key, name)
            _check_unicode(entry, name)
    elif isinstance(value, (list, tuple)):
        for entry in value:
            _check_unicode(entry, name)


@cache
def _adapter() -> TypeAdapter[Trace]:
    return TypeAdapter(Trace)
