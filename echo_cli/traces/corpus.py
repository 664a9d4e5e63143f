"""Trajectory files to train on: the position and split of each trace, and the overlap of held-out splits with training.

One pass over the files indexes them without keeping any text; a step reads the lines it needs. The split depends on a
hash of a trace's roles and texts alone, not on seed, file or order. A file that grows therefore moves no trace from
one split to another, and all copies of a trace are in the same split.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO

from echo_cli.config.episodes.traces import TracesConfig, TraceSplitConfig
from echo_cli.config.objective import ObjectiveSettings
from echo_cli.environments.tasks import Split
from echo_cli.errors import EchoError
from echo_cli.text import escape_unprintable
from echo_cli.trace import Trace, line_error, parse_trace
from echo_cli.traces.inspection.near_duplicates import Signature, near_copies, signature_of
from echo_cli.trajectory import Role, split_at_actions

_TIP = "set traces.path to trajectory files, as `echo-cli traces import` writes them"


Hashes = tuple[bytes, ...]
"""Identity of an observation: the SHA-256 of its text. If it has several segments, as when several tools answer one
action, the SHA-256 of each segment's text follows."""


@dataclass(frozen=True, slots=True)
class Entry:
    """Index entry of a trace, which is a line of one of the files."""

    file: int
    """Index of the file, 0-based."""
    line: int
    """Line number, 1-based."""
    offset: int
    """Offset of the line's first byte in the file, bytes."""
    content: bytes
    """SHA-256 of the trace's roles and texts."""
    observations: tuple[Hashes, ...]
    """Hashes of each observation, in order; empty for training traces, whose hashes are in `TraceCorpus.seen`."""
    unanswered: int
    """Number of observations, 0 or 1, before the first action. They answer no command and are not measured."""
    actions: int
    """Number of actions."""
    rewarded: bool
    """Whether the trace has a reward."""
    split: Split = "train"
    near_copy: bool = False
    """Whether the trace is held out and its observations are nearly those of a training trace."""


@dataclass(frozen=True)
class Overlap:
    """Overlap of a held-out split with training: counts of its traces and observations."""

    traces: int
    observations: int
    """Number of observations that answer an action."""
    seen: int
    """Number of observations that also occur in training."""
    near_copies: int
    """Number of traces whose observations are nearly those of a training trace; nothing is measured on them."""
    emptied: int
    """Number of traces on which nothing is measured: near copies, and those without an unseen observation."""

    def to_json(self) -> dict[str, Any]:
        """Return the counts as a JSON object, with the share of seen observations."""
        share = self.seen / self.observations if self.observations else None
        return {**vars(self), "seen_share": share}


