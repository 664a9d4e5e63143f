"""Rollouts of Codex, OpenAI's command-line agent: `~/.codex/sessions/*/*/*/rollout-*.jsonl`.

Source: codex-rs/protocol (protocol.rs, models.rs) and codex-rs/core (tools/mod.rs, unified_exec.rs) of openai/codex.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from echo_cli.trace import Trace, TraceSegment
from echo_cli.traces.builder import ImportOptions, Record, Refusal, TraceBuilder, json_text
from echo_cli.traces.formats.chats.responses import add_item
from echo_cli.traces.formats.sessions.order import Step, answers_first
from echo_cli.traces.json_records import listed, member, read_json, sessions_of
from echo_cli.traces.recognition import Sample
from echo_cli.traces.strict_json import parse_json
from echo_cli.trajectory import TOOL_RESULT, WRAPPER, Role

HARNESS = "harness"
"""Channel of Codex's own text."""

ROLES = """\
input       lines of type session_meta, response_item, event_msg, turn_context, compacted; or, in rollouts of mid 2025,
            a line with id and instructions, then items. One trace per session; a fork, which repeats the lines of the
            session that it continues, is one trace. Turns that were rolled back stay. A session without a reply is no
            episode
context     the session's instructions; system, developer and user messages, each followed by a newline: prompts and
            what Codex adds to them, such as environment_context and AGENTS.md; the summary of a compaction (compacted),
            followed by a newline; <tool_response> wrappers; the lines that Codex puts before an output ("Exit code: …",
            "Chunk ID: …", "Wall time: …" to "Output:"); around an output that is the text
            {"output": …, "metadata": {"exit_code": …, …}}, that JSON
action      each assistant message: its text, a newline, then each function_call, custom_tool_call and local_shell_call
            as <tool_call> JSON </tool_call>, as in the format responses
env_output  function_call_output and custom_tool_call_output: the tool's text, byte for byte, without what is context or
            warning; of an output in JSON, its `output`, decoded
warning     in an output, the notices of a command that timed out, or that the user aborted or rejected, of its lines
            and of what was cut ("…12 tokens truncated…"); matches of --warning
exit code   as the lines before the output or its JSON have it
omitted     reasoning; event_msg, which repeats items for the screen; turn_context and other lines; the history that
            replaces a compacted one, which repeats messages; the instructions of a session that was continued
left out    images; calls of server-side tools; items of other types; an output whose call is not in the log
refused     a call without a name"""

_HEADERS = (
    re.compile(r"Exit code: (-?\d+)\nWall time: [^\n]*\n(?:Total output lines: \d+\n)?Output:(?:\n|\Z)"),
    re.compile(
        r"(?:Command: .*?\n)?(?:Chunk ID: [^\n]*\n)?Wall time: [^\n]*\n(?:Process exited with code (-?\d+)\n)?"
        r"(?:Process running with session ID \d+\n)?(?:Original token count: \d+\n)?(?:Total output lines: \d+\n)?"
        r"Output:(?:\n|\Z)",
        re.DOTALL,
    ),
)
"""Lines before an output: of the shell, and of commands that may go on running."""
_JSON_START = re.compile(r'\s*\{\s*"output"\s*:\s*(?=")')
_NOTICES = re.compile(
    r"\A(?:Wall time: [\d.]+ seconds\n)?aborted(?: by user(?: after [\d.]+s)?)?\Z|\Aexec command rejected by user\Z"
    r"|\A(?:Total output lines: \d+\n\n)?(?:command timed out after \d+ milliseconds\n)?"
    r"|…\d+ (?:tokens|chars) truncated…|\[\.\.\. omitted \d+ of \d+ lines \.\.\.\]"
)
_LINES = ("session_meta", "response_item", "event_msg", "turn_context", "compacted")


def recognise(sample: Sample) -> str | None:
    """Return the evidence of a rollout's lines among the first records, or None."""
    for record in sample.records:
        if member(record, "type") in _LINES and isinstance(member(record, "payload"), dict):
            return f"it has lines of type {record['type']} with a payload, as Codex writes them"
    first = sample.first
    if isinstance(first, dict) and {"id", "timestamp", "instructions"} <= first.keys():
        return "its first line has id, timestamp and instructions, as Codex wrote it in 2025"
    return None


def read(path: Path, options: ImportOptions) -> Iterator[Trace | Refusal]:
    """Yield the sessions of a file."""
    return read_json(path, partial(_trace, options=options), _sessions)


def _sessions(entries: Iterator[Record | Refusal]) -> Iterator[Record | Refusal]:
    """Yield the sessions that have a reply."""
    for entry in sessions_of(entries, _session_of):
        if isinstance(entry, Refusal) or any(_is_reply(_item_of(line)) for _, line in entry[1]):
            yield entry


