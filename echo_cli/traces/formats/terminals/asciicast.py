"""Reader of asciinema's casts: the output and input of a terminal, event by event.

Source: asciinema's specifications of asciicast v1, v2 and v3, which require that unknown event codes are skipped.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate, compress
from pathlib import Path
from typing import Any

from echo_cli.traces.builder import UnplacedError
from echo_cli.traces.input_file import input_file
from echo_cli.traces.json_records import member
from echo_cli.traces.strict_json import parse_json

OUTPUT, INPUT, EXIT = "o", "i", "x"
"""Codes of the events that a `Cast` keeps."""

_KEPT = (OUTPUT, INPUT, EXIT)
_COMMENT = b"#"

_REPLY = re.compile(
    r"""\x1b (?:
        (?P<f3> \[1;[2-8]R )                                 # a cursor in the first row, or F3 with modifiers
      | (?P<short> \[ (?: [IO] | M[^\r\n]{3} ) )            # focus, mouse
      | \[ (?: <[0-9;]+[Mm] | [0-9]+;[0-9]+;[0-9]+M )       # mouse
      | \[ \??[0-9]+;[0-9]+(?:;[0-9]+)?R                    # position of the cursor
      | \[ (?: [?>=][0-9;]*[cnuS] | [0-9;]+[cn] )           # attributes, status, keyboard flags, graphics
      | \[ (?: \??[0-9;]+\$y | [0-9;]+t )                   # modes, window
      | \] [0-9]+;[^\x07\x1b\r\n]* (?: \x07 | \x1b\\ )     # OSC: colours, clipboard
      | P [0-9>!][^\x1b\r\n]* \x1b\\                       # DCS: version, settings, attributes
      | _ G[^\x1b\r\n]* \x1b\\                             # APC: graphics
    )""",
    re.VERBOSE,
)
"""What a terminal itself sends: replies to a program's queries, and reports of focus and mouse."""
_CURSOR_QUERY = re.compile(r"\x1b\[\??6n")


@dataclass(frozen=True)
class CastEvent:
    """One event of a cast."""

    code: str
    data: str


@dataclass(frozen=True)
class Cast:
    """A recorded terminal session."""

    version: int
    header: Mapping[str, Any]
    events: tuple[CastEvent, ...]
    cut: int | None = None
    """Number of the last line, 1-based, if it is incomplete and so not among the events: the recorder was killed."""

    @property
    def columns(self) -> int:
        """Width of the terminal at the start, columns; 0 if the header does not state it."""
        terminal = self.header.get("term")
        found = terminal.get("cols") if isinstance(terminal, dict) else self.header.get("width")
        return found if type(found) is int and found > 0 else 0


def keystrokes(cast: Cast) -> list[tuple[str, int]]:
    """Return the typed text of each input event, and the number of characters of output printed before it.

    What the terminal itself sends is not typed, and events without typed text are omitted. A long reply may be split
    over several events; a short report is one only within an event, since keys can spell it.
    """
    inputs, printed, asked = list[tuple[str, int]](), 0, False
    for event in cast.events:
        if event.code == OUTPUT:
            printed += len(event.data)
            asked = asked or _CURSOR_QUERY.search(event.data) is not None
        elif event.code == INPUT:
            inputs.append((event.data, printed))
    text = "".join(data for data, _ in inputs)
    starts = [*accumulate((len(data) for data, _ in inputs), initial=0)]
    is_typed = [True] * len(text)
    for found in _REPLY.finditer(text):
        split = bisect_right(starts, found.start()) <= bisect_left(starts, found.end()) - 1
        if not (found["f3"] and not asked) and not (found["short"] and split):
            is_typed[found.start() : found.end()] = [False] * len(found.group())
    typed = (("".join(compress(data, is_typed[start:])), at) for (data, at), start in zip(inputs, starts, strict=False))
    return [(data, at) for data, at in typed if data]


def read_cast(path: Path) -> Cast:
    """Read the cast in a file, which is loaded whole.

    Raises:
        UnplacedError: the file is not a cast of version 1, 2 or 3; `place` is formatted to follow the file's name, as
            `:12` or `: stdout[3]`.
        OSError: the file cannot be read.
    """
    with input_file(path) as file:
        data = file.read().removeprefix(b"\xef\xbb\xbf")
    if not data.strip():
        raise UnplacedError("an empty file")
    lines = data.split(b"\n")
    try:
        header = parse_json(lines[0].decode())
    except ValueError:
        header = None
    if isinstance(header, dict) and header.get("version") in (2, 3):
        return _events(header, lines)
    try:
        document = parse_json(data.decode())
    except ValueError as error:
        raise UnplacedError(f"not a cast: its header is not JSON: {error}", ":1") from error
    version = member(document, "version")
    if version != 1 or isinstance(version, bool):
        raise UnplacedError(f"not a cast of version 1, 2 or 3: version {version!r}", ":1")
    return _frames(document)


def _events(header: Mapping[str, Any], lines: list[bytes]) -> Cast:
    """Read a cast of version 2 or 3: a header, then one event per line."""
    version: int = header["version"]
    events: list[CastEvent] = []
    for number, line in enumerate(lines[1:], start=2):
        if not line.strip() or (version == 3 and line.startswith(_COMMENT)):
            continue
        try:
            value = parse_json(line.decode())
        except ValueError as error:
            if number == len(lines):  # the last line, without a newline
                return Cast(version, header, tuple(events), cut=number)
            raise UnplacedError(f"not JSON: {error}", f":{number}") from error
        event = _event(value, f":{number}")
        if event.code in _KEPT:
            events.append(event)
    return Cast(version, header, tuple(events))


def _event(value: Any, place: str) -> CastEvent:
    if not isinstance(value, list) or len(value) != 3 or not _is_time(value[0]) or not isinstance(value[1], str):
        raise UnplacedError("not an event: [time, code, data]", place)
    _, code, data = value
    if code == EXIT:
        if isinstance(data, bool) or not isinstance(data, (int, str)) or not re.fullmatch(r"-?[0-9]{1,10}", str(data)):
            raise UnplacedError("the exit status is not a number", place)
        return CastEvent(code, str(data))
    if code in _KEPT and not isinstance(data, str):
        raise UnplacedError(f"the data of an event {code!r} is not text", place)
    return CastEvent(code, data if isinstance(data, str) else "")


def _frames(document: Mapping[str, Any]) -> Cast:
    """Read a cast of version 1: frames of output."""
    frames = document.get("stdout")
    if not isinstance(frames, list):
        raise UnplacedError("a cast of version 1 without stdout")
    events = []
    for number, frame in enumerate(frames):
        if not isinstance(frame, list) or len(frame) != 2 or not _is_time(frame[0]) or not isinstance(frame[1], str):
            raise UnplacedError("not a frame: [delay, data]", f": stdout[{number}]")
        events.append(CastEvent(OUTPUT, frame[1]))
    return Cast(1, document, tuple(events))


def _is_time(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