@dataclass(frozen=True)
class TraceCorpus:
    """The traces of a list of files, as indexed by `index_traces`."""

    paths: tuple[Path, ...]
    sha256: tuple[str, ...]
    """SHA-256 of each file, hexadecimal."""
    entries: tuple[Entry, ...]
    seen: frozenset[bytes]
    """Hashes of every observation of the training split."""

    def of(self, split: Split) -> list[Entry]:
        """Return the entries of a split, in file order."""
        return [entry for entry in self.entries if entry.split == split]

    def read(self, entries: Sequence[Entry]) -> Iterator[Trace]:
        """Yield the traces of `entries`, one at a time.

        Raises:
            EchoError: a file cannot be read or has changed since it was indexed (exit code 1).
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
        """Return whether the observation occurs in training: as a whole, or each of its segments."""
        return hashes[0] in self.seen or (len(hashes) > 1 and self.seen.issuperset(hashes[1:]))

    def overlap(self, split: Split) -> Overlap:
        """Count the observations of a held-out split that also occur in training."""
        entries = self.of(split)
        measured = [entry.observations[entry.unanswered :] for entry in entries]
        novel = [sum(not self.sees(observation) for observation in of) for of in measured]
        total, near = sum(map(len, measured)), [entry.near_copy for entry in entries]
        emptied = sum(copy or not unseen for copy, unseen in zip(near, novel, strict=True))
        return Overlap(len(entries), total, total - sum(novel), sum(near), emptied)

    def to_json(self) -> dict[str, Any]:
        """Return a run's record of its traces; files are recorded by name, without their folder."""
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
    """Index the trajectory files of a config in one pass.

    Raises:
        EchoError: a file cannot be read, a line is not a trace (the message names file and line), or there are too few
            traces to fill the splits.
    """
    paths = tuple(Path(path) for path in traces.path)
    digests = [hashlib.sha256() for _ in paths]
    entries: list[Entry] = []
    signatures: dict[int, Signature] = {}
    compares = traces.split.near_duplicates is not None and traces.split.validation + traces.split.heldout > 0
    known: dict[bytes, bytes] = {}
    for number, path in enumerate(paths):
        name = escape_unprintable(path)
        if path.is_fifo():  # every step seeks to the lines it needs
            raise EchoError(f"{name} is not a file that can be read twice", "write it to a file first")
        try:
            with path.open("rb") as file:
                for entry, trace in _entries(path, number, file, digests[number], known):
                    minima = signature_of(trace) if compares else None
                    if minima is not None:
                        signatures[len(entries)] = minima
                    entries.append(entry)
        except IsADirectoryError as error:
            raise EchoError(f"{name} is a folder", f"{_TIP}; a pool has a trajectories.jsonl") from error
        except OSError as error:
            raise EchoError(f"cannot read {name}: {error.strerror or error}", _TIP) from error
    if not entries:
        raise EchoError(f"no trace in {', '.join(escape_unprintable(path) for path in paths)}", _TIP)
    splits = split_of({entry.content for entry in entries}, traces.split)
    shares: dict[Split, float] = {"validation": traces.split.validation, "heldout": traces.split.heldout, "train": 1.0}
    needed = [split for split, share in shares.items() if share > 0]
    if len(set(splits.values())) < len(needed):
        tip = "add traces, or hold none out: traces.split.validation=0 traces.split.heldout=0"
        parts = f"{', '.join(needed[:-1])} and {needed[-1]}"
        raise EchoError(
            f"too few traces to split: {len(splits)} distinct; {parts} need one each, so at least {len(needed)}", tip
        )
    train = [entry for entry in entries if splits[entry.content] == "train"]
    seen = frozenset(found for entry in train for observation in entry.observations for found in observation)
    near = _near_copies(entries, splits, signatures, traces.split.near_duplicates)
    placed = (
        replace(
            entry, split=split, observations=() if split == "train" else entry.observations, near_copy=place in near
        )
        for place, entry in enumerate(entries)
        for split in (splits[entry.content],)
    )
    return TraceCorpus(paths, tuple(digest.hexdigest() for digest in digests), tuple(placed), seen)


def _near_copies(
    entries: Sequence[Entry], splits: Mapping[bytes, Split], signatures: Mapping[int, Signature], least: float | None
) -> set[int]:
    """Return the places of held-out entries whose estimated similarity to a training entry is at least `least`."""
    if least is None:
        return set()
    originals = {entry.content: place for place, entry in enumerate(entries) if splits[entry.content] == "train"}
    train = {place: signatures[place] for place in originals.values() if place in signatures}
    held = {place: found for place, found in signatures.items() if splits[entries[place].content] != "train"}
    return near_copies(held, train, least)


