"""Casts of asciinema: terminal sessions, recorded with what was typed or without it.

Every character that the terminal printed is in a segment, in order. What was typed is an action where the cast has
input events; where it has none, actions are read off the screen, behind the prompts that --prompt describes.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from echo_cli.trace import Trace, TraceSegment
from echo_cli.traces.builder import ImportOptions, Refusal, TraceBuilder, UnplacedError
from echo_cli.traces.formats.asciicast import EXIT, INPUT, OUTPUT, Cast, read_cast
from echo_cli.traces.formats.terminal_line import Span, prompts, shown, skip_sequences, typed
from echo_cli.trajectory import Role

OPENING, PROMPT, ECHO, TERMINAL, INPUT_CHANNEL = "opening", "prompt", "echo", "terminal", "input"

ROLES = """\
input       a cast of version 1, 2 or 3; one trace. Its output is there character by character, escape sequences too
context     what is printed before the first action (channel opening); prompts, where --prompt matches at the start of a
            line, on what the line shows: escape sequences are skipped, and those around a prompt go with it
action      with input events: each line that was entered, as it was typed, backspaces and escape sequences included, up
            to and with its end: carriage return, newline, Ctrl-C, Ctrl-D, Ctrl-Z or Ctrl-\\. It stands where its first
            key was pressed. What was typed and never entered is the last action.
            Without: what stands behind a prompt, to the end of its line. The turn's command is what that line shows
warning     with input events, the echo: what is printed between the first key of a line and its end; and behind its end
            (or the prompt after it) what repeats the rest of the line, with the line's newline. What does not repeat
            what was typed, as at a password, is no echo. Without input events too, directly behind the newline: the end
            of bracketed paste (CSI ?2004l and a carriage return). What --warning matches
