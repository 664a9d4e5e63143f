"""Reading of foreign JSON files, record by record; a record that is invalid or fits no trace gives a refusal."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from echo_cli.trace import Trace, TraceSegment
from echo_cli.traces.builder import Record, Refusal, TraceBuilder, UnplacedError, json_text
from echo_cli.traces.containers.tables import is_table, rows
from echo_cli.traces.cursor import Cursor
from echo_cli.traces.input_file import TOO_LONG, input_file, lines_of
from echo_cli.traces.strict_json import TOO_DEEP, json_value, parse_json

_LINES = {".jsonl", ".ndjson"}
_COMPRESSED = {".gz", ".bz2", ".xz", ".zst"}
OPEN_SESSIONS = 16
"""Number of sessions of a log whose records may alternate."""
_PLACE = re.compile(r":(\d+)$|(\[\d+\])$")
"""Line number, or index in a list, at the end of a record's place."""


def read_json(
    path: Path,
    read: Callable[[Any, str], Trace],
    expand: Callable[[Iterator[Record | Refusal]], Iterator[Record | Refusal]] = iter,
    *,
    cursor: Cursor | None = None,
) -> Iterator[Trace | Refusal]:
    """Yield the trace that `read` returns for each record of a file, or a refusal if it raises ValueError.

    Args:
        read: takes a record and its place.
        expand: adds records that are embedded in other records.
        cursor: place to begin at, moved from record to record; only where no trace depends on an earlier record.

    Raises:
        OSError: the file cannot be read.
    """
    return read_records(expand(records(path, cursor)), read)


def read_records(entries: Iterable[Record | Refusal], read: Callable[[Any, str], Trace]) -> Iterator[Trace | Refusal]:
    """Yield the trace that `read` returns for each record, or a refusal if it raises ValueError."""
    for entry in entries:
        if isinstance(entry, Refusal):
            yield entry
            continue
        where, value = entry
        try:
            yield read(value, where)
        except UnplacedError as error:
            yield Refusal(f"{where}: {error.place}" if error.place else where, error.reason)
        except ValueError as error:
            yield Refusal(where, str(error))
        except RecursionError:
            yield Refusal(where, TOO_DEEP)


def sessions_of(
    entries: Iterable[Record | Refusal], ids_of: Callable[[Any, tuple[str, ...]], tuple[str, ...] | None]
) -> Iterator[Record | Refusal]:
    """Yield each session of a log whose records are parts of sessions: its place, and the list of its records.

    A record's place is then its line, or its index in a list. The records of sessions that ran at the same time may
    alternate: memory holds up to `OPEN_SESSIONS` sessions, and the one that has had no record for longest is yielded
    when another begins. A damaged record is refused where it stands, and its session goes on without it.

    Args:
        ids_of: takes a record and the ids of the record before it, and returns the ids of its own session. The first
            id is the session's; records that name no session return the ids that they were given. None if the record
            is a session by itself.
    """
    sessions, ids = dict[str, tuple[str, list[Record]]](), tuple[str, ...]()
    for entry in entries:
        if isinstance(entry, Refusal):
            yield entry
            continue
        where, record = entry
        found = ids_of(record, ids)
        place = _PLACE.search(where)
        line = ("" if place is None else f"line {place[1]}" if place[1] else place[2], record)
        if found is None:
            yield from sessions.values()
            yield where, [line]
            sessions, ids = {}, ()
            continue
        name = found[0] if found else ""
        unnamed = sessions.pop("", None) if name else None  # records before the first that names its session
        begun = sessions.pop(name, None)
        start, session = begun or unnamed or (where, [])
        session.append(line)
        sessions[name] = start, session  # the last to have a record
        ids = found
        if len(sessions) > OPEN_SESSIONS:
            yield sessions.pop(next(iter(sessions)))
    yield from sessions.values()


