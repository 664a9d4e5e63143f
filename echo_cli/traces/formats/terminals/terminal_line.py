"""Visible text of a terminal's output: escape sequences skipped, prompts found, line edits applied.

Escape sequences follow ECMA-48: control sequences (CSI), command strings (OSC, DCS, SOS, PM, APC) and short
sequences of ESC and a final character. An incomplete sequence is text.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass

from rich.cells import cell_len

Span = tuple[int, int]
"""Start and end (exclusive) of a part of a text, in characters."""

_SEQUENCE = re.compile(
    r"""\x1b (?:
        \[ [0-?]* [\ -/]* [@-~]                          # CSI
      | \] [^\x07\x1b]* (?: \x07 | \x1b\\ )              # OSC
      | [PX^_] [^\x1b]* \x1b\\                           # DCS, SOS, PM, APC
      | [\ -/]* [0-OQ-WYZ\\`-~]
    )""",
    re.VERBOSE,
)
_LINE = re.compile(r"(?:\A|\n|\r(?!\n))([^\r\n]*)")
_WIDEST = 4096
"""Maximum number of characters that one sequence moves, inserts or deletes."""
_EDIT = re.compile(r"\x1b\[([0-9]{0,9})([CDKP@])")


@dataclass(frozen=True)
class Shown:
    """Visible text of a terminal's raw text, with a map of positions back to the raw text."""

    text: str
    _starts: tuple[int, ...]
    """Positions in `text` at which runs without an escape sequence begin."""
    _raw_starts: tuple[int, ...]
    """Positions of the same runs in the raw text."""

    def raw(self, position: int) -> int:
        """Return the raw position of a character of `text`; the end of `text` maps to the end of the raw text."""
        run = bisect_right(self._starts, position) - 1
        return self._raw_starts[run] + position - self._starts[run]

    def raw_after(self, position: int) -> int:
        """Return the raw position directly after the character that precedes `position`."""
        return self.raw(position - 1) + 1 if position else 0


def shown(raw: str) -> Shown:
    """Return the visible text of `raw`."""
    texts, starts, raw_starts, length, end = [], [], [], 0, 0
    for start, stop in [*(match.span() for match in _SEQUENCE.finditer(raw)), (len(raw), len(raw))]:
        if start > end:
            texts.append(raw[end:start])
            starts.append(length)
            raw_starts.append(end)
            length += start - end
        end = stop
    return Shown("".join(texts), (*starts, length), (*raw_starts, len(raw)))


def prompts(raw: str, pattern: str) -> list[Span]:
    """Return the spans of the prompts in `raw`, which are at the start of a line, after a newline or carriage return.

    `pattern` is matched against the visible text of each line. A span includes the escape sequences before and after
    the prompt, up to the next visible character. An empty match is not a prompt.
    """
    text, prompt = shown(raw), re.compile(pattern)
    spans = []
    for line in _LINE.finditer(text.text):
        start = line.start(1)
        found = prompt.match(line.group(1))
        if found and found.group():
            spans.append((text.raw_after(start), text.raw(start + found.end())))
    return spans


def skip_sequences(raw: str, position: int) -> int:
    """Return the position of the first visible character at or after `position`."""
    while found := _SEQUENCE.match(raw, position):
        position = found.end()
    return position


def typed(raw: str, prompt: str = "", columns: int = 0) -> str:
    """Return the text after the prompt in a line of output, as the terminal shows it after all edits.

    A backspace moves the cursor one character back; text written there replaces the old text. A carriage return moves
    to the start of the row, prompt included. After a space that a line editor wrote only to make the terminal wrap, it
    removes the space instead. CSI C and D move the cursor, K clears the rest of the line, P deletes characters and
    @ inserts spaces. Other sequences and bells are ignored.

    Args:
        prompt: text before `raw` in the line.
        columns: width of the terminal, columns; 0 if rows do not wrap.
    """
    start = cell_len(shown(prompt).text)
    line = [" "] * start
    cursor, position = start, 0
    longest = start + len(raw)  # inserted spaces beyond it cannot be overwritten with text
    while position < len(raw):
        if sequence := _SEQUENCE.match(raw, position):
            if edit := _EDIT.fullmatch(sequence.group()):
                cursor = _edited(line, cursor, edit[2], edit[1])
                del line[longest:]
            position = sequence.end()
            continue
        character = raw[position]
        position += 1
        if character == "\b":
            cursor = max(0, cursor - 1)
        elif character == "\r":
            wrapped = start < cursor == len(line) and line[-1] == " " and raw[position : position + 1] >= " "
            if wrapped:
                line.pop()
            cursor -= 1 if wrapped else cursor % columns if columns else cursor
        elif character not in "\n\a":
            line[cursor : cursor + 1] = [character]
            cursor += 1
    return "".join(line[start:])


def _edited(line: list[str], cursor: int, command: str, parameter: str) -> int:
    """Apply a control sequence to a line, and return the new position of the cursor."""
    count = min(max(1, int(parameter or 1)), _WIDEST)
    if command == "C":
        return min(cursor + count, len(line))
    if command == "D":
        return max(0, cursor - count)
    if command == "@":
        line[cursor:cursor] = [" "] * count
    elif command == "P":
        del line[cursor : cursor + count]
    elif parameter in ("", "0"):
        del line[cursor:]
    return cursor