def _session_of(line: Any, ids: tuple[str, ...]) -> tuple[str, ...]:
    """Return the ids by which a session is known: its own, and those of the sessions that it was forked from."""
    meta = _meta_of(line)
    if meta is None:
        return ids
    own, source = meta["id"], meta.get("forked_from_id")
    found = (own, source) if isinstance(source, str) else (own,)
    return (*ids, *found) if own in ids else found


def _meta_of(line: Any) -> Mapping[str, Any] | None:
    """Return the meta data of a session, if this line begins one."""
    meta = member(line, "payload") if member(line, "type") == "session_meta" else None
    if member(line, "type") is None and member(line, "timestamp") is not None:
        meta = line
    return meta if isinstance(member(meta, "id"), str) else None


def _item_of(line: Any) -> Any:
    """Return the item of a line; None if it has none."""
    if member(line, "type") == "response_item":
        return member(line, "payload")
    return None if member(line, "type") is None or "payload" in line else line


def _is_reply(item: Any) -> bool:
    return member(item, "role") == "assistant" or str(member(item, "type")).endswith("_call")


def _trace(lines: list[Record], where: str, options: ImportOptions) -> Trace:
    builder = TraceBuilder(options)
    session = _session_of(lines[0][1], ())
    for place, line in answers_first(lines, _step_of):
        with builder.at(place):
            _add(line, builder)
    return builder.trace(session[0] if session else Path(where).name)


def _step_of(record: Record) -> Step:
    item = _item_of(record[1])
    ids = frozenset(filter(None, [member(item, "call_id")]))
    return Step(_is_reply(item), *((ids, frozenset()) if _is_reply(item) else (frozenset(), ids)))


def _add(line: Any, builder: TraceBuilder) -> None:
    """Place one line."""
    item, payload, kind = _item_of(line), member(line, "payload"), member(line, "type")
    if (meta := _meta_of(line)) is not None and not builder.segments:
        _add_instructions(meta, builder)
    elif item is not None:
        add_item(item, builder, _output)
    elif kind == "compacted" and isinstance(summary := member(payload, "message"), str) and summary:
        builder.context(f"{summary}\n", "user")
    else:
        builder.omit(f"lines of the type {kind or 'state'}")


def _add_instructions(meta: Mapping[str, Any], builder: TraceBuilder) -> None:
    """Place the session's instructions and the tools that were added to Codex's own."""
    given = meta.get("base_instructions") or meta.get("instructions")
    text = member(given, "text") if isinstance(given, dict) else given
    if isinstance(text, str) and text:
        builder.context(f"{text}\n", "system")
    tools = listed(meta.get("dynamic_tools"))
    builder.tools([json_text(tool) for tool in tools if isinstance(tool, dict)])


def _output(text: str, builder: TraceBuilder) -> tuple[list[TraceSegment], int | None]:
    """Return the segments of an output, without the lines or the JSON that Codex puts around it, and its exit code."""
    for header in _HEADERS:
        if match := header.match(text):
            code = match.group(1)
            segments = [TraceSegment(Role.CONTEXT, match.group(), WRAPPER), *_observed(text[match.end() :], builder)]
            return segments, None if code is None else int(code)
    if (match := _JSON_START.match(text)) and (found := _json_output(text, match.end())):
        output, end, exit_code = found
        start, rest = text[: match.end() + 1], text[end - 1 :]
        inner = _observed(output, builder)
        return [
            TraceSegment(Role.CONTEXT, start, WRAPPER),
            *inner,
            TraceSegment(Role.CONTEXT, rest, WRAPPER),
        ], exit_code
    return _observed(text, builder), None


def _json_output(text: str, start: int) -> tuple[str, int, int] | None:
    """Return the output in a JSON text that Codex wrote, the position after it, and the exit code; else None."""
    try:
        output, end = json.JSONDecoder().raw_decode(text, start)
        metadata = parse_json(text)["metadata"]
    except (ValueError, TypeError, KeyError):
        return None
    code = member(metadata, "exit_code")
    known = isinstance(output, str) and type(code) is int and set(metadata) == {"exit_code", "duration_seconds"}
    return (output, end, code) if known else None


def _observed(text: str, builder: TraceBuilder) -> list[TraceSegment]:
    """Split an output at the notices that Codex adds to it."""
    segments, end = list[TraceSegment](), 0
    for match in _NOTICES.finditer(text):
        if match.group():
            segments += builder.observed(text[end : match.start()], TOOL_RESULT)
            segments.append(TraceSegment(Role.WARNING, match.group(), HARNESS))
            end = match.end()
    return segments + builder.observed(text[end:], TOOL_RESULT)
