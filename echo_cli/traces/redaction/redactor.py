"""Redaction of traces: secrets and what identifies a person are replaced in every text, before anything is written.

In an observation the replacement is a warning, which the env term leaves out; elsewhere it is part of the text.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from echo_cli.trace import Trace, TraceSegment
from echo_cli.traces.redaction.patterns import EMAIL, HOME, Detector, Found, detectors, disjoint, find_secrets
from echo_cli.trajectory import Role, Turn, split_at_actions, text_of

REDACTED = "redacted"
"""Channel of the warnings that stand for what was replaced in an observation."""


@dataclass
class Redactor:
    """Replacement of secrets in traces, with counts."""

    detectors: Sequence[Detector] = field(default_factory=detectors)
    counts: Counter[str] = field(default_factory=Counter)
    """Number of replacements by kind, in segments, metadata and ids."""

    def redact(self, trace: Trace) -> Trace:
        """Return a trace without the secrets that are found in it.

        A secret that is found in one place is replaced wherever it occurs in the trace. A segment whose text changes
        loses its token ids.
        """
        secrets = _Secrets(self.detectors, _texts_of(trace))

        def text(of: str) -> str:
            found = secrets.of(of)
            self.counts.update(each.kind for each in found)
            return _replaced(of, found)

        segments, origins = list[TraceSegment](), list[int]()
        for number, segment in enumerate(trace.segments):
            pieces = _redacted(segment, found := secrets.of(segment.text))
            segments += pieces
            origins += [number] * len(pieces)
            self.counts.update(each.kind for each in found)
        meta = _mapped(trace.meta, text)
        if "places" in meta:  # one per segment
            meta["places"] = [meta["places"][number] for number in origins]
        return replace(
            trace,
            task_id=text(trace.task_id),
            group_id=text(trace.group_id),
            segments=tuple(segments),
            turns=_turns(trace, segments, secrets),
            meta=meta,
        )


class _Secrets:
    """The secrets of a trace."""

    def __init__(self, known: Sequence[Detector], texts: Iterable[str]) -> None:
        self._known = known
        self._found: dict[str, list[Found]] = {}
        kinds: dict[str, str] = {}
        for text in texts:
            for each in self._find(text):
                if _is_distinctive(value := text[each.start : each.end], each.kind):
                    kinds.setdefault(value, each.kind)
        values = sorted(kinds, key=len, reverse=True)
        self._kinds = kinds
        self._values = re.compile("|".join(map(re.escape, values))) if values else None

    def of(self, text: str) -> list[Found]:
        """Return the secrets in a text, in order and disjoint."""
        found = self._find(text)
        if self._values is None:
            return found
        again = [Found(*match.span(), self._kinds[match.group()]) for match in self._values.finditer(text)]
        return disjoint([*found, *again])

    def _find(self, text: str) -> list[Found]:
        if text not in self._found:
            self._found[text] = find_secrets(text, self._known)
        return self._found[text]


def _is_distinctive(value: str, kind: str) -> bool:
    """Return whether a secret is looked for in all texts of its trace: it is no word that could stand for itself."""
    mixed = any(map(str.isdigit, value)) and any(map(str.isalpha, value))
    return kind not in (HOME, EMAIL) and len(value) >= (8 if mixed else 16)


def _texts_of(trace: Trace) -> Iterator[str]:
    yield from (segment.text for segment in trace.segments)
    yield from (turn.command for turn in trace.turns)
    yield from (trace.task_id, trace.group_id)
    yield from _strings(trace.meta)


def _strings(value: Any) -> Iterator[str]:
    """Yield the texts in a JSON value, keys of objects included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from _strings(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _strings(item)


def _mapped(value: Any, text: Callable[[str], str]) -> Any:
    """Return a JSON value with each of its texts changed."""
    if isinstance(value, str):
        return text(value)
    if isinstance(value, dict):
        return {text(key): _mapped(item, text) for key, item in value.items()}
    return [_mapped(item, text) for item in value] if isinstance(value, (list, tuple)) else value


def _redacted(segment: TraceSegment, found: Sequence[Found]) -> list[TraceSegment]:
    """Return the segments in place of a segment with secrets."""
    if not found:
        return [segment]
    if segment.role is not Role.ENV_OUTPUT:
        text = _replaced(segment.text, found)
        return [replace(segment, text=text, token_ids=None, logprobs=None, transient=0)]
    pieces, end = list[TraceSegment](), 0
    for each in found:
        pieces.append(TraceSegment(segment.role, segment.text[end : each.start], segment.channel))
        pieces.append(TraceSegment(Role.WARNING, _placeholder(each.kind), REDACTED))
        end = each.end
    pieces.append(TraceSegment(segment.role, segment.text[end:], segment.channel))
    return [piece for piece in pieces if piece.text]


def _turns(trace: Trace, segments: Sequence[TraceSegment], secrets: _Secrets) -> tuple[Turn, ...]:
    """Return the turns: outputs as the segments now have them, or, if they were recorded otherwise, redacted."""
    before, after = (
        [text_of(part, Role.ENV_OUTPUT) for part in split_at_actions(of)[1:]] for of in (trace.segments, segments)
    )
    turns = list[Turn]()
    for turn, old, new in zip(trace.turns, before, after, strict=True):
        output = new if turn.output == old else _replaced(turn.output, secrets.of(turn.output))
        turns.append(replace(turn, command=_replaced(turn.command, secrets.of(turn.command)), output=output))
    return tuple(turns)


def _replaced(text: str, found: Sequence[Found]) -> str:
    parts, end = list[str](), 0
    for each in found:
        parts += [text[end : each.start], _placeholder(each.kind)]
        end = each.end
    return "".join([*parts, text[end:]])


def _placeholder(kind: str) -> str:
    return f"[redacted: {kind}]"
