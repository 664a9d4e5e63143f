"""Outputs of commands: the longest outputs, empty outputs, and volatile-looking text."""

from __future__ import annotations

import heapq
import re
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from echo_cli.runs.pools import pair_of
from echo_cli.text import clipped, share
from echo_cli.trace import Trace
from echo_cli.trajectory import Role, Turn, text_of

LONGEST = 5
_EMPTIEST = 5
_EXAMPLES = 3


@dataclass(frozen=True)
class TurnOutput:
    """A turn and its output: the text of all env_output segments, of any channel, up to the next action."""

    turn: Turn
    number: int
    """Number of the turn in its episode, 1-based."""
    command: str
    """Command without the spaces that a shell ignores, as in `pools.pair_of`."""
    output: str
    tokens: int
    """Length of the output, tokens."""

    @property
    def executed(self) -> bool:
        """Whether a command ran; answers and actions cut at their cap have neither output nor exit code."""
        return bool(self.output) or self.turn.exit_code is not None


@dataclass(frozen=True)
class LongOutput:
    """One of the longest outputs, and its place."""

    episode: int
    """Number of the episode, 1-based."""
    turn: int
    """Number of the turn in the episode, 1-based."""
    command: str
    bytes: int
    tokens: int
    text: str
    """Beginning of the output."""


@dataclass(frozen=True)
class CommandCount:
    """A command and a number of its turns."""

    command: str
    count: int


@dataclass(frozen=True)
class VolatileText:
    """Matches of one of `PATTERNS`."""

    count: int
    """Number of matches."""
    bytes: int
    """Size of the matched text, bytes in UTF-8."""
    share: float | None
    """Share of the matched text in the bytes of all env_output."""
    examples: tuple[str, ...]
    """Most frequent matches."""
    pattern: str


@dataclass(frozen=True)
class OutputSurvey:
    """Survey of all turns: empty outputs, the longest outputs and volatile-looking text."""

    turns: int
    """Number of turns."""
    without_output: int
    """Number of turns without output."""
    without_output_share: float | None
    answers_without_output: int
    """Number of turns without output that are the answer of their episode; an answer has no output."""
    blank: int
    """Number of outputs that are only white space."""
    emptiest: tuple[CommandCount, ...]
    """Commands that most often printed nothing, answers excluded."""
    longest: tuple[LongOutput, ...]
    volatile: Mapping[str, VolatileText]
    """Volatile-looking text by kind; kinds without a match are omitted."""
    volatile_share: float | None
    """Share of the bytes of all env_output that look volatile."""


def turn_outputs(trace: Trace, tokens: Sequence[int]) -> list[TurnOutput]:
    """Return the turns of an episode with their outputs, in order.

    Args:
        tokens: number of tokens of each segment.
    """
    found = []
    for number, exchange in enumerate(trace.exchanges(), start=1):
        sizes = zip(exchange.segments, tokens[exchange.span], strict=True)
        size = sum(count for segment, count in sizes if segment.role is Role.ENV_OUTPUT)
        command, _ = pair_of(exchange.turn)
        output = text_of(exchange.segments, Role.ENV_OUTPUT)
        found.append(TurnOutput(exchange.turn, number, command, output, size))
    return found


