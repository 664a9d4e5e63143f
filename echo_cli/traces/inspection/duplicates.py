"""What comes up again in a file, and commands that gave other outputs than before.

Texts are compared by digests of 16 bytes: memory holds one for each different text, and no text but that of examples.
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
    """Something that came up more than once."""

    text: str
    """Its beginning; of a whole episode, its task."""
    count: int
    """How often in all."""
    episode: int
    """Where it first came up."""


@dataclass(frozen=True)
class Repetition:
    """Of `total` things of a kind, how many are copies of an earlier one."""

    total: int
    distinct: int
    copies: int
    copies_share: float | None
    examples: tuple[Repeated, ...]
    """Those with the most copies."""


@dataclass(frozen=True)
class OtherOutputs:
    """How many different commands gave an output other than before, and the commonest of them.

    `anywhere` compares all turns of the file: the tasks, or the state that the commands before left, may differ.
    `same_task` compares turns of one task. `same_history` compares turns of one task after the same commands: what
    differs there is the environment's own doing, or the text of the task's opening.
    """

    commands: int
    anywhere: int
    same_task: int
    same_history: int
    examples: tuple[CommandCount, ...]
    """Commands that differ after the same history where there are such, else anywhere; with how often they did."""


@dataclass(frozen=True)
class Duplicates:
    """What is in a file more than once, and what was not."""

    pairs: Repetition
    """(command, output) of turns that ran something."""
    outputs: Repetition
    """Outputs that are not empty, whatever the command."""
    trajectories: Repetition
    """Whole episodes: the same texts in the same roles."""
    other_outputs: OtherOutputs


class DuplicateCount:
    """Counts what comes up again in many episodes."""

    def __init__(self) -> None:
        self._pairs, self._outputs, self._trajectories = _Copies(), _Copies(), _Copies()
        self._anywhere, self._same_task, self._same_history = _Answers(), _Answers(), _Answers()

    def add(self, trace: Trace, turns: Sequence[TurnOutput], episode: int) -> None:
        """Count an episode, which is the `episode`th."""
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
        """What was counted."""
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
    """Which of the things that were added had been added before."""

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
    """Which keys were given another output than the first one."""

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
    """A digest of texts in their order; where one ends is part of it."""
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    for part in parts:
        data = part.encode()
        digest.update(len(data).to_bytes(8, "big"))
        digest.update(data)
    return digest.digest()
