"""Measures of a model on a pool's tokens: env-CE, bits per byte, accuracy and calibration, with intervals, by group.

A pool's tokens are stored as columns with one entry per token, and a model's predictions likewise, so that all models
are measured over the same tokens. Training logs the values without intervals (`values_of`). Intervals come from
resampling whole trajectories.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from echo_cli.evaluation.suffix_matches import longest_suffix_matches
from echo_cli.models.backend import Policy
from echo_cli.models.tokenizer import Tokenizer
from echo_cli.runs.pools import Pair, Pool, Span, lines_of, pair_of
from echo_cli.statistics import Estimate, Floats, absolute_ratio, ratio, ratio_difference
from echo_cli.trajectory import Role, Segment, Trajectory

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Texts = NDArray[np.object_]

MIN_MATCH = 2
"""Minimum match length for a copyable continuation, tokens; a single newline would match nearly everywhere."""
CALIBRATION_BINS = 15

# Data types of the columns of `Tokens`, by annotation.
_DTYPES = {"Ints": np.int64, "Bools": np.bool_, "Texts": np.object_}


@dataclass(frozen=True)
class Tokens:
    """The measured tokens of a pool (tokens of its spans, and warning tokens), as columns of N entries."""

    sequences: Sequence[Sequence[int]]
    """Token ids of each trajectory of the pool."""
    trajectory: Ints
    """Index of the trajectory in the pool, 0-based."""
    index: Ints
    """Position in the trajectory, 0-based."""
    begin: Ints
    """Position in the trajectory of the first token of the exchange's command, 0-based."""
    token_id: Ints
    byte_count: Ints
    """Number of text bytes that the token represents; over a span they sum to its `output_bytes`."""
    role: Texts
    """env_output or warning; or end, if the pool's ends are marked and asked for."""
    channel: Texts
    command: Texts
    """First word of the command."""
    exit_status: Texts
    novel: Bools
    """Whether training has not executed the (command, output) pair; for a warning, the pair of its turn."""
    shown: Bools
    """Whether training has observed every line of the pair's output, under any command."""
    span: Ints
    """Index among the pool's spans, 0-based; -1 for warnings."""
    position: Ints
    """Position within the output, 0-based; for a warning, within its segment."""

    def __len__(self) -> int:
        return len(self.trajectory)

    @property
    def headline(self) -> Bools:
        """Mask of the headline's tokens: env_output tokens of novel pairs."""
        return np.asarray((self.role == "env_output") & self.novel)

    @property
    def by_lines(self) -> dict[str, Bools]:
        """Masks of the headline's tokens: `shown`, of pairs whose lines training has all observed, and `unshown`."""
        return {"shown": self.headline & self.shown, "unshown": self.headline & ~self.shown}

    @property
    def seen(self) -> Bools:
        """Mask of the env_output tokens of pairs that training has executed."""
        return np.asarray((self.role == "env_output") & ~self.novel)

    @property
    def match_length(self) -> Ints:
        """Length of the longest earlier match of the preceding tokens, in tokens; see `longest_suffix_matches`."""
        return self._matches[0]

    @property
    def match_token(self) -> Ints:
        """Id of the token that followed the match; -1 without a match."""
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
        """Mask of the tokens that continue the longest match, if the match has at least `MIN_MATCH` tokens.

        The match is between the tokens just before the token, of any role, and earlier text of the same trajectory;
        the latest of equally long matches counts. A token after a shorter match, or after a match with a different
        continuation, is not copyable.
        """
        return np.asarray((self.match_length >= MIN_MATCH) & (self.match_token == self.token_id))


@dataclass(frozen=True)
class Predictions:
    """A model's teacher-forced predictions of N tokens at temperature 1."""

    nats: Floats
    """-log p(token)."""
    correct: Bools
    """Whether the token is the most probable one."""
    confidence: Floats
    """Probability of the most probable token; NaN if the backend does not tell it, and `correct` means nothing."""

    @property
    def knows_most_probable(self) -> bool:
        """Whether the most probable tokens are known."""
        return not bool(np.isnan(self.confidence).any())