def records(path: Path, cursor: Cursor | None = None) -> Iterator[Record | Refusal]:
    """Yield the records of a file: its JSON values, the items of a list of records, or the rows of a table.

    Args:
        cursor: place to begin at, moved to each line of JSONL, or row, that is read.

    Raises:
        EchoError: a table cannot be read, or its package is not installed.
        OSError: the file cannot be read.
    """
    return rows(path, cursor) if is_table(path) else _flattened(_json_values(path, cursor))


def _json_values(path: Path, cursor: Cursor | None) -> Iterator[Record | Refusal]:
    """Yield each JSON value of a file with its place: the lines of JSONL one at a time, or one document, read whole.

    A file is JSONL if its suffix says so, or if its first non-empty line is a complete value.
    """
    with input_file(path, cursor) as file:
        # Read once: the path may be a pipe, which cannot be read again.
        lines = lines_of(file, cursor)
        inside = cursor is not None and cursor.offset > 0
        if inside or (path.with_suffix("") if path.suffix in _COMPRESSED else path).suffix in _LINES:
            yield from _records(lines, path)
            return
        number, first = next(((number, line) for number, line in lines if line is None or line.strip()), (1, b""))
        if first is not None and isinstance(json_value(first, ""), Refusal):
            value = json_value(b"\n" * (number - 1) + first + file.read(), str(path), document=True)
            yield value if isinstance(value, Refusal) else (str(path), value[0])
        else:
            yield from _records(chain([(number, first)], lines), path)


def _flattened(values: Iterable[Record | Refusal]) -> Iterator[Record | Refusal]:
    """Yield the records among JSON values: each item of a list of records; a list of messages is one record."""
    for entry in values:
        if isinstance(entry, Refusal) or not isinstance(entry[1], list) or _are_messages(entry[1]):
            yield entry
        else:
            where, records = entry
            yield from ((f"{where}[{number}]", record) for number, record in enumerate(records))


def member(value: Any, name: str) -> Any:
    """Return the value under `name` in a JSON object; None if it is missing or `value` is not an object."""
    return value.get(name) if isinstance(value, dict) else None


def listed(value: Any) -> list[Any]:
    """Return a list as it is, and an empty list for any other value."""
    return value if isinstance(value, list) else []


def text_or_json(value: Any) -> str:
    """Return a text as it is, nothing for null, and any other value as JSON."""
    return value if isinstance(value, str) else "" if value is None else json_text(value)


def unquoted(value: Any) -> Any:
    """Return the value of JSON text; any other value, as well as text that is not JSON, as it is."""
    try:
        return parse_json(value) if isinstance(value, str) else value
    except ValueError:
        return value


def parts_of(content: Any, builder: TraceBuilder, kinds: Sequence[str] = ("text",)) -> tuple[str, list[TraceSegment]]:
    """Return the text of a message's content, joined without a separator, and warnings for its other parts.

    Args:
        content: text, or a list of parts: texts, or objects with a `type`.
        kinds: types of the parts that hold text, each under the name of its type.

    Raises:
        UnplacedError: the content is neither text nor a list of parts, or the builder's options are strict and a part
            is not text.
    """
    if isinstance(content, str):
        return content, []
    if not isinstance(content, list):
        raise UnplacedError("a message without text")
    texts, left_out = list[str](), list[TraceSegment]()
    for part in content:
        kind = member(part, "type")
        text = part if isinstance(part, str) else member(part, kind) if kind in kinds else None
        if isinstance(text, str):
            texts.append(text)
        else:
            left_out.append(builder.leave_out(f"a part that is not text: {kind!r}"))
    return "".join(texts), left_out


def tools_of(record: Any, name: str, place: str = "") -> list[str]:
    """Return the tools, JSON objects listed under `name` in a record, each as text; empty if `name` is missing.

    Args:
        place: path of the list in the document, by default `name`.

    Raises:
        UnplacedError: the value under `name` is not a list of objects.
    """
    tools = member(record, name)
    if tools is None:
        return []
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise UnplacedError("not a list of tools", place or name)
    return [json_text(tool) for tool in tools]


