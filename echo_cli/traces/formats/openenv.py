"""Episode records of OpenEnv: what its collector writes (`results.jsonl`), and RFC 010's role-tagged segments.

A record of the collector tells an episode twice: `messages`, what the agent saw and wrote, and `tool_trace`, which
tool gave what. The two have to agree, so that nothing passes for the world's text on a message's word alone. Source:
OpenEnv's `core/harness/collect.py` (EpisodeRecord) and `core/harness/__init__.py`; RFC 010 (Trajectory, Segment).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from echo_cli.trace import Trace, TraceSegment
from echo_cli.traces.builder import (
    ImportOptions,
    Refusal,
    ToolCalls,
    TraceBuilder,
    UnplacedError,
    observed,
    said,
    tool_call,
    wrapped,
)
from echo_cli.traces.json_records import at, conversations, json_records, parse_json, read_each, reward_of
from echo_cli.trajectory import TOOL_RESULT, Role

TOOL_ERROR = "tool_error"
"""Channel of an answer whose tool says that it failed."""

ROLES = """\
input       episode records of OpenEnv's collector, JSONL, one or an array: messages and tool_trace; or segments, each
            with role and text, as in RFC 010; where known reward, task, task_id, episode_id
context     system, developer and user messages, a newline behind each; <tool_response> wrappers; segments tagged so
action      each assistant message: its text, a newline, then each tool call as <tool_call> JSON </tool_call> with
            sorted keys; segments tagged so
env_output  tool messages, byte for byte, where the tool_trace has the call and says the same: text, JSON of the same
            value, nothing for null, or the error (channel tool_error); segments tagged so
warning     segments tagged so; what --warning matches in a tool's answer
exit code   an integer exit_code in a result's metadata or data
left out    artifacts; names and ids
refused     messages without a tool_trace; an answer that the tool_trace has not, or has otherwise; a result of the
            tool_trace that no message shows; other roles; content that is not text"""

_CONTEXT = ("system", "developer", "user")
_SEGMENT_ROLES = {role.name.lower(): role for role in Role if role is not Role.PAD}
_KEPT = ("episode_id", "done", "metrics", "verify_metrics")
"""What of a record goes to the trace's meta."""


def read(path: Path, options: ImportOptions) -> Iterator[Trace | Refusal]:
    """The episodes of a file."""
    return read_each(conversations(json_records(path)), partial(_trace, options=options))


@dataclass
class _Episode:
    options: ImportOptions
    tool_trace: list[Any]
    builder: TraceBuilder = field(default_factory=TraceBuilder)
    calls: ToolCalls = field(default_factory=ToolCalls)
    """Noted of each are its name and its arguments."""

    def add(self, message: Any) -> None:
        """Place one message.

        Raises:
            UnplacedError: it has no place.
        """
        role = message.get("role") if isinstance(message, dict) else None
        if role in _CONTEXT:
            self.builder.context(f"{_text(message)}\n", role)
        elif role == "assistant":
            self._assistant(message)
        elif role == "tool":
            self._answer(message)
        else:
            raise UnplacedError(f"no message of a known role: {role!r}")

    def _assistant(self, message: Mapping[str, Any]) -> None:
        calls = message.get("tool_calls") or []
        if not isinstance(calls, list):
            raise UnplacedError("tool_calls is not a list")
        text = "" if message.get("content") is None and calls else _text(message)
        self.builder.act(said(text, [self._call(call) for call in calls]))

    def _call(self, call: Any) -> str:
        call_id = call.get("id") if isinstance(call, dict) else None
        function = call.get("function") if isinstance(call, dict) else None
        name = function.get("name") if isinstance(function, dict) else None
        if not isinstance(call_id, str) or not isinstance(function, dict) or not isinstance(name, str):
            raise UnplacedError("a tool call without an id or a function's name")
        arguments = function.get("arguments")
        try:
            arguments = parse_json(arguments) if isinstance(arguments, str) else arguments
        except ValueError as error:
            raise UnplacedError(f"the arguments of a tool call are not JSON: {error}") from error
        if not isinstance(arguments, dict):
            raise UnplacedError("the arguments of a tool call are not a JSON object")
        self.calls.call(call_id, (name, arguments))
        return tool_call(name, arguments)

    def _answer(self, message: Mapping[str, Any]) -> None:
        number = len(self.calls.answers)
        name, arguments = self.calls.answer(message.get("tool_call_id"))
        if number == len(self.tool_trace):
            raise UnplacedError(f"a tool's answer that the tool_trace has not: it has {number}")
        text = _text(message)
        result = _result(self.tool_trace[number], name, arguments, text, f"tool_trace[{number}]")
        channel = TOOL_RESULT if result.get("error") is None else TOOL_ERROR
        self.builder.observe(wrapped(observed(text, channel, self.options)), _exit_code(result))