@dataclass(frozen=True)
class Measures:
    """Measures of one model over a set of tokens. Compressors have bits per byte only."""

    estimates: Mapping[str, Estimate]
    """Estimates by name: env_ce (nats per token), env_bits_per_byte, token_accuracy, calibration_error."""
    tokens: int
    bytes: int
    trajectories: int
    pairs: int
    """Number of (command, output) pairs; warnings belong to none."""


def tokens_of(
    pool: Pool, seen: Collection[Pair], tokenizer: Tokenizer, roles: Collection[Role] = (Role.ENV_OUTPUT, Role.WARNING)
) -> Tokens:
    """Return the tokens of `pool` with one of `roles`, each pair once.

    Args:
        seen: pairs that training has executed.
    """
    segments: list[dict[str, Any]] = []
    known = _Known(seen, lines_of(seen))
    first_span = 0
    for number, (trajectory, spans) in enumerate(zip(pool.trajectories, pool.spans, strict=True)):
        segments += _segments(number, trajectory, dict(enumerate(spans, first_span)), known, tokenizer, roles)
        first_span += len(spans)

    def column(name: str, dtype: type[np.generic]) -> NDArray[Any]:
        parts = [np.full(len(segment["token_id"]), segment[name], dtype) for segment in segments]
        return np.concatenate([np.zeros(0, dtype), *parts])

    columns = {of.name: column(of.name, _DTYPES[of.type]) for of in fields(Tokens) if of.type in _DTYPES}
    return Tokens([trajectory.token_ids for trajectory in pool.trajectories], **columns)


def predict(policy: Policy, pool: Pool, tokens: Tokens) -> Predictions:
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
    """Return env_ce, env_bits_per_byte and token_accuracy over the `chosen` tokens; empty without tokens."""
    rows = np.flatnonzero(chosen)
    if not len(rows):
        return {}
    # Summed within each output first, then over the outputs, to reproduce runs of earlier versions bit for bit.
    outputs = np.split(predictions.nats[rows], np.flatnonzero(np.diff(tokens.span[rows])) + 1)
    nats = sum(float(torch.from_numpy(output).sum()) for output in outputs)
    size = int(tokens.byte_count[rows].sum())
    return {
        "env_ce": nats / len(rows),
        **({"env_bits_per_byte": nats / math.log(2) / size} if size else {}),
        **(
            {"token_accuracy": int(predictions.correct[rows].sum()) / len(rows)}
            if predictions.knows_most_probable
            else {}
        ),
    }


def measure(tokens: Tokens, predictions: Predictions, chosen: Bools) -> Measures | None:
    """Measure the `chosen` tokens, with intervals; None without tokens."""
    values = values_of(tokens, predictions, chosen)
    if not values:
        return None
    count = _per_trajectory(tokens, chosen, chosen)
    size = _per_trajectory(tokens, tokens.byte_count, chosen)
    nats = _per_trajectory(tokens, predictions.nats, chosen)
    resampled = {"env_ce": ratio(nats, count), "env_bits_per_byte": ratio(nats / math.log(2), size)}
    if predictions.knows_most_probable:
        gaps = predictions.confidence - predictions.correct
        binned = [
            _per_trajectory(tokens, gaps, chosen & (_bins(predictions) == number)) for number in range(CALIBRATION_BINS)
        ]
        resampled["token_accuracy"] = ratio(_per_trajectory(tokens, predictions.correct, chosen), count)
        resampled["calibration_error"] = absolute_ratio(binned, count)
    return Measures(
        {name: _around(values.get(name), found) for name, found in resampled.items() if found is not None},
        int(count.sum()),
        int(size.sum()),
        int((count > 0).sum()),
        pairs_in(tokens, chosen),
    )


def pairs_in(tokens: Tokens, chosen: Bools) -> int:
    """Return the number of pairs among the `chosen` tokens."""
    return len(set(tokens.span[chosen].tolist()) - {-1})


def env_ce_difference(tokens: Tokens, first: Predictions, second: Predictions, chosen: Bools) -> Estimate | None:
    """Return env-CE of `second` minus env-CE of `first` over the `chosen` tokens, paired by trajectory.

    The difference is None without tokens.
    """
    return ratio_difference(
        _per_trajectory(tokens, first.nats, chosen),
        _per_trajectory(tokens, second.nats, chosen),
        _per_trajectory(tokens, chosen, chosen),
    )


