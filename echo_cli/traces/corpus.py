"""Trajectory files to train on: where in them each trace lies, which split it is of, what training sees of the others.

One pass over the files notes that and keeps no text; a step reads the lines that it needs. The split is by a hash of
what a trace says, roles and text: the same in every run, whatever its seed, in whichever file, under whatever name. So
a file that grows moves no trace from one split to another, and a trace that occurs twice is in one of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO

from echo_cli.config.objective import ObjectiveSettings
from echo_cli.config.schema import TracesConfig, TraceSplitConfig
from echo_cli.environments.tasks import Split
from echo_cli.errors import EchoError
from echo_cli.text import escape_unprintable
from echo_cli.trace import Trace, parse_trace
from echo_cli.trajectory import Role, bad_line, split_at_actions

_TIP = "traces.path names trajectory files, as `echo-cli traces import` writes them"


Hashes = tuple[bytes, ...]
"""By which an observation is known: SHA-256 of its text; then, where it has several segments, as when several tools
answer one action, of the text of each."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of one of the files."""

    file: int
    line: int
    """From 1."""
    offset: int
    """Of its first byte."""
    content: bytes
    """SHA-256 of what the trace says."""
    observations: tuple[Hashes, ...]
    """Of each observation, in order; of a training trace, they are in `TraceCorpus.seen` alone."""
    unanswered: int
    """How many of them, 0 or 1, come before the first action: they answer no command, and are not measured."""
    actions: int
    rewarded: bool
    split: Split = "train"


@dataclass(frozen=True)
class Overlap:
    """Observations of a held-out split, and how many of them training sees too."""

    traces: int
    observations: int
    seen: int
    emptied: int
    """Traces that have no observation but seen ones: nothing of them is measured."""

    def to_json(self) -> dict[str, Any]:
        """A JSON object, with the share of what is seen."""
        share = self.seen / self.observations if self.observations else None
        return {**vars(self), "seen_share": share}


@dataclass(frozen=True)
class TraceCorpus:
    """The traces of some files. Made by `index_traces`."""

    paths: tuple[Path, ...]
    sha256: tuple[str, ...]
    """Of each file's bytes."""
    entries: tuple[Entry, ...]
    seen: frozenset[bytes]
    """SHA-256 of every observation of the training split, and of each segment of it."""

    def of(self, split: Split) -> list[Entry]:
        """The entries of a split, in the order of the files."""
        return [entry for entry in self.entries if entry.split == split]

    def read(self, entries: Sequence[Entry]) -> Iterator[Trace]:
        """The traces of `entries`, one after the other.

        Raises:
            EchoError: a file cannot be read, or was changed since it was indexed (exit code 1).
        """
        files: dict[int, BinaryIO] = {}
        try:
            for entry in entries:
                path = self.paths[entry.file]
                try:
                    file = files.get(entry.file) or files.setdefault(entry.file, path.open("rb"))
                    file.seek(entry.offset)
                    trace = parse_trace(file.readline())
                except (OSError, ValueError) as error:
                    raise _changed(path, entry) from error
                if _content(trace) != entry.content:
                    raise _changed(path, entry)
                yield trace
        finally:
            for file in files.values():
                file.close()

    def sees(self, hashes: Hashes) -> bool:
        """Whether training has the observation of these hashes: as a whole, or all of its segments."""
        return hashes[0] in self.seen or (len(hashes) > 1 and self.seen.issuperset(hashes[1:]))

    def overlap(self, split: Split) -> Overlap:
        """What of a held-out split training sees too."""
        entries = self.of(split)
        measured = [entry.observations[entry.unanswered :] for entry in entries]
        novel = [sum(not self.sees(observation) for observation in of) for of in measured]
        total = sum(map(len, measured))
        return Overlap(len(entries), total, total - sum(novel), novel.count(0))

    def to_json(self) -> dict[str, Any]:
        """What a run notes of its traces. Of each path the name alone."""
        counts = [0] * len(self.paths)
        for entry in self.entries:
            counts[entry.file] += 1
        files = zip(self.paths, self.sha256, counts, strict=True)
        return {
            "files": [
                {"name": escape_unprintable(path.name), "sha256": digest, "traces": count}
                for path, digest, count in files
            ],
            "train": len(self.of("train")),
            "validation": self.overlap("validation").to_json(),
            "heldout": self.overlap("heldout").to_json(),
            "repeated": len(self.entries) - len({entry.content for entry in self.entries}),
        }


def index_traces(traces: TracesConfig) -> TraceCorpus:
    """Read the files once.

    Raises:
        EchoError: a file cannot be read, a line of it is not a trace (names file and line), or there are too few.
    """
    paths = tuple(Path(path) for path in traces.path)
    digests = [hashlib.sha256() for _ in paths]
    entries: list[Entry] = []
    known: dict[bytes, bytes] = {}
    for number, path in enumerate(paths):
        name = escape_unprintable(path)
        if path.is_fifo():  # a run reads its traces at their places in the file, again and again
            raise EchoError(f"{name} is not a file that can be read twice", "write it to a file first")
        try:
            with path.open("rb") as file:
                entries += _entries(path, number, file, digests[number], known)
        except IsADirectoryError as error:
            raise EchoError(f"{name} is a folder", f"{_TIP}; a pool has a trajectories.jsonl") from error
        except OSError as error:
            raise EchoError(f"cannot read {name}: {error.strerror or error}", _TIP) from error
    if not entries:
        raise EchoError(f"no trace in {', '.join(escape_unprintable(path) for path in paths)}", _TIP)
    splits = split_of({entry.content for entry in entries}, traces.split)
    shares: dict[Split, float] = {"validation": traces.split.validation, "heldout": traces.split.heldout, "train": 1.0}
    for split, share in shares.items():
        if share > 0 and split not in splits.values():
            tip = "give more, or hold none out: traces.split.validation=0, traces.split.heldout=0"
            raise EchoError(f"too few traces to split: {len(splits)} that differ, and none left for {split}", tip)
    train = [entry for entry in entries if splits[entry.content] == "train"]
    seen = frozenset(found for entry in train for observation in entry.observations for found in observation)
    placed = (
        replace(entry, split=split, observations=() if split == "train" else entry.observations)
        for entry in entries
        for split in (splits[entry.content],)
    )
    return TraceCorpus(paths, tuple(digest.hexdigest() for digest in digests), tuple(placed), seen)


