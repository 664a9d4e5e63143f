"""Statistics of traces before anything is trained on them, in one pass."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from echo_cli.config.loader import find_config, load_config
from echo_cli.errors import EchoError
from echo_cli.evaluation.baselines import compressors
from echo_cli.evaluation.data.byte_ngram import bits_per_byte
from echo_cli.models.loading import load_renderer
from echo_cli.runs.recordings import open_recording
from echo_cli.text import share, size_of
from echo_cli.trace import Trace, TraceSegment
from echo_cli.traces.exporting import recorded_traces
from echo_cli.traces.inspection.account import RoleAccount, RoleCount, token_count
from echo_cli.traces.inspection.duplicates import DuplicateCount, Repetition
from echo_cli.traces.inspection.near_duplicates import SignatureIndex, signature_of
from echo_cli.traces.inspection.outputs import turn_outputs
from echo_cli.traces.inspection.tools import ToolCount, ToolUse

SIMILAR = 0.8
"""Estimated Jaccard similarity from which a trace nearly repeats another."""
MOST_BYTES = 4 * 2**20
"""Size of the outputs that each half of the traces gives to the measure of compression, at most, bytes."""

Count = Callable[[TraceSegment], int]


@dataclass(frozen=True)
class LongestTrace:
    """The trace with the most text; of several, the first."""

    number: int
    """Number of the trace, 1-based."""
    turns: int
    bytes: int
    tokens: int | None
    """None if no tokens are counted."""


@dataclass(frozen=True)
class Compression:
    """Information in the outputs of one half of the traces, as a model fitted on the other half and gzip see it."""

    fitted_traces: int
    scored_traces: int
    scored_bytes: int
    ngram_bits_per_byte: float
    """Of a byte 5-gram (`byte_ngram`) that was fitted on the outputs of the other half."""
    gzip_bits_per_byte: float
    """Of gzip at level 9 without headers; the outputs of a trace are one stream."""


@dataclass(frozen=True)
class TraceStatistics:
    """Statistics of traces."""

    traces: int
    turns: int
    account: RoleAccount
    longest: LongestTrace
    compression: Compression | None
    """None if one half has no output."""
    pairs: Repetition
    """(command, output) pairs."""
    equal: Repetition
    """Traces, equal if all their roles and texts are equal."""
    near_copies: int
    """Number of traces whose observations are similar to those of an earlier trace, without the equal ones."""
    near_copies_share: float | None
    tools: tuple[ToolUse, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the statistics as a JSON object."""
        return asdict(self)


def statistics_of(
    sources: Sequence[Path], *, config: str | None = None, overrides: Sequence[str] = ()
) -> tuple[TraceStatistics, str | None]:
    """Compute the statistics of files, and return them with the name of the counted tokens.

    Args:
        sources: trajectory files, and folders of runs and pools.
        config: name or file of the config whose tokenizer counts tokens. None counts the files' own ids if all segments
            have them, else no tokens.
        overrides: overrides of that config.

    Raises:
        EchoError: as `open_recording`; a line is not a trace; there are no traces; the config's model has no tokenizer
            on this machine.
    """
    recordings = [open_recording(source) for source in sources]
    count: Count | None = None
    if config is not None:
        tokenizer = load_renderer(load_config(find_config(config), overrides)).tokenizer
        count = partial(token_count, tokenizer=tokenizer, own_ids=False)
    elif all(trace.has_token_ids for trace in recorded_traces(recordings)):
        count = own_token_count
    found = trace_statistics(recorded_traces(recordings), count)
    if found is None:
        for recording in recordings:
            recording.check_any(0)
        raise EchoError("no trace in any of the files", "name trajectory files")
    return found, None if count is None else "the files' own" if config is None else f"config {config}"


def own_token_count(segment: TraceSegment) -> int:
    """Return the number of a segment's own token ids."""
    return len(segment.token_ids or ())


def trace_statistics(traces: Iterable[Trace], count: Count | None = None) -> TraceStatistics | None:
    """Compute the statistics of `traces`; None if there are none.

    Memory grows by a signature of 512 bytes per trace and the digests of `DuplicateCount`.

    Args:
        count: returns the number of tokens of a segment; None if no tokens are counted.
    """
    roles, duplicates, tools, index = RoleCount(), DuplicateCount(), ToolCount(), SignatureIndex(SIMILAR)
    halves = (_Sample(MOST_BYTES), _Sample(MOST_BYTES))
    seen, longest, turns, near = set[bytes](), LongestTrace(0, 0, -1, None), 0, 0
    for number, trace in enumerate(traces, start=1):
        tokens = [0 if count is None else count(segment) for segment in trace.segments]
        roles.add(trace.segments, tokens)
        duplicates.add(trace, turn_outputs(trace, tokens), number)
        tools.add(trace)
        turns += len(trace.turns)
        size = sum(size_of(segment.text) for segment in trace.segments)
        if size > longest.bytes:
            longest = LongestTrace(number, len(trace.turns), size, None if count is None else sum(tokens))
        digest = _digest(trace)
        halves[digest[0] % 2].add(digest, [turn.output.encode() for turn in trace.turns if turn.output])
        signature = None if digest in seen else signature_of(trace)
        seen.add(digest)
        if signature is not None:
            near += index.most_similar(signature) is not None
            index.add(number, signature)
    if not longest.number:
        return None
    found, account = duplicates.result(), roles.result()
    return TraceStatistics(
        traces=found.trajectories.total,
        turns=turns,
        account=account,
        longest=longest,
        compression=_compression(*halves),
        pairs=found.pairs,
        equal=found.trajectories,
        near_copies=near,
        near_copies_share=share(near, found.trajectories.total),
        tools=tools.result(),
    )


class _Sample:
    """Outputs of traces drawn by their digests, so that neither their order nor their copies matter."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._size = 0
        self._kept: dict[bytes, list[bytes]] = {}
        self._highest: list[tuple[int, bytes]] = []

    def add(self, digest: bytes, outputs: list[bytes]) -> None:
        """Add a trace, unless it has no output or is a copy; those with the highest digests give way."""
        if not outputs or digest in self._kept:
            return
        self._kept[digest] = outputs
        self._size += sum(map(len, outputs))
        heapq.heappush(self._highest, (-int.from_bytes(digest, "big"), digest))
        while self._size > self._most_bytes and len(self._kept) > 1:
            _, dropped = heapq.heappop(self._highest)
            self._size -= sum(map(len, self._kept.pop(dropped)))

    def traces(self) -> list[list[bytes]]:
        """Return the outputs of each trace, in the order of the digests."""
        return [self._kept[digest] for digest in sorted(self._kept)]


def _compression(fitted: _Sample, scored: _Sample) -> Compression | None:
    known, texts = fitted.traces(), scored.traces()
    bits = bits_per_byte(_outputs(known), _outputs(texts)) if known else None
    if bits is None:
        return None
    gzip, size = compressors(None)["gzip"], sum(map(len, _outputs(texts)))
    packed = sum(gzip(b"".join(outputs)) for outputs in texts)
    return Compression(len(known), len(texts), size, bits, 8 * packed / size)


def _outputs(traces: Sequence[list[bytes]]) -> list[bytes]:
    return [output for outputs in traces for output in outputs]


def _digest(trace: Trace) -> bytes:
    """Return a digest of a trace's roles and texts."""
    digest = hashlib.blake2b(digest_size=16)
    for segment in trace.segments:
        text = segment.text.encode()
        digest.update(f"{segment.role.name} {len(text)}\n".encode() + text)
    return digest.digest()
