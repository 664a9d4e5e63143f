"""Episode records of OpenEnv: its collector's output (`results.jsonl`), and RFC 010's role-tagged segments.

The collector records an episode twice: `messages` has the text that the agent saw and wrote, `tool_trace` the result of
each tool call. The two must agree, so that a message alone never decides which text is env_output. Source: OpenEnv's
`core/harness/collect.py` (EpisodeRecord) and `core/harness/__init__.py`; RFC 010 (Trajectory, Segment).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from echo_cli.trace import Trace, TraceSegment
from echo_cli.traces.builder import ImportOptions, Refusal, TraceBuilder, UnplacedError, tool_call
from echo_cli.traces.conversation import CONTEXT_ROLES
from echo_cli.traces.json_records import (
    arguments_of,
    first_id,
    member,
    parts_of,
    read_json,
    reward_of,
    text_or_json,
)
from echo_cli.traces.recognition import Sample
from echo_cli.traces.strict_json import parse_json
from echo_cli.trajectory import NAMED_ROLES, TOOL_ERROR, TOOL_RESULT, Role

ROLES = """\
input       an episode record of OpenEnv's collector, an array of them, or JSONL: messages and tool_trace; or segments,
            each with role and text, as in RFC 010; optionally reward, task, task_id, episode_id
context     system, developer and user messages, each followed by a newline; <tool_response> wrappers; segments with
            this role
action      each assistant message: its text, a newline, then each tool call as <tool_call> JSON </tool_call>, whose
            arguments keep their bytes; neighbouring assistant messages are one action, and one without text is none;
            segments with this role
env_output  tool messages, byte for byte, if the tool_trace has the call and agrees: equal text, JSON of equal value,
            nothing for null, or the error (channel tool_error); segments with this role
warning     segments with this role; matches of --warning in a tool's answer
exit code   an integer exit_code in a result's metadata or data
omitted     artifacts; names and ids
left out    messages and segments of other roles; parts that are not text
refused     messages without a tool_trace; an answer that the tool_trace lacks or contradicts; a result in the
            tool_trace that no message shows"""

_KEPT = ("episode_id", "done", "metrics", "verify_metrics")
"""Fields of a record that are copied to the trace's meta."""


def recognise(sample: Sample) -> str | None:
    """Return the evidence of an episode record of OpenEnv's collector, or of RFC 010's segments, or None."""
    fields = set(sample.first) if isinstance(sample.first, dict) else set()
    found = next((pair for pair in ({"messages", "tool_trace"}, {"segments", "episode_id"}) if pair <= fields), None)
    return f"its records have {' and '.join(sorted(found))}" if found else None


def read(path: Path, options: ImportOptions) -> Iterator[Trace | Refusal]:
    """Yield the episodes of a file."""
    return read_json(path, partial(_trace, options=options), cursor=options.cursor)


def _trace(record: Any, where: str, options: ImportOptions) -> Trace:
    if not isinstance(record, dict):
        raise UnplacedError("not an episode record")
    builder = TraceBuilder(options)
    if "segments" in record:
        _add_tagged(record["segments"], builder)
    else:
        _add_played(record.get("messages"), record.get("tool_trace"), builder)
    meta = {name: record[name] for name in _KEPT if record.get(name) is not None}
    task = record.get("task")
    named = (task.get("task_id"), task.get("id")) if isinstance(task, dict) else (task,)
    task_id = first_id((record.get("task_id"), *named, record.get("episode_id")), where)
    return builder.trace(task_id, reward=reward_of(record, "reward", builder=builder), meta=meta)


def _add_played(messages: Any, tool_trace: Any, builder: TraceBuilder) -> None:
    """Place an episode that is recorded twice, as messages and as tool_trace."""
    if not isinstance(messages, list) or not messages:
        raise UnplacedError("neither messages nor segments")
    if not isinstance(tool_trace, list):
        raise UnplacedError("no tool_trace to confirm the tools' answers; the format openai reads messages alone")
    for number, message in enumerate(messages):
        with builder.at(f"messages[{number}]"):
            _add(message, tool_trace, builder)
    if (shown := len(builder.calls.answers)) < len(tool_trace):
        raise UnplacedError("a result that no message shows", f"tool_trace[{shown}]")


