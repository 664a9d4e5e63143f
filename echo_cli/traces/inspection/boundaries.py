"""Tokens that straddle a boundary between two roles if a whole episode is encoded as one text.

Such a token fits neither role: the policy would be trained on text of the environment, or the world model on text of
the policy. This is why segments are encoded separately.
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
    """A role boundary inside a token: the two roles, and the token's text before and after the boundary."""

    first: Role
    second: Role
    before: str
    after: str


@dataclass(frozen=True)
class StraddleExample:
    """A straddling token, as its text before and after the boundary, and its number of occurrences."""

    before: str
    after: str
    count: int


@dataclass(frozen=True)
class StraddlingPair:
    """Boundaries at which the role `second` follows the role `first`."""

    first: str
    second: str
    boundaries: int
    """Number of boundaries."""
    straddling: int
    """Number of boundaries inside a token."""
    examples: tuple[StraddleExample, ...]
    """Most frequent straddling tokens."""


@dataclass(frozen=True)
class Straddling:
    """Role boundaries of a file."""

    boundaries: int
    """Number of boundaries."""
    straddling: int
    """Number of boundaries inside a token."""
    share: float | None
    """Share of boundaries that are inside a token; None if there are no boundaries."""
    pairs: tuple[StraddlingPair, ...]
    """Pairs of roles, most straddling boundaries first; pairs without straddling boundaries are included."""


def straddles(segments: Sequence[TraceSegment], tokenizer: Tokenizer) -> list[Straddle | None]:
    """Return an entry per role boundary in `segments`, in order: the straddling token, or None for a clean boundary.

    The texts of all segments are encoded as one text, as a chat template's text would be: names of special tokens are
    encoded as the tokens. Segments without text have no boundaries.
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
    """Counter of the boundaries of many episodes, in bounded memory."""

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
        """Return the counts."""
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
    """Join neighbouring segments of the same role; segments without text are dropped."""
    written = [segment for segment in segments if segment.text]
    return [
        (role, "".join(segment.text for segment in run)) for role, run in groupby(written, key=lambda each: each.role)
    ]


def _edges(tokenizer: Tokenizer, text: str) -> Iterator[tuple[int, int]]:
    """Yield the start and end of each token of `text`, as byte offsets; the end is exclusive."""
    start = 0
    for size in tokenizer.byte_counts(tokenizer.encode_scaffold(text)):
        yield start, start + size
        start += size
    size = len(text.encode())
    yield size, size + 1  # a boundary gets here only if the tokenizer has no tokens for part of the text
