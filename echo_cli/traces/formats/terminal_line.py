"""What lines of a terminal's output show: escape sequences skipped, prompts found, backspaces applied.

Escape sequences are those of ECMA-48: control sequences (CSI), command strings (OSC, DCS, SOS, PM, APC), and the short
ones of an escape and what follows it. One that is not complete is text.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass

from rich.cells import cell_len

Span = tuple[int, int]
"""Where a piece of a text begins and ends, in characters."""

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
"""The most characters that one sequence moves, inserts or deletes."""
_EDIT = re.compile(r"\x1b\[([0-9]{0,9})([CDKP@])")


@dataclass(frozen=True)
class Shown:
    """A terminal's text without its escape sequences, and where each character of it was."""

    text: str
    _starts: tuple[int, ...]
    """Where runs without a sequence begin, in `text`; and in the terminal's text:"""
    _raw_starts: tuple[int, ...]

    def raw(self, position: int) -> int:
        """Where a character of `text` is in the terminal's text; at the end of `text`, the end."""
        run = bisect_right(self._starts, position) - 1
        return self._raw_starts[run] + position - self._starts[run]

    def raw_after(self, position: int) -> int:
        """The first place in the terminal's text behind all that stands before `position`."""
        return self.raw(position - 1) + 1 if position else 0


def shown(raw: str) -> Shown:
    """What `raw` shows."""
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
    """Where `raw` shows a prompt: at the start of a line, which a newline or a carriage return begins.

    `pattern` is matched on what each line shows. A prompt takes the sequences before and behind it along, up to the
    next character that is shown. What is empty is no prompt.
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
    """Where the first character at or behind `position` is that is shown."""
    while found := _SEQUENCE.match(raw, position):
        position = found.end()
    return position


def typed(raw: str, prompt: str = "", columns: int = 0) -> str:
    """What stands in a line of output behind its prompt when it has been typed, mistakes taken back.

    A backspace goes one character back; what is written there replaces what stood there. A carriage return goes to the
    beginning of the row, the prompt's included; behind a space that only made the terminal begin a new row, it takes
    that space back, as line editors mean it. CSI C and D move, K clears what is behind, P takes characters out, @ makes
    room. Other sequences and bells leave no trace.

    Args:
        prompt: what stands before `raw` in its line.
        columns: of the terminal; 0 where a row has no end.
    """
    start = cell_len(shown(prompt).text)
    line = [" "] * start
    cursor, position = start, 0
    while position < len(raw):
        if sequence := _SEQUENCE.match(raw, position):
            if edit := _EDIT.fullmatch(sequence.group()):
                cursor = _edited(line, cursor, edit[2], edit[1])
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
    """Do what a control sequence says to a line; where the cursor is then."""
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
