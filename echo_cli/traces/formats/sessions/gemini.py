"""Sessions of Gemini CLI: `~/.gemini/tmp/*/chats/session-*.json` and, since 2026, `.jsonl`; saved chats.

Source: packages/core of google-gemini/gemini-cli (services/chatRecordingService.ts, tools/shell.ts,
utils/generateContentResponseUtilities.ts, utils/sessionUtils.ts).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from echo_cli.trace import Trace, TraceSegment
from echo_cli.traces.builder import ImportOptions, Record, Refusal, TraceBuilder, UnplacedError, json_text, tool_call
from echo_cli.traces.json_records import arguments_of, first_id, listed, member, read_json, sessions_of
from echo_cli.traces.recognition import Sample
from echo_cli.trajectory import TOOL_ERROR, TOOL_RESULT, WRAPPER, Role

HARNESS = "harness"
"""Channel of Gemini CLI's own text."""

ROLES = """\
input       a session: one document with sessionId and messages, or JSONL: a line with sessionId, then messages, $set
            and $rewindTo. Or a chat saved with /chat save, or contents of the Gemini API: a list of messages with role
            and parts, or {"history" or "contents": […]}. A message that is written again replaces the one of its id,
            but not in a $set, which hides old outputs. Rewound messages stay. A session without a reply is no episode
context     systemInstruction; the text of user messages, followed by a newline: prompts and what Gemini CLI adds to
            them, summaries of a compressed history included; <tool_response> wrappers; <untrusted_context> tags; around
            the output of run_shell_command "Command: …", "Directory: …", "Output: ", "Error: …", "Exit Code: …",
            "Signal: …", "Background PIDs: …", "Process Group PGID: …" and "(empty)"
action      each message of the model: its text, a newline, then each call as <tool_call> JSON </tool_call>.
            Neighbouring messages are one action; one without text is none
env_output  the output of a functionResponse, byte for byte, or its error (channel tool_error), or else its response as
            JSON; results that are text
warning     an error of a call that was cancelled; matches of --warning in an output
exit code   "Exit Code: N" of a shell command
omitted     thoughts; messages of the types info, warning and error; what a result or a call repeats; metadata
left out    images, files, code that the API ran, messages of other types, a result whose call is not in the session
refused     a call without a name"""

_TYPES = {"user": "user", "gemini": "gemini", "model": "gemini"}
"""Type of a message, by its type in a session or its role in contents."""
_NOTICES = ("info", "warning", "error")
_UNTRUSTED = re.compile(r"(<untrusted_context>\n)(.*)(\n</untrusted_context>)", re.DOTALL)
_SHELL_HEAD = re.compile(r"(?:Command: .*?\nDirectory: [^\n]*\n)?Output: (?:\(empty\)(?=\n|\Z))?", re.DOTALL)
_SHELL_TAIL = re.compile(
    r"(?:\nError: [^\n]*)?(?:\nExit Code: (-?\d+|\(none\)))?(?:\nSignal: [^\n]*)?(?:\nBackground PIDs: [^\n]*)?"
    r"(?:\nProcess Group PGID: [^\n]*)?\Z"
)
_SHELL = "run_shell_command"
_SYSTEM, _INSTRUCTIONS = "system", ("systemInstruction", "system_instruction")
"""Type given to the system instruction of contents, and the names of its field."""


def recognise(sample: Sample) -> str | None:
    """Return the evidence of a session of Gemini CLI, or of contents of the Gemini API, or None."""
    for record in sample.records:
        if member(record, "type") == "gemini" and "content" in record:
            return "it has messages of type gemini"
    first = sample.first
    if isinstance(member(first, "sessionId"), str) and ("projectHash" in first or _messages_of(first)):
        return "it has a sessionId with a projectHash or messages, as Gemini CLI writes them"
    if any("parts" in message and member(message, "role") in _TYPES for message in _messages_of(first)):
        return "its messages have a role and parts, as in the Gemini API"
    return None


def read(path: Path, options: ImportOptions) -> Iterator[Trace | Refusal]:
    """Yield the sessions of a file."""
    return read_json(path, partial(_trace, options=options), _sessions)