env_output  all else that is printed
exit code   that of the last turn is the session's (event x)
left out    times, markers, changes of size
refused     a cast with no input events and no prompt that --prompt finds; a line that is no event, with the whole cast;
            a last line that was cut (with --skip-bad the cast without it is taken)"""

_ENTERED = re.compile("\r\n|[\r\n\x03\x04\x1a\x1c]")
_NEWLINE = re.compile("\r?\n|\r(?!\n)")
_PASTE_OFF = re.compile("\x1b\\[\\?2004l(?:\r(?!\n))?")
"""What a line editor prints when a line has been entered: no more bracketed paste."""
_CARETS = {"\x03": "^C", "\x04": "^D", "\x1a": "^Z", "\x1c": "^\\"}


@dataclass(frozen=True)
class _Line:
    """What was typed, up to where it was entered; and how much had been printed at its first key, and at its last."""

    text: str
    first: int
    last: int


def read(path: Path, options: ImportOptions) -> Iterator[Trace | Refusal]:
    """Yield the cast in a file."""
    try:
        cast = read_cast(path)
        if cast.cut is not None:
            yield Refusal(f"{path}:{cast.cut}", "the last line is cut: the recorder was killed while it wrote it")
        yield _trace(cast, path, options)
    except UnplacedError as error:
        yield Refusal(f"{path}{error.place}", error.reason)
    except ValueError as error:
        yield Refusal(str(path), str(error))


def _trace(cast: Cast, path: Path, options: ImportOptions) -> Trace:
    output = "".join(event.data for event in cast.events if event.code == OUTPUT)
    found = [] if options.prompt is None else prompts(output, options.prompt)
    lines = _lines(cast)
    builder = TraceBuilder(options)
    if lines:
        _with_input(builder, output, lines, found)
    elif found:
        _on_screen(builder, output, found, cast.columns)
    elif options.prompt is None:
        raise UnplacedError(
            "no input events, so nothing says what was typed: --prompt REGEX says what prompts look like"
        )
    else:
        raise UnplacedError("no input events, and --prompt matches at the start of no line")
    statuses = [int(event.data) for event in cast.events if event.code == EXIT]
    builder.observe([], statuses[-1] if statuses else None)
    header = {name: cast.header[name] for name in ("title", "command") if isinstance(cast.header.get(name), str)}
    return builder.trace(path.name, meta={"cast_version": cast.version, **header})


def _lines(cast: Cast) -> list[_Line]:
    """What was typed, line by line."""
    lines: list[_Line] = []
    pending, first, last, printed = "", 0, 0, 0
    for event in cast.events:
        if event.code == OUTPUT:
            printed += len(event.data)
        elif event.code == INPUT and event.data:
            first, last = first if pending else printed, printed
            pending += event.data
            while entered := _ENTERED.search(pending):
                lines.append(_Line(pending[: entered.end()], first, printed))
                pending, first = pending[entered.end() :], printed
    if pending:
        lines.append(_Line(pending, first, last))
    return lines


def _with_input(builder: TraceBuilder, output: str, lines: Sequence[_Line], found: Sequence[Span]) -> None:
    """Place the output around and behind what was typed."""
    marks = deque(_marks(output, lines, found))
    _print(builder, output, (0, lines[0].first), marks)
    for line, end in zip(lines, _ends(output, lines), strict=True):
        builder.act(line.text, INPUT_CHANNEL, command=line.text.removesuffix("\n").removesuffix("\r"))
        _print(builder, output, (line.first, end), marks)


def _on_screen(builder: TraceBuilder, output: str, found: Sequence[Span], columns: int) -> None:
    """Place output that prompts divide: what is typed stands behind each."""
    if found[0][0]:
        builder.context(output[: found[0][0]], OPENING)
    ends = [*(start for start, _ in found[1:]), len(output)]
    for (start, end), following in zip(found, ends, strict=True):
        newline = output.find("\n", end, following)
        entered = following if newline < 0 else newline + 1
        drawn_again = newline < 0 and following < len(output)
        builder.context(output[start : entered if drawn_again else end], PROMPT)
        if not drawn_again and entered > end:
            action = output[end:entered]
            builder.act(action, TERMINAL, command=typed(action, output[start:end], columns))
        begins = entered if newline < 0 else _line_edited(output, entered, following)
        if begins > entered:
            builder.observe([TraceSegment(Role.WARNING, output[entered:begins], ECHO)])
        builder.observe(builder.observed(output[begins:following], TERMINAL))


def _ends(output: str, lines: Sequence[_Line]) -> list[int]:
    """Where the output behind each line ends: at the first key of the next."""
    return [*(line.first for line in lines[1:]), len(output)]


def _print(builder: TraceBuilder, output: str, span: Span, marks: deque[tuple[Span, Role, str]]) -> None:
    """Add a piece of the output: what is marked, off `marks`; the rest as observed, or as context before any action."""
    opening = not builder.commands
    position, end = span
    while position < end:
        if marks and marks[0][0][0] == position:
            (_, stop), role, channel = marks.popleft()
            builder.observe([TraceSegment(role, output[position:stop], channel)])
        else:
            stop = min(end, marks[0][0][0]) if marks else end
            if opening:
                builder.context(output[position:stop], OPENING)
            else:
                builder.observe(builder.observed(output[position:stop], TERMINAL))
        position = stop


def _marks(output: str, lines: Sequence[_Line], found: Sequence[Span]) -> list[tuple[Span, Role, str]]:
    """Prompts and echoes of the output, in order, none across the first key of a line.

    The sequences behind a prompt may have been printed after the first key. A prompt that is drawn again within an
    echo is part of it.
    """
    echoes = _echoes(output, lines, found)
    cuts = sorted({line.first for line in lines})
    alone = []
    for start, end in found:
        inside = [cut for cut in cuts[bisect_right(cuts, start) : bisect_left(cuts, end)]]
        alone += [piece for piece in pairwise([start, *inside, end]) if not _overlaps(piece, echoes)]
    marks = [(span, Role.CONTEXT, PROMPT) for span in alone] + [(span, Role.WARNING, ECHO) for span in echoes]
    return sorted(marks)


def _overlaps(span: Span, others: Sequence[Span]) -> bool:
    """Whether one of `others`, which are in order and apart, has a character of `span`."""
    before = bisect_left(others, (span[1], 0))
    return before > 0 and others[before - 1][1] > span[0]


def _echoes(output: str, lines: Sequence[_Line], found: Sequence[Span]) -> list[Span]:
    """Where the output repeats what was typed."""
    echoes: list[Span] = []
    waiting: deque[str] = deque()
    """What of entered lines has not been repeated, of those with nothing printed between them."""
    for line, end in zip(lines, _ends(output, lines), strict=True):
        if line.last > line.first:
            echoes.append((line.first, line.last))
        waiting.append(_unrepeated(line, output[line.first : line.last]))
        if end == line.first:
            continue
        behind = found[bisect_left(found, (line.last, 0)) : bisect_right(found, (end, 0))]
        printed = line.last
        for place in (line.last, *(stop for _, stop in behind)):
            if waiting and place >= printed and (stop := _repeated(output, place, end, waiting[0])) > place:
                echoes.append((place, stop))
                waiting.popleft()
                printed = stop
        waiting.clear()
    return echoes


def _line_edited(output: str, start: int, end: int) -> int:
    """Where the output of a line begins, behind what the line's editor says at its end."""
    found = _PASTE_OFF.match(output, start, end)
    return start if found is None else found.end()


def _unrepeated(line: _Line, printed: str) -> str:
    """What of a line is still to be repeated when it has been entered: its end at least, if anything was printed."""
    entered = _ENTERED.search(line.text)
    text, ending = (line.text, "") if entered is None else (line.text[: entered.start()], entered.group())
    so_far = shown(printed).text
    if so_far:
        text = text[len(so_far) :] if text.startswith(so_far) else ""
    return text + ending


def _repeated(output: str, start: int, end: int, line: str) -> int:
    """Where what repeats `line` ends in the output; `start` where nothing does, or not all of it."""
    position = start
    for character in line:
        position = skip_sequences(output, position)
        if character in "\r\n":
            newline = _NEWLINE.match(output, position, end)
            return start if newline is None else _line_edited(output, newline.end(), end)
        expected = _CARETS.get(character, character)
        if not output.startswith(expected, position, end):
            return start
        position += len(expected)
    if line and line[-1] in _CARETS:
        newline = _NEWLINE.match(output, position, end)
        position = position if newline is None else newline.end()
    return position
