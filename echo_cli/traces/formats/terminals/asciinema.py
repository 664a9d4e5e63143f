"""Casts of asciinema: terminal sessions recorded with or without input events.

Every character that the terminal printed is in a segment, in order. Actions are the typed text if the cast has input
events; otherwise they are the printed text after the prompts that --prompt describes.
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
from echo_cli.traces.formats.terminals.asciicast import EXIT, OUTPUT, Cast, keystrokes, read_cast
from echo_cli.traces.formats.terminals.terminal_line import Span, prompts, shown, skip_sequences, typed
from echo_cli.traces.json_records import member
from echo_cli.traces.recognition import Sample
from echo_cli.trajectory import Role

OPENING, PROMPT, ECHO, TERMINAL, INPUT_CHANNEL = "opening", "prompt", "echo", "terminal", "input"

ROLES = """\
input       a cast of version 1, 2 or 3; one trace. Every character of the output is kept, escape sequences included
context     output before the first action (channel opening); prompts: matches of --prompt at the start of a line's
            visible text, without its escape sequences. Sequences around a prompt belong to it
action      with input events: each entered line as it was typed, backspaces and escape sequences included, up to and
            including the key that ends it: carriage return, newline, Ctrl-C, Ctrl-D, Ctrl-Z or Ctrl-\\. It is placed
            where its first key was pressed. Text that was typed but never entered is the last action. What the terminal
            itself sends is not typed: replies about cursor, attributes, modes, colours and clipboard; focus, mouse.
            Without input events: the output after a prompt, to the end of the line. The turn's command is that line as
            the terminal shows it
warning     with input events, the echo: output between the first key of a line and its last; then, directly after it or
            after the next prompt, output that repeats the rest of the line, and the line's newline. Output that does
            not repeat the typed text, as at a password prompt, is not echo. With or without input events: the end of
            bracketed paste (CSI ?2004l and a carriage return) directly after the newline. Matches of --warning
env_output  all other output
exit code   the session's exit status (event x), on the last turn
omitted     times, markers, resizes
refused     a cast without input events in which --prompt finds no prompt; a cast with a line that is not an event; an
            incomplete last line (with --skip-bad, the rest of the cast is imported)"""

_ENTERED = re.compile("\r\n|[\r\n\x03\x04\x1a\x1c]")
_NEWLINE = re.compile("\r?\n|\r(?!\n)")
_PASTE_OFF = re.compile("\x1b\\[\\?2004l(?:\r(?!\n))?")
"""Output of a line editor when a line is entered: it turns bracketed paste off."""
_CARETS = {"\x03": "^C", "\x04": "^D", "\x1a": "^Z", "\x1c": "^\\"}


@dataclass(frozen=True)
class _Line:
    """A typed line, up to and including the key that entered it."""

    text: str
    first: int
    """Number of characters of output printed before its first key."""
    last: int
    """Number of characters of output printed before its last key."""


def recognise(sample: Sample) -> str | None:
    """Return the evidence of a cast's header, or None."""
    version = member(sample.first, "version")
    named = version in (1, 2, 3) and not {"width", "term", "stdout"}.isdisjoint(sample.first)
    return f"its first line is the header of an asciicast, version {version}" if named else None


def read(path: Path, options: ImportOptions) -> Iterator[Trace | Refusal]:
    """Yield the trace of the cast in a file."""
    try:
        cast = read_cast(path)
        if cast.cut is not None:
            yield Refusal(f"{path}:{cast.cut}", "the last line is incomplete: the recorder was killed while writing it")
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
            "no input events, so the typed text is unknown: describe the shell's prompt with --prompt REGEX"
        )
    else:
        raise UnplacedError("no input events, and --prompt does not match at the start of any line")
    statuses = [int(event.data) for event in cast.events if event.code == EXIT]
    builder.observe([], statuses[-1] if statuses else None)
    header = {name: cast.header[name] for name in ("title", "command") if isinstance(cast.header.get(name), str)}
    return builder.trace(path.name, meta={"cast_version": cast.version, **header})


def _lines(cast: Cast) -> list[_Line]:
    """Return the typed lines of a cast."""
    lines: list[_Line] = []
    pending, first, last = "", 0, 0
    for data, printed in keystrokes(cast):
        first, last = first if pending else printed, printed
        pending += data
        while entered := _ENTERED.search(pending):
            lines.append(_Line(pending[: entered.end()], first, printed))
            pending, first = pending[entered.end() :], printed
    if pending:
        lines.append(_Line(pending, first, last))
    return lines


def _with_input(builder: TraceBuilder, output: str, lines: Sequence[_Line], found: Sequence[Span]) -> None:
    """Place the typed lines, and the output before and after each."""
    marks = deque(_marks(output, lines, found))
    _print(builder, output, (0, lines[0].first), marks)
    for line, end in zip(lines, _ends(output, lines), strict=True):
        builder.act(line.text, INPUT_CHANNEL, command=line.text.removesuffix("\n").removesuffix("\r"))
        _print(builder, output, (line.first, end), marks)


def _on_screen(builder: TraceBuilder, output: str, found: Sequence[Span], columns: int) -> None:
    """Place output without input events: an action is the text after each prompt."""
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
    """Return the end of the output after each line, in characters: the first key of the next line."""
    return [*(line.first for line in lines[1:]), len(output)]


def _print(builder: TraceBuilder, output: str, span: Span, marks: deque[tuple[Span, Role, str]]) -> None:
    """Add a span of the output: marked parts, popped from `marks`, and the rest as observation or opening context."""
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
    """Return the prompts and echoes of the output, in order, split at the first key of each line.

    The escape sequences after a prompt may be printed after the first key. A prompt that is redrawn within an echo is
    part of the echo.
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
    """Return whether `span` overlaps one of `others`, which are sorted and disjoint."""
    before = bisect_left(others, (span[1], 0))
    return before > 0 and others[before - 1][1] > span[0]


def _echoes(output: str, lines: Sequence[_Line], found: Sequence[Span]) -> list[Span]:
    """Return the spans of the output that repeat typed text."""
    echoes: list[Span] = []
    waiting: deque[str] = deque()
    """Parts of entered lines still to be repeated; several if nothing was printed between the lines."""
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
    """Return the start of a line's output: after the line editor's end of bracketed paste, if there is one."""
    found = _PASTE_OFF.match(output, start, end)
    return start if found is None else found.end()


def _unrepeated(line: _Line, printed: str) -> str:
    """Return the part of a line that is still to be repeated after it is entered: at least its ending."""
    entered = _ENTERED.search(line.text)
    text, ending = (line.text, "") if entered is None else (line.text[: entered.start()], entered.group())
    so_far = shown(printed).text
    if so_far:
        text = text[len(so_far) :] if text.startswith(so_far) else ""
    return text + ending


def _repeated(output: str, start: int, end: int, line: str) -> int:
    """Return the end of the output that repeats `line`; `start` if it does not repeat all of `line`."""
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
