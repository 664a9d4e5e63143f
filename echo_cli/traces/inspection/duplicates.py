"""Duplicates in a trajectory file, and commands whose output changed.

Texts are compared by 16-byte digests. Memory holds one digest per distinct text, and the texts of examples only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from echo_cli.text import clipped, share
from echo_cli.trace import Trace
from echo_cli.traces.inspection.outputs import BoundedCounter, CommandCount, TurnOutput

_EXAMPLES = 3
_DIGEST_BYTES = 16


@dataclass(frozen=True)
class Repeated:
    """A text that occurs more than once."""

    text: str
    """Beginning of the text; for a whole episode, the task id."""
    count: int
    """Number of occurrences, the first included."""
    episode: int
    """Number of the episode in which it first occurs, 1-based."""


@dataclass(frozen=True)
class Repetition:
    """Repetition among items of one kind: (command, output) pairs, outputs or episodes."""

    total: int
    """Number of items."""
    distinct: int
    """Number of distinct items."""
    copies: int
    """Number of items equal to an earlier one."""
    copies_share: float | None
    """Share of copies; None if there are no items."""
    examples: tuple[Repeated, ...]
    """Items with the most copies."""


@dataclass(frozen=True)
class OtherOutputs:
    """Numbers of commands with an output that differs from the first output, compared in three ways.

    `anywhere` compares all turns of the file, so the task or the state left by earlier commands may differ.
    `same_task` compares turns of the same task, and counts a command once per task. `same_history` compares turns of
    the same task after the same commands, and counts a command once per history: a difference comes from the
    environment, or from the text of the task's opening.
    """

    commands: int
    """Number of distinct commands."""
    anywhere: int
    same_task: int
    same_history: int
    examples: tuple[CommandCount, ...]
    """Commands whose output differed most often after the same history, or, if there are none, anywhere."""


@dataclass(frozen=True)
class Duplicates:
    """Duplicates in a file."""

    pairs: Repetition
    """(command, output) pairs of executed turns."""
    outputs: Repetition
    """Non-empty outputs, of any command."""
    trajectories: Repetition
    """Whole episodes, equal if all their roles and texts are equal."""
    other_outputs: OtherOutputs


class DuplicateCount:
    """Counter of duplicates among many episodes."""

    def __init__(self) -> None:
        self._pairs, self._outputs, self._trajectories = _Copies(), _Copies(), _Copies()
        self._anywhere, self._same_task, self._same_history = _Answers(), _Answers(), _Answers()

    def add(self, trace: Trace, turns: Sequence[TurnOutput], episode: int) -> None:
        """Count an episode; `episode` is its number, 1-based."""
        texts = [part for segment in trace.segments for part in (segment.role.name, segment.text)]
        self._trajectories.add(texts, trace.task_id, episode)
        history = _digest([trace.task_id])
        for turn in turns:
            command, output = turn.command, turn.output
            history = _digest([history.hex(), command])
            if not turn.executed:
                continue
            self._pairs.add([command, output], f"{command} → {output}", episode)
            if output:
                self._outputs.add([output], output, episode)
            self._anywhere.add(_digest([command]), output, command)
            self._same_task.add(_digest([trace.task_id, command]), output, command)
            self._same_history.add(history, output, command)

    def result(self) -> Duplicates:
        """Return the counts."""
        shown = self._same_history if self._same_history.different else self._anywhere
        return Duplicates(
            pairs=self._pairs.result(),
            outputs=self._outputs.result(),
            trajectories=self._trajectories.result(),
            other_outputs=OtherOutputs(
                commands=len(self._anywhere),
                anywhere=self._anywhere.different,
                same_task=self._same_task.different,
                same_history=self._same_history.different,
                examples=tuple(CommandCount(*each) for each in shown.commands.commonest(_EXAMPLES)),
            ),
        )


class _Copies:
    """Counter of items that are equal to an earlier item."""

    def __init__(self) -> None:
        self._total = 0
        self._first: dict[bytes, int] = {}
        self._copies: BoundedCounter[tuple[bytes, str]] = BoundedCounter()

    def add(self, parts: Sequence[str], text: str, episode: int) -> None:
        self._total += 1
        digest = _digest(parts)
        if digest in self._first:
            self._copies.add((digest, clipped(text)))
        else:
            self._first[digest] = episode

    def result(self) -> Repetition:
        found = self._copies.commonest(_EXAMPLES)
        examples = tuple(Repeated(text, copies + 1, self._first[digest]) for (digest, text), copies in found)
        copies = self._copies.total
        return Repetition(self._total, len(self._first), copies, share(copies, self._total), examples)


class _Answers:
    """Counter of keys that got an output other than their first output."""

    def __init__(self) -> None:
        self._first: dict[bytes, bytes] = {}
        self._different: set[bytes] = set()
        self.commands: BoundedCounter[str] = BoundedCounter()

    def __len__(self) -> int:
        return len(self._first)

    @property
    def different(self) -> int:
        return len(self._different)

    def add(self, key: bytes, output: str, command: str) -> None:
        answer = _digest([output])
        if self._first.setdefault(key, answer) != answer:
            self._different.add(key)
            self.commands.add(clipped(command))


def _digest(parts: Sequence[str]) -> bytes:
    """Return a digest of the texts, in order, that depends on where each text ends."""
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    for part in parts:
        data = part.encode()
        digest.update(len(data).to_bytes(8, "big"))
        digest.update(data)
    return digest.digest()
