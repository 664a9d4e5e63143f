"""How much of what is recorded belongs to whom: segments, bytes and tokens by role and channel."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from echo_cli.trace import TraceSegment
from echo_cli.traces.inspection.tally import share
from echo_cli.trajectory import Role

UNNAMED = "unnamed"
"""What segments without a channel are listed under."""

_ROLES = tuple(role for role in Role if role is not Role.PAD)
_LEARNABLE = (Role.ACTION, Role.ENV_OUTPUT, Role.WARNING)


@dataclass(frozen=True)
class Amount:
    """Some segments: bytes in UTF-8, tokens, and the share of all that is recorded; None of nothing."""

    segments: int
    bytes: int
    bytes_share: float | None
    tokens: int
    tokens_share: float | None


@dataclass(frozen=True)
class RoleAmount(Amount):
    """The segments of a role, and of its channels, the longest first."""

    channels: Mapping[str, Amount]


@dataclass(frozen=True)
class RoleAccount:
    """The amounts of each role. What can be learned is actions, env_output and warnings; plain RL learns actions."""

    total: Amount
    roles: Mapping[str, RoleAmount]
    learnable_tokens: int
    discarded_tokens: int
    """Learnable tokens that plain RL masks: env_output and warnings."""
    discarded_share: float | None


class RoleCount:
    """Counts the segments of many episodes."""

    def __init__(self) -> None:
        self._segments: Counter[tuple[Role, str]] = Counter()
        self._bytes: Counter[tuple[Role, str]] = Counter()
        self._tokens: Counter[tuple[Role, str]] = Counter()

    def add(self, segments: Sequence[TraceSegment], tokens: Sequence[int]) -> None:
        """Count the segments of an episode, `tokens` of each."""
        for segment, count in zip(segments, tokens, strict=True):
            key = (segment.role, segment.channel or UNNAMED)
            self._segments[key] += 1
            self._bytes[key] += len(segment.text.encode())
            self._tokens[key] += count

    def result(self) -> RoleAccount:
        """What was counted; every role is there, whether or not it has segments."""
        roles: dict[str, RoleAmount] = {}
        for role in _ROLES:
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
