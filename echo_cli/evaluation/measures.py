"""What a model makes of a pool's tokens: env-CE, bits per byte, accuracy and calibration, with intervals, by group.

The tokens of a pool are columns, one entry a token, and so are a model's predictions of them: any two models are
measured over the same tokens. Training logs the values alone (`values_of`). Intervals come from resampling whole
trajectories.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from echo_cli.models.policy import TorchPolicy
from echo_cli.models.tokenizer import Tokenizer
from echo_cli.runs.pools import Pair, Pool, Span, pair_of
from echo_cli.statistics import Estimate, Floats, absolute_ratio, ratio, ratio_difference
from echo_cli.trajectory import Role, Segment, Trajectory

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Texts = NDArray[np.object_]

MIN_MATCH = 2
"""Tokens that a match needs for its continuation to count as copyable; a single newline matches nearly everywhere."""
CALIBRATION_BINS = 15
POSITIONS = (("0", 0), ("1-3", 1), ("4-15", 4), ("16-63", 16), ("64+", 64))
"""Buckets of the position in an output, with the first index of each."""

# By the annotations of the columns of `Tokens`.
_DTYPES = {"Ints": np.int64, "Bools": np.bool_, "Texts": np.object_}


@dataclass(frozen=True)
class Tokens:
    """The measured tokens of a pool, as columns of N entries: the tokens of its spans, and warning tokens."""

    sequences: Sequence[Sequence[int]]
    """Token ids of each trajectory of the pool."""
    trajectory: Ints
    """Index in the pool."""
    index: Ints
    """Position in the trajectory."""
    begin: Ints
    """Position of the first token of the exchange's command."""
    token_id: Ints
    byte_count: Ints
    """Number of bytes of text that the token stands for; over a span they sum to its `output_bytes`."""
    role: Texts
    """env_output or warning."""
    channel: Texts
    command: Texts
    """First word of the command."""
    exit_status: Texts
    novel: Bools
    """Whether training has not executed the (command, output) pair; for a warning, that of its turn."""
    span: Ints
    """Index among the pool's spans; -1 for warnings."""
    position: Ints
    """Index within the output; for a warning, within its segment."""

    def __len__(self) -> int:
        return len(self.trajectory)

    @property
    def headline(self) -> Bools:
        """Which tokens the headline is over: the environment's, of novel pairs."""
        return np.asarray((self.role == "env_output") & self.novel)

    @property
    def match_length(self) -> Ints:
        """Number of tokens of the longest match in the trajectory up to here, see `longest_suffix_matches`."""
        return self._matches[0]

    @property
    def match_token(self) -> Ints:
        """Id of the token that followed that match; -1 without one."""
        return self._matches[1]

    @cached_property
    def _matches(self) -> tuple[Ints, Ints]:
        length, following = np.zeros(len(self), dtype=np.int64), np.full(len(self), -1)
        for number, token_ids in enumerate(self.sequences):
            rows = np.flatnonzero(self.trajectory == number)
            length_T, following_T = longest_suffix_matches(token_ids)
            length[rows], following[rows] = length_T[self.index[rows]], following_T[self.index[rows]]
        return length, following

    @property
    def copyable(self) -> Bools:
        """Whether the token continues the latest longest match of at least `MIN_MATCH` tokens.

        The match is that of the tokens just before it, of any role, within everything that precedes them in its own
        trajectory. A token after a shorter match, or after one that was continued otherwise, is not copyable.
        """
        return np.asarray((self.match_length >= MIN_MATCH) & (self.match_token == self.token_id))


@dataclass(frozen=True)
class Predictions:
    """What a model says of N tokens at temperature 1, each predicted from the true tokens before it."""

    nats: Floats
    """-log p(token)."""
    correct: Bools
    """The token is the most probable one."""
    confidence: Floats
    """The probability of the most probable one."""


@dataclass(frozen=True)
class Measures:
    """Some tokens under one model. Compressors have bits per byte only."""

    estimates: Mapping[str, Estimate]
    """By name: env_ce (nats/token), env_bits_per_byte, token_accuracy, calibration_error."""
    tokens: int
    bytes: int
    trajectories: int


def tokens_of(
    pool: Pool, seen: Collection[Pair], tokenizer: Tokenizer, roles: Collection[Role] = (Role.ENV_OUTPUT, Role.WARNING)
) -> Tokens:
    """Return the tokens of `pool` that have one of `roles`, each pair once.

    Args:
        seen: the pairs that training has executed.
    """
    segments: list[dict[str, Any]] = []
    first_span = 0
    for number, (trajectory, spans) in enumerate(zip(pool.trajectories, pool.spans, strict=True)):
        segments += _segments(number, trajectory, dict(enumerate(spans, first_span)), seen, tokenizer, roles)
        first_span += len(spans)

    def column(name: str, dtype: type[np.generic]) -> NDArray[Any]:
        parts = [np.full(len(segment["token_id"]), segment[name], dtype) for segment in segments]
        return np.concatenate([np.zeros(0, dtype), *parts])

    columns = {of.name: column(of.name, _DTYPES[of.type]) for of in fields(Tokens) if of.type in _DTYPES}
    return Tokens([trajectory.token_ids for trajectory in pool.trajectories], **columns)