def _add(message: Any, tool_trace: list[Any], builder: TraceBuilder) -> None:
    """Place one message."""
    role = member(message, "role")
    if role in CONTEXT_ROLES:
        text, left_out = parts_of(message.get("content"), builder)
        builder.context(f"{text}\n", role)
        builder.add(*left_out)
    elif role == "assistant":
        calls = message.get("tool_calls") or []
        if not isinstance(calls, list):
            raise UnplacedError("tool_calls is not a list")
        content = "" if message.get("content") is None and calls else message.get("content")
        text, left_out = parts_of(content, builder)
        builder.say(text, [_call(call, builder) for call in calls])
        builder.add_later(*left_out)
    elif role == "tool":
        _answer(message, tool_trace, builder)
    else:
        builder.add(builder.leave_out(f"a message of unknown role: {role!r}", text_or_json(member(message, "content"))))


def _call(call: Any, builder: TraceBuilder) -> str:
    """Return the text of a tool call, and open the call with its name and arguments as note."""
    call_id, function = member(call, "id"), member(call, "function")
    name = member(function, "name")
    if not isinstance(call_id, str) or not isinstance(name, str):
        raise UnplacedError("a tool call without an id or a function name")
    written = arguments_of(function.get("arguments"), builder)
    arguments = parse_json(written) if isinstance(written, str) else written
    if not isinstance(arguments, dict):
        raise UnplacedError("the arguments of a tool call are not a JSON object")
    builder.calls.call(call_id, (name, arguments))
    return tool_call(name, written)


def _answer(message: Mapping[str, Any], tool_trace: list[Any], builder: TraceBuilder) -> None:
    number = len(builder.calls.answers)
    name, arguments = builder.calls.answer(message.get("tool_call_id"))
    if number == len(tool_trace):
        raise UnplacedError(f"a tool answer that the tool_trace lacks; its length is {number}")
    text, left_out = parts_of(message.get("content"), builder)
    result = _result(tool_trace[number], name, arguments, text, f"tool_trace[{number}]")
    channel = TOOL_RESULT if result.get("error") is None else TOOL_ERROR
    builder.answer([*builder.observed(text, channel), *left_out], _exit_code(result))


def _add_tagged(segments: Any, builder: TraceBuilder) -> None:
    """Place RFC 010's segments, which keep their roles."""
    if not isinstance(segments, list):
        raise UnplacedError("not a list of segments", "segments")
    for number, segment in enumerate(segments):
        with builder.at(f"segments[{number}]"):
            text, channel = _required(segment, "text"), segment.get("channel")
            role = NAMED_ROLES.get(_required(segment, "role"))
            if role is None:
                builder.add(builder.leave_out(f"a segment of unknown role: {segment['role']!r}", text))
                continue
            if channel is not None and not isinstance(channel, str):
                raise UnplacedError("a segment's channel must be text")
            if role is Role.ACTION:
                builder.act(text, channel)
            elif role is Role.ENV_OUTPUT:
                builder.observe(builder.observed(text, channel))
            else:
                builder.observe([TraceSegment(role, text, channel)])


def _result(entry: Any, name: str, arguments: Any, text: str, place: str) -> Mapping[str, Any]:
    """Return the result in an entry of the tool_trace, after checking it against the call and its message.

    Raises:
        UnplacedError: the entry is for another call, or its result differs from the message.
    """
    result = member(entry, "result")
    if not isinstance(result, dict):
        raise UnplacedError(f"{place} has no result")
    if entry.get("tool_name") != name:
        raise UnplacedError(f"{place} is for a different tool")
    if _canonical(entry.get("arguments") or {}) != _canonical(arguments):
        raise UnplacedError(f"{place} has different arguments")
    if not _shows(text, result):
        raise UnplacedError(f"{place} has a different result")
    return result


def _shows(text: str, result: Mapping[str, Any]) -> bool:
    """Return whether a message's text matches the result as a harness shows it to the model."""
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
        code = member(holder, "exit_code")
        if isinstance(code, int) and not isinstance(code, bool):
            return code
    return None


def _required(segment: Any, name: str) -> str:
    value = member(segment, name)
    if not isinstance(value, str):
        raise UnplacedError(f"a segment without its {name}")
    return value