class OutputCount:
    """Accumulator of the survey of many episodes, in bounded memory."""

    def __init__(self) -> None:
        self._turns = self._without = self._answers = self._blank = self._bytes = 0
        self._emptiest: BoundedCounter[str] = BoundedCounter()
        self._longest: list[tuple[int, int, int, LongOutput]] = []
        self._count: Counter[str] = Counter()
        self._volatile_bytes: Counter[str] = Counter()
        self._examples: dict[str, BoundedCounter[str]] = {}

    def add(self, trace: Trace, turns: Sequence[TurnOutput], episode: int) -> None:
        """Count the outputs of an episode; `episode` is its number, 1-based."""
        for turn in turns:
            self._turns += 1
            if turn.output:
                self._blank += turn.output.isspace()
                self._keep_longest(turn, episode)
            else:
                self._without += 1
                if trace.stop_reason == "answered" and turn.number == len(turns):
                    self._answers += 1
                else:
                    self._emptiest.add(clipped(turn.command))
        for text in _outputs(trace):
            self._bytes += len(text.encode())
            for volatile in find_volatile(text):
                self._count[volatile.kind] += 1
                self._volatile_bytes[volatile.kind] += len(volatile.text.encode())
                self._examples.setdefault(volatile.kind, BoundedCounter()).add(clipped(volatile.text))

    def result(self) -> OutputSurvey:
        """Return the survey."""
        volatile = {
            kind: VolatileText(
                count=self._count[kind],
                bytes=self._volatile_bytes[kind],
                share=share(self._volatile_bytes[kind], self._bytes),
                examples=tuple(text for text, _ in self._examples[kind].commonest(_EXAMPLES)),
                pattern=PATTERNS[kind],
            )
            for kind, _ in self._volatile_bytes.most_common()
        }
        return OutputSurvey(
            turns=self._turns,
            without_output=self._without,
            without_output_share=share(self._without, self._turns),
            answers_without_output=self._answers,
            blank=self._blank,
            emptiest=tuple(CommandCount(*each) for each in self._emptiest.commonest(_EMPTIEST)),
            longest=tuple(entry[-1] for entry in self._longest),
            volatile=volatile,
            volatile_share=share(self._volatile_bytes.total(), self._bytes),
        )

    def _keep_longest(self, turn: TurnOutput, episode: int) -> None:
        size = len(turn.output.encode())
        found = LongOutput(*(episode, turn.number, clipped(turn.command)), size, turn.tokens, clipped(turn.output))
        entry = (size, -episode, -turn.number, found)  # ties: the earliest is kept; places are unique
        self._longest = heapq.nlargest(LONGEST, [*self._longest, entry])


def _outputs(trace: Trace) -> Iterator[str]:
    """Yield each env_output segment's text on its own: joined texts could match across a warning between them."""
    return (segment.text for segment in trace.segments if segment.role is Role.ENV_OUTPUT)


_DAY = "(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)"
_MONTH = "(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)"
_CLOCK = r"\d\d:\d\d:\d\d(?:[.,]\d{1,9})?"

# Every repetition is bounded, or starts only where no character of its kind precedes it, so that one line of a megabyte
# takes no longer than many short lines. Text belongs to the first pattern that matches it.
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
            r"\b\d{1,6}m\d{1,2}(?:[.,]\d{1,3})?s\b",  # a shell's `time`
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
    """Text that matches one of `PATTERNS`, and the kind of the pattern."""

    kind: str
    text: str


def find_volatile(text: str) -> list[Volatile]:
    """Return the volatile-looking parts of `text`, without overlaps, kind by kind and in order within a kind."""
    taken, found = bytearray(len(text)), []
    for kind, pattern in _COMPILED.items():
        for match in pattern.finditer(text):
            start, end = match.span()
            if not any(taken[start:end]):
                taken[start:end] = b"\1" * (end - start)
                found.append(Volatile(kind, match[0]))
    return found


KEPT = 10_000
"""Maximum number of keys that a `BoundedCounter` counts individually."""

Key = TypeVar("Key", bound=Hashable)


class BoundedCounter(Generic[Key]):
    """Counts of keys. After `KEPT` distinct keys, any other key adds to `total` only."""

    def __init__(self) -> None:
        self.total = 0
        self._counts: Counter[Key] = Counter()

    def add(self, key: Key, count: int = 1) -> None:
        """Count `key`."""
        self.total += count
        if key in self._counts or len(self._counts) < KEPT:
            self._counts[key] += count

    def commonest(self, most: int) -> list[tuple[Key, int]]:
        """Return the `most` keys with the highest counts, and the counts; ties in order of first occurrence."""
        return self._counts.most_common(most)