def predict(policy: TorchPolicy, pool: Pool, tokens: Tokens) -> Predictions:
    """Predict a pool's tokens, teacher-forced."""
    roles = [role for role in Role if role.name.lower() in set(tokens.role)]
    nats, confidence = np.zeros(len(tokens)), np.zeros(len(tokens))
    correct = np.zeros(len(tokens), dtype=np.bool_)
    for number, scores in enumerate(policy.score(pool.trajectories, roles)):
        places = np.flatnonzero(np.isin(pool.trajectories[number].roles, roles))
        rows = np.flatnonzero(tokens.trajectory == number)
        at = np.searchsorted(places, tokens.index[rows])
        nats[rows] = -scores.logprobs.double().numpy()[at]
        correct[rows] = scores.correct.numpy()[at]
        confidence[rows] = scores.confidence.double().numpy()[at]
    return Predictions(nats, correct, confidence)


def values_of(tokens: Tokens, predictions: Predictions, chosen: Bools) -> dict[str, float]:
    """Return env_ce, env_bits_per_byte and token_accuracy over the `chosen` tokens; empty over nothing."""
    rows = np.flatnonzero(chosen)
    if not len(rows):
        return {}
    # Added output by output, and then over the outputs: runs of earlier versions are reproduced to the last bit.
    outputs = np.split(predictions.nats[rows], np.flatnonzero(np.diff(tokens.span[rows])) + 1)
    nats = sum(float(torch.from_numpy(output).sum()) for output in outputs)
    size = int(tokens.byte_count[rows].sum())
    return {
        "env_ce": nats / len(rows),
        **({"env_bits_per_byte": nats / math.log(2) / size} if size else {}),
        "token_accuracy": int(predictions.correct[rows].sum()) / len(rows),
    }


def measure(tokens: Tokens, predictions: Predictions, chosen: Bools) -> Measures | None:
    """Measure the `chosen` tokens, with intervals; None over nothing."""
    values = values_of(tokens, predictions, chosen)
    if not values:
        return None
    count = _per_trajectory(tokens, chosen, chosen)
    size = _per_trajectory(tokens, tokens.byte_count, chosen)
    nats = _per_trajectory(tokens, predictions.nats, chosen)
    gaps = [
        _per_trajectory(tokens, predictions.confidence - predictions.correct, chosen & (_bins(predictions) == number))
        for number in range(CALIBRATION_BINS)
    ]
    resampled = {
        "env_ce": ratio(nats, count),
        "env_bits_per_byte": ratio(nats / math.log(2), size),
        "token_accuracy": ratio(_per_trajectory(tokens, predictions.correct, chosen), count),
        "calibration_error": absolute_ratio(gaps, count),
    }
    return Measures(
        {name: _around(values.get(name), found) for name, found in resampled.items() if found is not None},
        int(count.sum()),
        int(size.sum()),
        int((count > 0).sum()),
    )


def env_ce_difference(tokens: Tokens, first: Predictions, second: Predictions, chosen: Bools) -> Estimate | None:
    """env-CE of `second` less that of `first` over the same tokens, paired by trajectory; None over nothing."""
    return ratio_difference(
        _per_trajectory(tokens, first.nats, chosen),
        _per_trajectory(tokens, second.nats, chosen),
        _per_trajectory(tokens, chosen, chosen),
    )


def bits_per_byte_difference(
    first_tokens: Tokens, first: Predictions, second_tokens: Tokens, second: Predictions
) -> Estimate | None:
    """Bits per byte of `second` less those of `first` over the headline of one pool, paired by trajectory.

    Each model has the pool in its own tokens; the bytes are the same. None over nothing.
    """
    size = _per_trajectory(first_tokens, first_tokens.byte_count, first_tokens.headline)
    nats = _per_trajectory(first_tokens, first.nats, first_tokens.headline)
    other_nats = _per_trajectory(second_tokens, second.nats, second_tokens.headline)
    return ratio_difference(nats / math.log(2), other_nats / math.log(2), size)


def reliability(predictions: Predictions, chosen: Bools) -> list[tuple[float, float, int]]:
    """The calibration bins that hold something: mean confidence, accuracy, tokens."""
    found = []
    for number in range(CALIBRATION_BINS):
        inside = chosen & (_bins(predictions) == number)
        if inside.any():
            confidence, correct = predictions.confidence[inside], predictions.correct[inside]
            found.append((float(confidence.mean()), float(correct.mean()), int(inside.sum())))
    return found