def _messages_of(record: Any) -> list[Any]:
    """Return the messages of a document; empty for anything else, such as a line of JSONL."""
    found = (
        record
        if isinstance(record, list)
        else next(
            (listed(member(record, name)) for name in ("messages", "history", "contents") if member(record, name)), []
        )
    )
    return [message for message in found if isinstance(message, dict)]


def _sessions(entries: Iterator[Record | Refusal]) -> Iterator[Record | Refusal]:
    """Yield the id and the messages of each session that has a reply."""
    for entry in sessions_of(entries, _session_of):
        if isinstance(entry, Refusal):
            yield entry
            continue
        name = first_id((member(line, "sessionId") for _, line in entry[1]), entry[0])
        messages = _merged(entry[1])
        if any(_TYPES.get(str(_type(message))) == "gemini" for _, message in messages):
            yield entry[0], (name, messages)


def _session_of(line: Any, ids: tuple[str, ...]) -> tuple[str, ...] | None:
    found = member(line, "sessionId")
    if isinstance(found, str):
        return (found,)
    return None if _messages_of(line) else ids


def _type(message: Any) -> Any:
    return member(message, "type") or member(message, "role")


def _merged(lines: Iterable[Record]) -> list[Record]:
    """Return the messages of a session's lines, each id once: as it was last written, where it was first written."""
    found = dict[str, Record]()
    for place, line in lines:
        hiding = member(member(line, "$set"), "messages")
        inside = "$set.messages" if hiding else "messages"
        messages = _messages_of(line) or listed(hiding)
        for field in _INSTRUCTIONS:
            if messages and (instruction := member(line, field)):
                content = member(instruction, "parts") or instruction
                found[field] = (f"{place}.{field}".lstrip("."), {"type": _SYSTEM, "content": content})
        for where, message in [
            (f"{place}.{inside}[{number}]".lstrip("."), each) for number, each in enumerate(messages)
        ]:
            name = str(member(message, "id") or where)
            if not (hiding and name in found):
                found[name] = (where, message)
        if not messages and _type(line) is not None:
            found[str(member(line, "id") or place)] = (place, line)
    return list(found.values())


def _trace(value: Any, where: str, options: ImportOptions) -> Trace:
    name, messages = value
    builder = TraceBuilder(options)
    for place, message in messages:
        with builder.at(place):
            _add(message, builder)
    return builder.trace(name)


def _add(message: Any, builder: TraceBuilder) -> None:
    """Place one message."""
    kind = _type(message)
    parts = _parts_of(message.get("parts") if "parts" in message else message.get("content"))
    if kind in _NOTICES:
        builder.omit(f"messages of the type {kind}", "".join(_words(part) for part in parts))
    elif kind == _SYSTEM:
        _add_user(parts, builder, _SYSTEM)
    elif _TYPES.get(str(kind)) == "user":
        _add_user(parts, builder)
    elif _TYPES.get(str(kind)) == "gemini":
        for thought in listed(message.get("thoughts")):
            builder.omit("reasoning", f"{member(thought, 'subject') or ''}{member(thought, 'description') or ''}")
        tools = [call for call in listed(message.get("toolCalls")) if isinstance(call, dict)]
        _say(parts, tools, builder)
        for call in tools:
            if call.get("result") is not None:
                _answer(call, _parts_of(call["result"]), builder)
    else:
        builder.add(builder.leave_out(f"a message of another type: {kind!r}", "".join(map(_words, parts))))


def _add_user(parts: Iterable[Any], builder: TraceBuilder, channel: str = "user") -> None:
    words, left_out = list[str](), list[TraceSegment]()
    for part in parts:
        if isinstance(response := member(part, "functionResponse"), dict):
            _answer(response, [part], builder)
        elif isinstance(member(part, "text"), str):
            words.append(part["text"])
        else:
            left_out.append(builder.leave_out(f"a part that is not text: {_kind(part)!r}"))
    if words:
        builder.context(f"{''.join(words)}\n", channel)
    builder.add(*left_out)


