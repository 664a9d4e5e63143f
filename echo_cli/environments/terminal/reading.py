"""What a shell's terminal showed of one command, taken apart: the echo, the output and the prompt."""

from __future__ import annotations

import time
from dataclasses import dataclass

FLOOD_BYTES = 2**23
"""Size of a command's output at which the command is interrupted, bytes."""


_FAREWELLS = (b"exit\r\n", b"exit\n")
"""What an interactive bash writes when it ends."""


@dataclass(frozen=True)
class Ran:
    """One command of the session."""

    output: bytes
    """What the command wrote to the terminal, without the echo of its line; at most the limit and one byte more."""
    exit_code: int | None
    """Exit status; None if the command did not end by itself."""
    echo: bytes = b""
    """What the terminal and the shell wrote before the command started: the typed line."""
    prompt: bytes = b""
    """The prompt after the command, or the word with which the shell ends."""
    notice: str = ""
    """Why the harness ended the command, without brackets; empty if it did not."""
    ended: bool = False
    """Whether the session has ended."""


class Reading:
    """What has been read of one command."""

    def __init__(self, typed: bytes, limit: int, deadline: float) -> None:
        self._typed = typed
        self._limit = limit
        self._echo: bytes | None = None
        self._kept = bytearray()
        self._signs: list[tuple[bytes, int]] = []
        self.size = 0
        """Number of bytes since the command started."""
        self.deadline = deadline
        self.last_arrival = time.monotonic()
        self.exit_code: int | None = None
        self.prompt = b""
        self.notice = ""
        self.ends = 0
        self.tries = 0

    @property
    def has_started(self) -> bool:
        """Whether the shell has read the line and runs it."""
        return self._echo is not None

    def add(self, arrived: bytes) -> None:
        if arrived:
            self.last_arrival = time.monotonic()
            self.size += len(arrived)
            self._kept += arrived[: max(0, self._limit + 1 + len(self._typed) - len(self._kept))]

    def start_output(self) -> None:
        """Take what has arrived as the echo: the shell runs the line now."""
        if self._echo is None:
            self._echo = bytes(self._kept)
            self._kept.clear()
            self.size = 0

    def interrupted_by(self, sign: bytes) -> bytes:
        """Remember that `sign` is typed now, and return it: its echo is no output."""
        self._signs.append((sign, len(self._kept)))
        return sign

    def overdue(self, now: float) -> bool:
        return now > self.deadline or (self.size > FLOOD_BYTES and self.tries == 0)

    def result(self, notice: str | None = None, ended: bool = False) -> Ran:
        echo, output = self._echo, bytes(self._kept)
        if echo is None:  # the line ran no command, or the shell's own streams are redirected
            length = len(self._typed) if output.startswith(self._typed) else 0
            echo, output = output[:length], output[length:]
        for sign, since in self._signs:
            if (at := output.find(sign, max(0, since - len(self._typed)))) >= 0:
                output = output[:at] + output[at + 1 :]
        prompt = self.prompt
        if ended and notice == "" and output.endswith(_FAREWELLS):
            farewell = next(end for end in _FAREWELLS if output.endswith(end))
            output, prompt = output.removesuffix(farewell), farewell
        said = self.notice if notice is None else notice
        code = None if said or ended else self.exit_code
        return Ran(output[: self._limit + 1], code, echo, prompt, said, ended)