def split_of(contents: set[bytes], shares: TraceSplitConfig) -> Mapping[bytes, Split]:
    """The split of each content: its hash, read as a number from 0 to 1, is in the range of one of them.

    Where none of a few is in the range of a split that has one, the nearest of the fullest split goes there.
    """
    ranges: dict[Split, float] = {"validation": shares.validation, "heldout": shares.heldout}
    ranges["train"] = 1 - shares.validation - shares.heldout
    bounds = list(zip(ranges, accumulate(ranges.values()), strict=True))
    found: dict[Split, list[bytes]] = {split: [] for split in ranges}
    for content in sorted(contents):
        place = int.from_bytes(content[:8], "big") / 2**64
        found[next((split for split, bound in bounds if place < bound), "train")].append(content)
    order = list(ranges)
    for split in ("train", "heldout", "validation"):
        fullest = max(order, key=lambda name: len(found[name]))
        if ranges[split] > 0 and not found[split] and len(found[fullest]) > 1:
            found[split].append(found[fullest].pop(0 if order.index(split) < order.index(fullest) else -1))
    return {content: split for split, those in found.items() for content in those}


def check_trainable(corpus: TraceCorpus, traces: TracesConfig, settings: ObjectiveSettings) -> None:
    """Refuse traces that nothing can be learned from, or that lack what a filter of the env term judges.

    Raises:
        EchoError: no training trace has an observation (or, imitated, an action); one has no turn or no reward.
    """
    train = corpus.of("train")
    if traces.imitation_coeff > 0 and not any(entry.actions for entry in train):
        raise EchoError("traces.imitation_coeff is above 0 and no trace to train on has an action", "set it to 0")
    if traces.imitation_coeff == 0 and not corpus.seen:
        tip = "the env term is on segments of the role env_output; `echo-cli traces import` says which text is"
        raise EchoError("no trace to train on has an observation", tip)
    by_turns = ("min_valid_action_fraction", "min_clean_parse_fraction")
    for name, what in (*((name, "turns") for name in by_turns), ("min_correct_fraction", "a reward")):
        if getattr(settings, name) is None:
            continue
        lacking = next((e for e in train if not (e.actions if what == "turns" else e.rewarded)), None)
        if lacking is not None:
            where = f"{escape_unprintable(corpus.paths[lacking.file])}:{lacking.line}"
            raise EchoError(f"{name} needs {what}, and {where} has none", f"unset objective.{name}")


def overlap_line(overlap: Mapping[str, Any]) -> str:
    """An overlap (`Overlap.to_json`) in words."""
    share = f" ({overlap['seen_share']:.1%})" if overlap["observations"] else ""
    return (
        f"{overlap['seen']} of {overlap['observations']} observations{share} are in training too and not measured; "
        f"nothing is left to measure in {overlap['emptied']} of {overlap['traces']} traces"
    )


def observations(trace: Trace) -> list[tuple[int, Hashes]]:
    """Return the hashes of what the world returned, each with the index of its turn: -1 before the first action.

    What came in several segments is one observation. Empty ones are left out.
    """
    texts = (
        [segment.text for segment in part if segment.role is Role.ENV_OUTPUT and segment.text]
        for part in split_at_actions(trace.segments)
    )
    return [(turn, _hashes(parts)) for turn, parts in enumerate(texts, start=-1) if parts]


def _hashes(parts: Sequence[str]) -> Hashes:
    texts = ["".join(parts), *(parts if len(parts) > 1 else ())]
    return tuple(hashlib.sha256(text.encode()).digest() for text in texts)


def _entries(path: Path, number: int, file: BinaryIO, digest: Any, known: dict[bytes, bytes]) -> Iterator[Entry]:
    """The entries of a file; `digest` takes its bytes, and of equal hashes `known` keeps one."""
    offset = 0
    for line, data in enumerate(file, start=1):
        digest.update(data)
        try:
            trace = parse_trace(data)
        except ValueError as error:
            raise bad_line(path, line, error, "trace") from error
        found = observations(trace)
        yield Entry(
            file=number,
            line=line,
            offset=offset,
            content=_content(trace),
            observations=tuple(tuple(known.setdefault(each, each) for each in hashes) for _, hashes in found),
            unanswered=sum(turn < 0 for turn, _ in found),
            actions=len(trace.turns),
            rewarded=trace.reward is not None,
        )
        offset += len(data)


def _content(trace: Trace) -> bytes:
    digest = hashlib.sha256()
    for segment in trace.segments:
        text = segment.text.encode()
        digest.update(f"{segment.role.name} {len(text)}\n".encode() + text)
    return digest.digest()


def _changed(path: Path, entry: Entry) -> EchoError:
    tip = "traces stay where they are while a run trains on them; put the file back and continue with --resume"
    return EchoError(f"{escape_unprintable(path)}:{entry.line} is not the trace that it was", tip, exit_code=1)