def _trace(record: Any, where: str, options: ImportOptions) -> Trace:
    if not isinstance(record, dict):
        raise UnplacedError("not an episode record")
    if "segments" in record:
        builder, ids = _tagged(record["segments"], options), {}
    else:
        episode = _played(record, options)
        builder, ids = episode.builder, episode.calls.meta
    meta = {name: record[name] for name in _KEPT if record.get(name) is not None}
    return builder.trace(
        _task(record, where),
        reward=reward_of(record, "reward"),
        meta=meta | ids,
    )


def _played(record: Mapping[str, Any], options: ImportOptions) -> _Episode:
    messages, tool_trace = record.get("messages"), record.get("tool_trace")
    if not isinstance(messages, list) or not messages:
        raise UnplacedError("neither messages nor segments")
    if not isinstance(tool_trace, list):
        raise UnplacedError("no tool_trace to say what the world returned; the format openai reads messages alone")
    episode = _Episode(options, tool_trace)
    for number, message in enumerate(messages):
        with at(f"messages[{number}]"):
            episode.add(message)
    if (shown := len(episode.calls.answers)) < len(tool_trace):
        raise UnplacedError("a result that no message shows", f"tool_trace[{shown}]")
    return episode


def _tagged(segments: Any, options: ImportOptions) -> TraceBuilder:
    """RFC 010's segments: their roles are as they are tagged."""
    if not isinstance(segments, list):
        raise UnplacedError("not a list of segments", "segments")
    builder = TraceBuilder()
    for number, segment in enumerate(segments):
        with at(f"segments[{number}]"):
            text, channel = _member(segment, "text"), segment.get("channel")
            role = _SEGMENT_ROLES.get(_member(segment, "role"))
            if role is None:
                raise UnplacedError(f"a segment's role is one of {', '.join(_SEGMENT_ROLES)}")
            if channel is not None and not isinstance(channel, str):
                raise UnplacedError("a segment's channel is text")
            if role is Role.ACTION:
                builder.act(text, channel)
            elif role is Role.ENV_OUTPUT:
                builder.observe(observed(text, channel, options))
            else:
                builder.observe([TraceSegment(role, text, channel)])
    return builder


def _result(entry: Any, name: str, arguments: Any, text: str, place: str) -> Mapping[str, Any]:
    """The result of an entry of the tool_trace, which is of this call and says what its message says.

    Raises:
        UnplacedError: it is of another call, or says something else.
    """
    result = entry.get("result") if isinstance(entry, dict) else None
    if not isinstance(entry, dict) or not isinstance(result, dict):
        raise UnplacedError(f"{place} has no result")
    if entry.get("tool_name") != name:
        raise UnplacedError(f"{place} is of another tool")
    if _canonical(entry.get("arguments")) != _canonical(arguments):
        raise UnplacedError(f"{place} has other arguments")
    if not _says(text, result):
        raise UnplacedError(f"{place} has another result")
    return result


def _says(text: str, result: Mapping[str, Any]) -> bool:
    """Whether a message is how a harness shows a result."""
    data = result.get("data")
    if data is None:
        return text == "" or text == result.get("error")
    if isinstance(data, str):
        return text == data
    try:
        return _canonical(parse_json(text)) == _canonical(data)
    except ValueError:
        return False


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _exit_code(result: Mapping[str, Any]) -> int | None:
    for holder in (result.get("metadata"), result.get("data")):
        code = holder.get("exit_code") if isinstance(holder, dict) else None
        if isinstance(code, int) and not isinstance(code, bool):
            return code
    return None


def _task(record: Mapping[str, Any], where: str) -> str:
    """The id of the task: the record's, its task's, its task where that is a name, its episode's, or else its place."""
    task = record.get("task")
    inner = (task.get("task_id"), task.get("id")) if isinstance(task, dict) else (task,)
    for value in (record.get("task_id"), *inner, record.get("episode_id")):
        if isinstance(value, (str, int)) and not isinstance(value, bool):
            return str(value)
    return Path(where).name


def _text(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    if not isinstance(content, str):
        raise UnplacedError("a message whose content is not text")
    return content


def _member(segment: Any, name: str) -> str:
    value = segment.get(name) if isinstance(segment, dict) else None
    if not isinstance(value, str):
        raise UnplacedError(f"a segment without its {name}")
    return value
