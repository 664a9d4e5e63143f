"""Inspection of a trajectory file in one pass: amounts by role, boundaries, outputs and duplicates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from echo_cli.models.tokenizer import Tokenizer
from echo_cli.text import share
from echo_cli.trace import Trace, TraceSegment
from echo_cli.traces.inspection.boundaries import Straddling, StraddlingCount
from echo_cli.traces.inspection.duplicates import DuplicateCount, Duplicates
from echo_cli.traces.inspection.outputs import OutputCount, OutputSurvey, turn_outputs
from echo_cli.trajectory import NAMED_ROLES, SCAFFOLD, Role


@dataclass(frozen=True)
class Rewards:
    """Rewards of the scored episodes; the statistics are None if no episode is scored."""

    scored: int
    """Number of episodes with a reward."""
    unscored: int
    """Number of episodes without a reward."""
    mean: float | None
    lowest: float | None
    highest: float | None


@dataclass(frozen=True)
class Inspection:
    """Contents of a trajectory file."""

    trajectories: int
    world_model_only: int
    """Number of trajectories without an RL term."""
    rewards: Rewards
    stop_reasons: Mapping[str, int]
    sources: Mapping[str, int]
    account: RoleAccount
    straddling: Straddling
    outputs: OutputSurvey
    duplicates: Duplicates

    def to_json(self) -> dict[str, Any]:
        """Return the inspection as a JSON object."""
        return asdict(self)


def inspect(traces: Iterable[Trace], tokenizer: Tokenizer, *, own_ids: bool) -> Inspection:
    """Inspect `traces` in one pass; memory grows only by the digests of `DuplicateCount`.

    Args:
        tokenizer: tokenizer for boundaries and, without `own_ids`, for token counts.
        own_ids: whether to count the traces' own token ids, which all of them must have (`Trace.has_token_ids`).
    """
    roles, boundaries, outputs, duplicates = RoleCount(), StraddlingCount(tokenizer), OutputCount(), DuplicateCount()
    stop_reasons, sources, world_model_only = Counter[str](), Counter[str](), 0
    scored, total, lowest, highest = 0, 0.0, float("inf"), float("-inf")
    number = 0
    for number, trace in enumerate(traces, start=1):
        tokens = [token_count(segment, tokenizer, own_ids=own_ids) for segment in trace.segments]
        turns = turn_outputs(trace, tokens)
        roles.add(trace.segments, tokens)
        boundaries.add(trace.segments)
        outputs.add(trace, turns, number)
        duplicates.add(trace, turns, number)
        stop_reasons[trace.stop_reason] += 1
        sources[trace.source] += 1
        world_model_only += trace.world_model_only
        if trace.reward is not None:
            scored, total = scored + 1, total + trace.reward
            lowest, highest = min(lowest, trace.reward), max(highest, trace.reward)
    span = (total / scored, lowest, highest) if scored else (None, None, None)
    return Inspection(
        trajectories=number,
        world_model_only=world_model_only,
        rewards=Rewards(scored, number - scored, *span),
        stop_reasons=dict(stop_reasons.most_common()),
        sources=dict(sources.most_common()),
        account=roles.result(),
        straddling=boundaries.result(),
        outputs=outputs.result(),
        duplicates=duplicates.result(),
    )


def token_count(segment: TraceSegment, tokenizer: Tokenizer, *, own_ids: bool) -> int:
    """Return the number of tokens of a segment: of its own ids, or of its text, encoded alone.

    Names of special tokens are encoded as the tokens in text of a model or a renderer, and as plain text elsewhere.
    """
    if own_ids:
        return len(segment.token_ids or ())
    marks = segment.role is Role.ACTION or segment.channel == SCAFFOLD
    return len(tokenizer.encode_scaffold(segment.text) if marks else tokenizer.encode(segment.text))


UNNAMED = "unnamed"
"""Channel name under which segments without a channel are listed."""

_LEARNABLE = (Role.ACTION, Role.ENV_OUTPUT, Role.WARNING)


@dataclass(frozen=True)
class Amount:
    """Amount of text in a set of segments. Shares are fractions of the whole file; None if the file has no text."""

    segments: int
    """Number of segments."""
    bytes: int
    """Size of the text, bytes in UTF-8."""
    bytes_share: float | None
    tokens: int
    """Number of tokens."""
    tokens_share: float | None


@dataclass(frozen=True)
class RoleAmount(Amount):
    """Amount of text of a role, and of each of its channels, the largest first."""

    channels: Mapping[str, Amount]


@dataclass(frozen=True)
class RoleAccount:
    """Amounts by role. Tokens of action, env_output and warning can be learned; plain RL learns actions only."""

    total: Amount
    roles: Mapping[str, RoleAmount]
    learnable_tokens: int
    discarded_tokens: int
    """Number of learnable tokens that plain RL masks: env_output and warning."""
    discarded_share: float | None
    """Share of the learnable tokens that plain RL masks."""


class RoleCount:
    """Accumulator of the amounts of many episodes by role and channel."""

    def __init__(self) -> None:
        self._segments: Counter[tuple[Role, str]] = Counter()
        self._bytes: Counter[tuple[Role, str]] = Counter()
        self._tokens: Counter[tuple[Role, str]] = Counter()

    def add(self, segments: Sequence[TraceSegment], tokens: Sequence[int]) -> None:
        """Count the segments of an episode; `tokens` holds the number of tokens of each segment."""
        for segment, count in zip(segments, tokens, strict=True):
            key = (segment.role, segment.channel or UNNAMED)
            self._segments[key] += 1
            self._bytes[key] += len(segment.text.encode())
            self._tokens[key] += count

    def result(self) -> RoleAccount:
        """Return the account, which lists every role, with or without segments."""
        roles: dict[str, RoleAmount] = {}
        for role in NAMED_ROLES.values():
            keys = sorted((key for key in self._segments if key[0] is role), key=lambda key: (-self._bytes[key], key))
            channels = {channel: self._amount([(role, channel)]) for _, channel in keys}
            roles[role.name.lower()] = RoleAmount(**vars(self._amount(keys)), channels=channels)
        learnable = sum(roles[role.name.lower()].tokens for role in _LEARNABLE)
        discarded = learnable - roles["action"].tokens
        return RoleAccount(
            total=self._amount(list(self._segments)),
            roles=roles,
            learnable_tokens=learnable,
            discarded_tokens=discarded,
            discarded_share=share(discarded, learnable),
        )

    def _amount(self, keys: Sequence[tuple[Role, str]]) -> Amount:
        segments, size, tokens = (
            sum(counts[key] for key in keys) for counts in (self._segments, self._bytes, self._tokens)
        )
        return Amount(segments, size, share(size, self._bytes.total()), tokens, share(tokens, self._tokens.total()))