def _say(parts: Iterable[Any], tools: Iterable[Mapping[str, Any]], builder: TraceBuilder) -> None:
    """Place a message of the model: its words, then the calls in its parts and in `tools`, each id once."""
    words, made, left_out = list[str](), list[Mapping[str, Any]](), list[TraceSegment]()
    for part in parts:
        if isinstance(call := member(part, "functionCall"), dict):
            made.append(call)
        elif not isinstance(member(part, "text"), str):
            left_out.append(builder.leave_out(f"a part that is not text: {_kind(part)!r}"))
        elif member(part, "thought"):
            builder.omit("reasoning", part["text"])
        else:
            words.append(part["text"])
    calls = list[str]()
    for call in (*made, *tools):
        name, call_id = call.get("name"), call.get("id") or f"call_{len(builder.calls.calls)}"
        if not isinstance(name, str):
            raise UnplacedError("a call without a name")
        if str(call_id) in builder.calls.calls:
            continue
        builder.calls.call(str(call_id), name)
        calls.append(tool_call(name, arguments_of(call.get("args"), builder)))
    builder.say("".join(words), calls)
    builder.add_later(*left_out)


def _answer(call: Mapping[str, Any], parts: Iterable[Any], builder: TraceBuilder) -> None:
    """Place a call's result between its wrappers; one without an id answers the first open call of its name."""
    name, call_id = call.get("name"), call.get("id")
    if call_id in builder.calls.answers:
        builder.omit("repeated results")
        return
    segments, exit_code = list[TraceSegment](), None
    for part in parts:
        response = member(part, "functionResponse")
        if isinstance(response, dict):
            added, code = _response(response.get("response"), name, call.get("status") == "cancelled", builder)
            segments += added
            exit_code = code if exit_code is None else exit_code
            segments += [
                builder.leave_out(f"a part that is not text: {_kind(each)!r}") for each in listed(response.get("parts"))
            ]
        elif isinstance(member(part, "text"), str):
            segments += builder.observed(part["text"], TOOL_RESULT)
        else:
            segments.append(builder.leave_out(f"a part that is not text: {_kind(part)!r}"))
    if call_id is None:
        call_id = next((open_id for open_id, note in builder.calls.open.items() if note == name), None)
    if call_id not in builder.calls.open:
        text = "".join(segment.text for segment in segments)
        builder.add(builder.leave_out("a result whose call is not in the session", text))
        return
    builder.calls.answer(call_id)
    builder.answer(segments, exit_code)


def _response(
    response: Any, name: Any, cancelled: bool, builder: TraceBuilder
) -> tuple[list[TraceSegment], int | None]:
    """Return the segments of a functionResponse's response, and its exit code if it has one."""
    output, error = member(response, "output"), member(response, "error")
    segments, exit_code = list[TraceSegment](), None
    if isinstance(output, str):
        segments, exit_code = _output(output, name, builder)
    if isinstance(error, str) and cancelled:
        segments.append(TraceSegment(Role.WARNING, error, HARNESS))
    elif isinstance(error, str):
        segments += builder.observed(error, TOOL_ERROR)
    if not isinstance(output, str) and not isinstance(error, str) and response:
        segments = builder.observed(json_text(response), TOOL_RESULT)
    return segments, exit_code


def _output(text: str, name: Any, builder: TraceBuilder) -> tuple[list[TraceSegment], int | None]:
    """Return the segments of an output, which joined equal `text`, and the exit code if it has one."""
    start, text, end = match.groups() if (match := _UNTRUSTED.fullmatch(text)) else ("", text, "")
    head = _SHELL_HEAD.match(text) if name == _SHELL else None
    tail = _SHELL_TAIL.search(text, head.end()) if head else None
    if head is None or tail is None:
        pieces, exit_code = [start, builder.observed(text, TOOL_RESULT), end], None
    else:
        inner = builder.observed(text[head.end() : tail.start()], TOOL_RESULT)
        pieces = [start, head.group(), inner, tail.group(), end]
        exit_code = None if tail[1] in (None, "(none)") else int(tail[1])
    segments = list[TraceSegment]()
    for piece in pieces:
        segments += [TraceSegment(Role.CONTEXT, piece, WRAPPER)] if isinstance(piece, str) and piece else piece or []
    return segments, exit_code


def _parts_of(content: Any) -> list[Any]:
    """Return a part, a list of parts or a text as parts; texts become parts with a text."""
    parts = content if isinstance(content, list) else [] if content is None else [content]
    return [{"text": part} if isinstance(part, str) else part for part in parts]


def _words(part: Any) -> str:
    text = member(part, "text")
    return text if isinstance(text, str) else ""


def _kind(part: Any) -> str:
    return ", ".join(part) if isinstance(part, dict) else type(part).__name__
