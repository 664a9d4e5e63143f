"""Tokens that belong to two roles at once, where a whole episode is encoded as one text.

Such a token can be given to neither role: either the policy would be trained on a piece of what the environment wrote,
or the world model on a piece of what the policy wrote. It is why segments are encoded apart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

from echo_cli.models.tokenizer import Tokenizer
from echo_cli.text import share
from echo_cli.trace import TraceSegment
from echo_cli.traces.inspection.outputs import BoundedCounter
from echo_cli.trajectory import Role

_EXAMPLES = 3


@dataclass(frozen=True)
class Straddle:
    """A boundary of two roles inside a token: the roles, and the token's text on either side of it."""

    first: Role
    second: Role
    before: str
    after: str


@dataclass(frozen=True)
class StraddleExample:
    """A token that straddles, as its text before and after the boundary."""

    before: str
    after: str
    count: int


@dataclass(frozen=True)
class StraddlingPair:
    """How often a token begins in the role `first` and goes on in `second`."""

    first: str
    second: str
    boundaries: int
    """Where `second` follows `first`."""
    straddling: int
    """Those of them that fall inside a token."""
    examples: tuple[StraddleExample, ...]


@dataclass(frozen=True)
class Straddling:
    """The boundaries of roles in a file, and how many of them fall inside a token."""

    boundaries: int
    straddling: int
    share: float | None
    pairs: tuple[StraddlingPair, ...]
    """The most frequent first; pairs whose boundaries are all clean are among them."""


def straddles(segments: Sequence[TraceSegment], tokenizer: Tokenizer) -> list[Straddle | None]:
    """The boundaries of roles in `segments`, in order: the token that straddles, None where the boundary is clean.

    The text of all segments is encoded at once, as a chat template's text would be: the names of special tokens stand
    for the tokens. Segments without text have no boundaries.
    """
    runs = _runs(segments)
    data = "".join(text for _, text in runs).encode()
    edges = _edges(tokenizer, data.decode())
    found: list[Straddle | None] = []
    boundary, (start, end) = 0, next(edges, (0, 0))
    for (first, text), (second, _) in pairwise(runs):
        boundary += len(text.encode())
        while end <= boundary:
            start, end = next(edges)
        if start < boundary:
            before, after = (part.decode(errors="replace") for part in (data[start:boundary], data[boundary:end]))
            found.append(Straddle(first, second, before, after))
        else:
            found.append(None)
    return found


class StraddlingCount:
    """Counts the boundaries of many episodes, in bounded memory: a vocabulary has no more tokens than it has."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._boundaries: Counter[tuple[Role, Role]] = Counter()
        self._straddling: dict[tuple[Role, Role], BoundedCounter[tuple[str, str]]] = {}

    def add(self, segments: Sequence[TraceSegment]) -> None:
        """Count the boundaries of an episode."""
        runs = _runs(segments)
        pairs = [(first, second) for (first, _), (second, _) in pairwise(runs)]
        self._boundaries.update(pairs)
        for pair, straddle in zip(pairs, straddles(segments, self._tokenizer), strict=True):
            if straddle is not None:
                self._straddling.setdefault(pair, BoundedCounter()).add((straddle.before, straddle.after))

    def result(self) -> Straddling:
        """What was counted."""
        pairs = []
        for (first, second), boundaries in self._boundaries.items():
            tally = self._straddling.get((first, second), BoundedCounter())
            examples = tuple(StraddleExample(*halves, count) for halves, count in tally.commonest(_EXAMPLES))
            pairs.append(StraddlingPair(first.name.lower(), second.name.lower(), boundaries, tally.total, examples))
        boundaries, straddling = self._boundaries.total(), sum(pair.straddling for pair in pairs)
        return Straddling(
            boundaries=boundaries,
            straddling=straddling,
            share=share(straddling, boundaries),
            pairs=tuple(sorted(pairs, key=lambda pair: -pair.straddling)),
        )


def _runs(segments: Sequence[TraceSegment]) -> list[tuple[Role, str]]:
    """The text of neighbours of one role as one; what has no text left out."""
    written = [segment for segment in segments if segment.text]
    return [
        (role, "".join(segment.text for segment in run)) for role, run in groupby(written, key=lambda each: each.role)
    ]


def _edges(tokenizer: Tokenizer, text: str) -> Iterator[tuple[int, int]]:
    """The first byte of each token of `text`, and the byte after its last."""
    start = 0
    for size in tokenizer.byte_counts(tokenizer.encode_scaffold(text)):
        yield start, start + size
        start += size
    size = len(text.encode())
    yield size, size + 1  # reached by a boundary only where a tokenizer has no tokens for some of the text