def groups(tokens: Tokens) -> Iterator[tuple[str, str, Bools]]:
    """The groups that measures are broken down by: group, key, which tokens.

    All are over the headline's tokens, except: `role` has the warnings too, and `pair` the seen pairs.
    """
    headline, warning = tokens.headline, tokens.role == "warning"
    measured = headline | warning
    for role, channel in sorted(Counter(zip(tokens.role[measured], tokens.channel[measured], strict=True))):
        name = f"{role} {channel}".strip()
        yield "role", name, measured & (tokens.role == role) & (tokens.channel == channel)
    for command, _ in Counter(tokens.command[headline]).most_common():
        yield "command", command, headline & (tokens.command == command)
    for status in sorted(set(tokens.exit_status[headline]), key=lambda text: (not text.isdigit(), len(text), text)):
        yield "exit_status", status, headline & (tokens.exit_status == status)
    output = tokens.role == "env_output"
    for key, chosen in (("novel", headline), ("seen", output & ~tokens.novel)):
        if chosen.any():
            yield "pair", key, chosen
    bucket = np.searchsorted([first for _, first in POSITIONS], tokens.position, side="right") - 1
    for number, (name, _) in enumerate(POSITIONS):
        if (chosen := headline & (bucket == number)).any():
            yield "position", name, chosen
    for key, mask in (("copyable", tokens.copyable), ("not copyable", ~tokens.copyable)):
        if (chosen := headline & mask).any():
            yield "copyable", key, chosen


def _segments(
    number: int,
    trajectory: Trajectory,
    spans: Mapping[int, Span],
    seen: Collection[Pair],
    tokenizer: Tokenizer,
    roles: Collection[Role],
) -> Iterator[dict[str, Any]]:
    """Yield the columns of each measured segment; a value that all of its tokens share stands once."""
    index = outputs = begin = 0
    turn = -1
    for segment in trajectory.segments:
        count = len(segment.token_ids)
        if segment.role is Role.ACTION:
            turn, begin = turn + 1, index
        span, position = -1, 0
        if segment.role is Role.ENV_OUTPUT:
            inside = [(key, outputs - of.start) for key, of in spans.items() if 0 <= outputs - of.start < of.count]
            span, position = inside[0] if inside else (-1, 0)
            outputs += count
        if segment.role in roles and (span >= 0 or segment.role is Role.WARNING):
            yield {
                "trajectory": number,
                "index": np.arange(index, index + count),
                "begin": begin,
                "token_id": segment.token_ids,
                "byte_count": _sizes(segment, tokenizer),
                "role": segment.role.name.lower(),
                "channel": segment.channel or "",
                **_turn_columns(trajectory, turn, seen),
                "span": span,
                "position": np.arange(position, position + count),
            }
        index += count


def _turn_columns(trajectory: Trajectory, turn: int, seen: Collection[Pair]) -> dict[str, Any]:
    """Return command word, exit status and novelty; a notice before the first action belongs to no command."""
    if turn < 0:
        return {"command": "", "exit_status": "none", "novel": False}
    exchange = trajectory.turns[turn]
    return {
        "command": next(iter(exchange.command.split(maxsplit=1)), ""),
        "exit_status": "none" if exchange.exit_code is None else str(exchange.exit_code),
        "novel": pair_of(exchange) not in seen,
    }


def _sizes(segment: Segment, tokenizer: Tokenizer) -> list[int]:
    sizes = tokenizer.byte_counts(segment.token_ids)
    if sizes:
        # An output cut within a character shows a replacement for it, which has bytes of its own.
        sizes[-1] += len(segment.text.encode()) - sum(sizes)
    return sizes


def _around(value: float | None, found: Estimate) -> Estimate:
    """Return `found` with `value`, the same but for the order of its sums, as its value."""
    if value is None or found.low is None or found.high is None:
        return replace(found, value=found.value if value is None else value)
    return Estimate(value, min(found.low, value), max(found.high, value))


def _per_trajectory(tokens: Tokens, values: NDArray[Any], chosen: Bools) -> Floats:
    clusters = int(tokens.trajectory.max(initial=-1)) + 1
    weights = np.asarray(values[chosen], dtype=np.float64)
    return np.bincount(tokens.trajectory[chosen], weights, clusters).astype(np.float64)


def _bins(predictions: Predictions) -> Ints:
    return np.minimum((predictions.confidence * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1)


def longest_suffix_matches(token_ids: Sequence[int]) -> tuple[Ints, Ints]:
    """For every position p: how much of what precedes it has occurred before, and what then followed.

    Time is O(T²) and memory O(T) for T tokens.

    Returns:
        length_T: tokens of the longest suffix of `token_ids[:p]` that also ends at an earlier position; 0 where the
            last token is new, and at p = 0.
        following_T: the token after the latest of the earlier occurrences of that suffix; -1 where the length is 0.
    """
    ids_T = np.asarray(token_ids, dtype=np.int64)
    length_T, following_T = np.zeros(len(ids_T), dtype=np.int64), np.full(len(ids_T), -1, dtype=np.int64)
    # shared_T[j]: tokens that the suffixes of ids[:p] and ids[:j] have in common, for 0 < j < p.
    shared_T = np.zeros(len(ids_T) + 1, dtype=np.int64)
    for p in range(1, len(ids_T)):
        shared_T[1:p] = np.where(ids_T[: p - 1] == ids_T[p - 1], shared_T[: p - 1] + 1, 0)
        if p > 1:
            latest = p - 1 - int(shared_T[1:p][::-1].argmax())
            length_T[p] = shared_T[latest]
            following_T[p] = ids_T[latest] if shared_T[latest] else -1
    return length_T, following_T