def split_of(contents: set[bytes], shares: TraceSplitConfig) -> Mapping[bytes, Split]:
    """Return the split of each content hash: read as a number in [0, 1), it falls into the range of one split.

    If no hash falls into the range of a split with a non-zero share, the nearest hash of the largest split moves there.
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
    """Refuse training traces that have no targets, or that lack data required by a filter of the env term.

    Raises:
        EchoError: no training trace has an observation (with imitation: an action), or a filter needs turns or a reward
            and a training trace has none.
    """
    train = corpus.of("train")
    if traces.imitation_coeff > 0 and not any(entry.actions for entry in train):
        raise EchoError("traces.imitation_coeff is above 0, but no training trace has an action", "set it to 0")
    if traces.imitation_coeff == 0 and not corpus.seen:
        tip = "the env term needs segments of role env_output; run `echo-cli traces formats` to see which text gets it"
        raise EchoError("no training trace has an observation", tip)
    by_turns = ("min_valid_action_fraction", "min_clean_parse_fraction")
    by_reward = ("min_correct_fraction", "max_correct_fraction")
    for name, what in (*((name, "turns") for name in by_turns), *((name, "a reward") for name in by_reward)):
        if getattr(settings, name) is None:
            continue
        lacking = next((e for e in train if not (e.actions if what == "turns" else e.rewarded)), None)
        if lacking is not None:
            where = f"{escape_unprintable(corpus.paths[lacking.file])}:{lacking.line}"
            raise EchoError(f"{name} needs {what}, but {where} has none", f"unset objective.{name}")


def overlap_line(overlap: Mapping[str, Any]) -> str:
    """Describe an overlap (`Overlap.to_json`) in one line."""
    share = f" ({overlap['seen_share']:.1%})" if overlap["observations"] else ""
    near = overlap.get("near_copies")  # None in the record of a run of an earlier version
    copies = f"{near} of {overlap['traces']} traces nearly repeat a training trace; " if near else ""
    return (
        f"{overlap['seen']} of {overlap['observations']} observations{share} also occur in training and are not "
        f"measured; {copies}{overlap['emptied']} of {overlap['traces']} traces have nothing to measure"
    )


def observations(trace: Trace) -> list[tuple[int, Hashes]]:
    """Return the hashes of each observation with the index of its turn, 0-based; -1 is before the first action.

    All env_output segments of a turn are one observation. Empty observations are omitted.
    """
    texts = (
        [segment.text for segment in part if segment.role is Role.ENV_OUTPUT and segment.text]
        for part in split_at_actions(trace.segments)
    )
    return [(turn, _hashes(parts)) for turn, parts in enumerate(texts, start=-1) if parts]


def _hashes(parts: Sequence[str]) -> Hashes:
    texts = ["".join(parts), *(parts if len(parts) > 1 else ())]
    return tuple(hashlib.sha256(text.encode()).digest() for text in texts)


def _entries(
    path: Path, number: int, file: BinaryIO, digest: Any, known: dict[bytes, bytes]
) -> Iterator[tuple[Entry, Trace]]:
    """Yield the entries of a file with their traces, update `digest` with its bytes, share equal hashes in `known`."""
    offset = 0
    for line, data in enumerate(file, start=1):
        digest.update(data)
        try:
            trace = parse_trace(data)
        except ValueError as error:
            raise line_error(path, line, data, error) from error
        found = observations(trace)
        entry = Entry(
            file=number,
            line=line,
            offset=offset,
            content=_content(trace),
            observations=tuple(tuple(known.setdefault(each, each) for each in hashes) for _, hashes in found),
            unanswered=sum(turn < 0 for turn, _ in found),
            actions=len(trace.turns),
            rewarded=trace.reward is not None,
        )
        yield entry, trace
        offset += len(data)


def _content(trace: Trace) -> bytes:
    digest = hashlib.sha256()
    for segment in trace.segments:
        text = segment.text.encode()
        digest.update(f"{segment.role.name} {len(text)}\n".encode() + text)
    return digest.digest()


def _changed(path: Path, entry: Entry) -> EchoError:
    tip = "a trace file must not change while a run trains on it; restore it and continue with --resume"
    return EchoError(f"{escape_unprintable(path)}:{entry.line} has changed since it was indexed", tip, exit_code=1)
