"""A trace: an episode as text with roles, whoever recorded it. A trajectory file holds one a line, as a JSON object.

A `Trajectory` is the same in the tokens of one policy. A trace from elsewhere has no tokens, or those of another
tokenizer; `retokenize.render_trace` writes it in a policy's own. docs/trajectory-format.md documents the format.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

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
    """Whose text it is, as in OpenEnv RFC 010."""
    text: str
    """Byte for byte as it was recorded."""
    channel: str | None = None
    """Where in its role the text came from: stdout, exit_status, scaffold, ...; None where nobody said."""
    token_ids: tuple[int, ...] | None = None
    """Ids under the tokenizer of whoever sampled or met the text; None where they are not known."""
    logprobs: tuple[float, ...] | None = None
    """Behaviour logprobs of an action's tokens, nats."""
    transient: Annotated[int, Field(json_schema_extra={"minimum": 0})] = 0
    """Leading tokens that nothing after the segment has seen, as in `Segment`."""

    def __post_init__(self) -> None:
        tokens = len(self.token_ids or ())
        if self.logprobs is not None:
            if self.role is not Role.ACTION:
                raise ValueError(f"only action segments carry logprobs, not {self.role.name.lower()}")
            if len(self.logprobs) != tokens:
                raise ValueError(f"{len(self.logprobs)} logprobs for {tokens} action tokens")
        if self.transient and (self.role is not Role.ACTION or not 0 < self.transient <= tokens):
            raise ValueError(f"{self.transient} transient tokens in {tokens} of {self.role.name.lower()}")


@dataclass(frozen=True)
class Trace:
    """One episode. Each action segment has a turn, in order."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    task_id: str
    """What was to be done; rollouts of one task share it."""
    segments: Annotated[tuple[TraceSegment, ...], Field(json_schema_extra={"minItems": 1})]
    """In order; their texts make up the episode."""
    turns: tuple[Turn, ...]
    """One for each action segment, in order."""
    group_id: str = ""
    """Rollouts of one task in one step share it; empty where there are no groups."""
    reward: float | None = None
    """Null where nobody judged the episode."""
    stop_reason: StopReason = "unknown"
    """How the episode ended."""
    source: Source = "trace"
    """Who acted: a policy in training, a script, or whoever an imported trace is of."""
    world_model_only: bool = True
    """Nothing is to be learned from the actions by reinforcement: the env term alone."""
    meta: dict[str, Any] = field(default_factory=dict)
    """Whatever else is known; no part of the text."""
    format: Literal["echo-cli trajectory 1"] = FORMAT

    def __post_init__(self) -> None:
        if not self.segments:
            raise ValueError("a trace needs at least one segment")
        actions = sum(segment.role is Role.ACTION for segment in self.segments)
        if actions != len(self.turns):
            raise ValueError(f"{actions} action segments and {len(self.turns)} turns")
        for number, segment in enumerate(self.segments):
            _check_unicode(segment.text, f"segments[{number}].text")
            _check_unicode(segment.channel, f"segments[{number}].channel")
        for number, turn in enumerate(self.turns):
            _check_unicode(turn.command, f"turns[{number}].command")
            _check_unicode(turn.output, f"turns[{number}].output")
        _check_unicode([self.task_id, self.group_id], "task_id or group_id")
        _check_unicode(self.meta, "meta")

    @property
    def has_token_ids(self) -> bool:
        """Whether every segment says its tokens."""
        return all(segment.token_ids is not None for segment in self.segments)

    def exchanges(self) -> list[Exchange[TraceSegment]]:
        """Return the exchanges, in order, one a turn. See `trajectory.exchanges`."""
        return exchanges(self.segments, self.turns)

    def to_json(self) -> dict[str, Any]:
        """The JSON object of its line."""
        record: dict[str, Any] = _adapter().dump_python(self, mode="json")
        return record


def trace_of(trajectory: Trajectory) -> Trace:
    """Return the trace of a trajectory, its tokens included."""
    return _adapter().validate_json(json.dumps(trajectory.to_json()))


def trajectory_of(trace: Trace) -> Trajectory:
    """Return the trajectory of a trace that `has_token_ids`: `trace_of` undone.

    Raises:
        ValueError: no policy can have played it so; says why.
    """
    return Trajectory.from_json(trace.to_json())


def write_traces(path: Path, traces: Iterable[Trace]) -> None:
    """Append `traces` to a trajectory file, as they come."""
    with path.open("ab") as file:
        for trace in traces:
            file.write(trace_line(trace))


def trace_line(trace: Trace) -> bytes:
    """Return the line of a trajectory file, its newline included; `parse_trace` is its inverse."""
    return _adapter().dump_json(trace) + b"\n"


def read_traces(path: Path, *, growing: bool = False) -> Iterator[Trace]:
    """Stream the traces of a trajectory file: memory holds one at a time.

    Args:
        growing: a run may be writing the file, or was killed while it did: a last line without its newline that is no
            trace was cut, and is left out.

    Raises:
        EchoError: a line is not a trace; names the file and the line.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield parse_trace(line)
            except ValueError as error:
                if growing and not line.endswith(b"\n"):  # only the last line can lack it
                    return
                raise bad_line(path, number, error, "trace") from error


def parse_trace(line: bytes) -> Trace:
    """Parse a line of a trajectory file.

    Raises:
        ValueError: a field is missing, unknown, of another type (text that is not Unicode among them) or breaks an
            invariant; says which.
    """
    try:
        return _adapter().validate_json(line)
    except ValidationError as error:
        raise ValueError(first_problem(error)) from error


def trace_schema() -> dict[str, Any]:
    """Return the JSON Schema of a line, draft 2020-12: traces/schemas/trajectory.schema.json.

    It cannot say that each action has a turn, and what logprobs and `transient` stand beside; `parse_trace` can.
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
    """Raise ValueError for text with a surrogate: half a character, which no UTF-8 file can hold."""
    if isinstance(value, str):
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError as error:
                raise ValueError(f"{name} is not Unicode: it has half a character, a lone surrogate") from error
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