def tools_in(record: Any, builder: TraceBuilder) -> list[str]:
    """Return the tools of a record as `tools_of` does, from a list or from JSON text; others are left out.

    Raises:
        UnplacedError: the tools are not a list of objects, and the builder's options are strict.
    """
    tools = member(record, "tools")
    try:
        return tools_of({"tools": unquoted(tools) or None}, "tools")
    except UnplacedError:
        with builder.at("tools"):  # counted, without a warning: the tools are no message
            builder.leave_out("tools that are not a list of objects", tools if isinstance(tools, str) else "")
        return []


def arguments_of(arguments: Any, builder: TraceBuilder) -> Any:
    """Return the arguments of a tool call for `builder.tool_call`: JSON text as it is, or a value.

    Missing, null and empty arguments are an empty object. Text that is not JSON, which a model can write, is a JSON
    string, since it is the call's text all the same.

    Raises:
        UnplacedError: the arguments are not JSON, or are empty, and the builder's options are strict.
    """
    if arguments is None or (isinstance(arguments, str) and not arguments.strip()):
        builder.repair("empty arguments of a tool call, read as {}")
        return {}
    if not isinstance(arguments, str):
        return arguments
    try:
        parse_json(arguments)
    except ValueError as error:
        builder.repair(f"the arguments of a tool call are not JSON, kept as text: {error}")
        return json_text(arguments)
    return arguments


def reward_of(record: Mapping[str, Any], *names: str, builder: TraceBuilder) -> float | None:
    """Return the value of the first of `names` that is present and not null; None if there is none.

    true and false are 1 and 0. Any other value that is not a number is left out, with a warning at the trace's end.

    Raises:
        UnplacedError: the value is not a number, and the builder's options are strict.
    """
    for name in names:
        value = record.get(name)
        if value is None:
            continue
        if isinstance(value, bool):
            builder.repair(f"{name} is true or false, read as 1 or 0")
            return float(value)
        try:
            if isinstance(value, (int, float)):
                return float(value)
            problem = f"{name} is not a number"
        except OverflowError:
            problem = f"{name} is too large"
        with builder.at(name):
            builder.add_later(builder.leave_out(problem, value if isinstance(value, str) else ""))
        return None
    return None


def task_of(record: Mapping[str, Any], where: str) -> str:
    """Return the task id of a conversation's record, or the record's place if it has none."""
    return first_id((record.get(name) for name in ("task_id", "instance_id", "id")), where)


def first_id(values: Iterable[Any], where: str) -> str:
    """Return the first of `values` that can be an id (text or an integer), or else the file name in `where`."""
    ids = (str(value) for value in values if isinstance(value, (str, int)) and not isinstance(value, bool))
    return next(ids, Path(where).name)


def messages_in(record: Any) -> list[Any]:
    """Return the messages of a conversation's record, a list of them or one of `messages`; empty if it has none.

    `messages` may be JSON text, as in data sets whose rows differ in their fields.
    """
    return record if isinstance(record, list) else listed(unquoted(member(record, "messages")))


def messages_of(record: Any) -> tuple[Mapping[str, Any], list[Any]]:
    """Return a conversation's record as an object, and its messages; a bare list of messages becomes an object.

    Raises:
        UnplacedError: there are no messages.
    """
    messages = messages_in(record)
    if not messages:
        raise UnplacedError("no messages")
    return record if isinstance(record, dict) else {"messages": record}, messages


def _are_messages(values: list[Any]) -> bool:
    """Return whether a list is one conversation: messages, or items of OpenAI's Responses."""
    if not values or not isinstance(values[0], dict):
        return not values
    return bool({"role", "call_id"} & values[0].keys()) or values[0].get("type") == "reasoning"


def _records(lines: Iterable[tuple[int, bytes | None]], path: Path) -> Iterator[Record | Refusal]:
    for number, line in lines:
        where = f"{path}:{number}"
        if line is None:
            yield Refusal(where, TOO_LONG)
        elif line.strip():
            value = json_value(line, where)
            yield value if isinstance(value, Refusal) else (where, value[0])
