"""Text that looks as if another run of the same commands would have it otherwise: times, pids, addresses.

What cannot be known should not be learned. Each pattern can stand in a config under `environment.volatile` as it is.
They are guesses from the look of a text; what differs for certain is found by playing twice (`echo-cli env check`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

_DAY = "(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)"
_MONTH = "(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)"
_CLOCK = r"\d\d:\d\d:\d\d(?:[.,]\d{1,9})?"

# Every repetition is bounded or starts where nothing of its kind stands before it: a line of a megabyte takes no longer
# than many short ones. The first pattern that matches a stretch of text has it.
PATTERNS: Mapping[str, str] = {
    "uuid": r"\b[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}\b",
    "timestamp": "|".join(
        (
            r"\b\d{4}-\d\d-\d\d[T ]\d\d:\d\d(?::\d\d(?:[.,]\d{1,9})?)?(?:Z\b| ?[+-]\d\d:?\d\d\b)?",  # ISO 8601, logs
            rf"\b\d\d/{_MONTH}/\d{{4}}:\d\d:\d\d:\d\d(?: [+-]\d{{4}}\b)?",  # web servers
            rf"\b{_DAY}, \d{{1,2}} {_MONTH} \d{{4}} {_CLOCK}(?: [A-Z]{{3,4}}\b| [+-]\d{{4}}\b)?",  # mail, HTTP
            rf"\b(?:{_DAY} )?{_MONTH} {{1,2}}\d{{1,2}} \d\d:\d\d(?::\d\d)?(?: [A-Z]{{3,4}}\b)?(?: \d{{4}}\b)?",
            rf"\b{_CLOCK}\b",
        )
    ),
    "epoch_time": r"(?<![\w.])1[5-9]\d{8}(?:\.\d{1,9}|\d{3}|\d{6}|\d{9})?(?![\w.]\w)\b",  # 2017 to 2033, in s to ns
    "duration": "|".join(
        (
            r"\b\d{1,6}m\d{1,2}(?:[.,]\d{1,3})?s\b",  # of a shell's `time`
            r"(?<![\w.])\d{1,9}(?:\.\d{1,9})? ?(?:ns|µs|us|ms)\b",
            r"(?<![\w.])\d{1,9}\.\d{1,9} ?(?:s|secs?|seconds?)\b",
        )
    ),
    "pid": "|".join(
        (
            r"\b(?i:p?pid)[ =:]{1,2}\d{1,8}\b",
            r"(?<=\w\[)\d{1,8}(?=\]:)",  # syslog's daemon[4711]:
            r"(?m:(?<=^\[\d\] )\d{1,8}$)",  # a job in the background
        )
    ),
    "hex_address": r"\b0x[0-9a-fA-F]{6,16}\b",
    "temporary_path": r"(?<![\w.-])(?:/private)?(?:/var/tmp|/tmp|/dev/shm|/var/folders/\w\w)/[\w.+-]{1,100}",
    "port": "|".join(
        (
            r"(?:(?<=\blocalhost:)|(?<=\b127\.0\.0\.1:)|(?<=\b0\.0\.0\.0:)|(?<=\[::1\]:)|(?<=\[::\]:))\d{2,5}\b",
            r"\b(?i:port)[ =:]{1,2}\d{2,5}\b",
        )
    ),
}

_COMPILED = {kind: re.compile(pattern) for kind, pattern in PATTERNS.items()}


@dataclass(frozen=True)
class Volatile:
    """A stretch of text and which of `PATTERNS` it matches."""

    kind: str
    text: str


def find_volatile(text: str) -> list[Volatile]:
    """What in `text` looks volatile, in no overlapping stretches; those of one kind in their order."""
    taken, found = bytearray(len(text)), []
    for kind, pattern in _COMPILED.items():
        for match in pattern.finditer(text):
            start, end = match.span()
            if not any(taken[start:end]):
                taken[start:end] = b"\1" * (end - start)
                found.append(Volatile(kind, match[0]))
    return found