def bits_per_byte_difference(
    first_tokens: Tokens, first: Predictions, second_tokens: Tokens, second: Predictions
) -> Estimate | None:
    """Return bits per byte of `second` minus bits per byte of `first` over a pool's headline, paired by trajectory.

    Each model has its own tokens of the pool; the bytes are the same. The difference is None without tokens.
    """
    size = _per_trajectory(first_tokens, first_tokens.byte_count, first_tokens.headline)
    nats = _per_trajectory(first_tokens, first.nats, first_tokens.headline)
    other_nats = _per_trajectory(second_tokens, second.nats, second_tokens.headline)
    return ratio_difference(nats / math.log(2), other_nats / math.log(2), size)


def reliability(predictions: Predictions, chosen: Bools) -> list[tuple[float, float, int]]:
    """Return the non-empty calibration bins: mean confidence, accuracy, number of tokens; none if they are unknown."""
    found: list[tuple[float, float, int]] = []
    if not predictions.knows_most_probable:
        return found
    for number in range(CALIBRATION_BINS):
        inside = chosen & (_bins(predictions) == number)
        if inside.any():
            confidence, correct = predictions.confidence[inside], predictions.correct[inside]
            found.append((float(confidence.mean()), float(correct.mean()), int(inside.sum())))
    return found


@dataclass(frozen=True)
class _Known:
    """Pairs that training has executed, and the lines of their outputs."""

    pairs: Collection[Pair]
    lines: set[str]


def _segments(
    number: int,
    trajectory: Trajectory,
    spans: Mapping[int, Span],
    known: _Known,
    tokenizer: Tokenizer,
    roles: Collection[Role],
) -> Iterator[dict[str, Any]]:
    """Yield the columns of each measured segment; a scalar holds for all tokens of the segment."""
    index = outputs = begin = 0
    turn, latest = -1, (-1, 0)
    for segment in trajectory.segments:
        count = len(segment.token_ids)
        if segment.role is Role.ACTION:
            turn, begin = turn + 1, index
        span, position = latest if segment.role is Role.END else (-1, 0)
        if segment.role is Role.ENV_OUTPUT:
            inside = [(key, outputs - of.start) for key, of in spans.items() if 0 <= outputs - of.start < of.count]
            span, position = latest = inside[0] if inside else (-1, 0)
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
                **_turn_columns(trajectory, turn, known),
                "span": span,
                "position": np.arange(position, position + count),
            }
        index += count


def _turn_columns(trajectory: Trajectory, turn: int, known: _Known) -> dict[str, Any]:
    """Return command word, exit status and novelty; a notice before the first action has no command."""
    if turn < 0:
        return {"command": "", "exit_status": "none", "novel": False, "shown": False}
    exchange = trajectory.turns[turn]
    pair = pair_of(exchange)
    return {
        "command": next(iter(exchange.command.split(maxsplit=1)), ""),
        "exit_status": "none" if exchange.exit_code is None else str(exchange.exit_code),
        "novel": pair not in known.pairs,
        "shown": lines_of([pair]) <= known.lines,
    }


def _sizes(segment: Segment, tokenizer: Tokenizer) -> list[int]:
    sizes = tokenizer.byte_counts(segment.token_ids)
    if sizes:
        # An output truncated within a character ends with a replacement character of a different byte length.
        sizes[-1] += len(segment.text.encode()) - sum(sizes)
    return sizes


def _around(value: float | None, found: Estimate) -> Estimate:
    """Return `found` with `value` as its value; the two differ only in the order of summation."""
    if value is None or found.low is None or found.high is None:
        return replace(found, value=found.value if value is None else value)
    return Estimate(value, min(found.low, value), max(found.high, value))


def _per_trajectory(tokens: Tokens, values: NDArray[Any], chosen: Bools) -> Floats:
    clusters = int(tokens.trajectory.max(initial=-1)) + 1
    weights = np.asarray(values[chosen], dtype=np.float64)
    return np.bincount(tokens.trajectory[chosen], weights, clusters).astype(np.float64)


def _bins(predictions: Predictions) -> Ints:
    return np.minimum((predictions.confidence * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1)
