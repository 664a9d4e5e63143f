"""Conversion of trajectories to tensors: micro-batches, and the targets that the loss scores.

Position t predicts token t + 1, the target, whose role decides the term of the loss. The first token of a trajectory
and padding are never targets. Targets are selected by role and rollout index, never by token id, so the padding id may
be any id, eos included.

Shape suffixes:
    B  rollouts of the optimizer step (on this rank)
    R  rows of a micro-batch; a row holds one rollout, or several when packed
    T  tokens of a row
    N  targets of a micro-batch
    H  hidden size
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from types import MappingProxyType
from typing import Literal, TypeVar

import torch
from torch import Tensor

from echo_cli.trajectory import Role, Trajectory

Value = TypeVar("Value", int, float)


@dataclass(frozen=True)
class RolloutCounts:
    """Numbers of targets of each rollout of the step, from which the loss's denominators are computed."""

    actions_B: Tensor
    """Number of action targets |A_i|, int64."""
    observations_B: Tensor
    """Number of env_output, warning and end targets |O_i|, int64."""
    candidates_B: Tensor
    """Number of tokens of the env term's roles, int64: |O'_i| before the selection of selection.py."""
    selected_B: Tensor
    """Number of targets of the env term |O'_i|, int64."""
    factors_B: Tensor
    """Sum of the targets' factors in the env term, float64; equal to |O'_i| without `env_weights`."""
    ends_B: Tensor
    """Number of end targets, int64; 0 unless the outputs' ends are marked (`objective.end_of_output`)."""
    in_rl_B: Tensor
    """Whether the rollout has an RL term, bool."""
    in_env_B: Tensor
    """Whether the rollout has an env term, bool. True for a kept rollout without observations, which counts in B."""
    in_imitation_B: Tensor
    """Whether the rollout has an imitation term, bool."""


def count_rollouts(
    trajectories: Sequence[Trajectory],
    selected_roles: Collection[Role],
    *,
    use_rl: bool = True,
    kept: Collection[int] | None = None,
    imitated: Collection[int] = (),
    factors: Mapping[int, Sequence[float]] = MappingProxyType({}),
) -> RolloutCounts:
    """Count the targets of each rollout.

    Args:
        selected_roles: roles of the env term, `ObjectiveSettings.selected_roles`.
        use_rl: whether rollouts have an RL term; `world_model_only` rollouts never have one.
        kept: indices of the rollouts in the env term, `FilterResult.kept`; None means all.
        imitated: indices of the rollouts in the imitation term; these must not have an RL term.
        factors: factors of the observation tokens by rollout, `selection.target_factors`; 1 for other rollouts.

    Raises:
        ValueError: a rollout is in the RL term and in the imitation term, which score its actions at different
            temperatures.
    """
    if any(use_rl and not trajectories[index].world_model_only for index in imitated):
        raise ValueError("a rollout with an RL term cannot be imitated")

    # A trajectory starts with a context token, so every token counted here has a predecessor.
    def count(roles: Collection[Role]) -> Tensor:
        return torch.tensor([sum(t.count(role) for role in roles) for t in trajectories], dtype=torch.int64)

    def among(indices: Collection[int]) -> Tensor:
        chosen = set(indices)
        return torch.tensor([index in chosen for index in range(len(trajectories))], dtype=torch.bool)

    candidates_B = count(selected_roles)
    selected_B, factors_B = candidates_B.clone(), candidates_B.double()
    for index, of_tokens in factors.items():
        selected_B[index] = sum(factor > 0 for factor in of_tokens)
        factors_B[index] = sum(of_tokens)
    return RolloutCounts(
        actions_B=count([Role.ACTION]),
        observations_B=count([Role.ENV_OUTPUT, Role.WARNING, Role.END]),
        candidates_B=candidates_B,
        selected_B=selected_B,
        factors_B=factors_B,
        ends_B=count([Role.END]),
        in_rl_B=torch.tensor([use_rl and not t.world_model_only for t in trajectories], dtype=torch.bool),
        in_env_B=among(range(len(trajectories)) if kept is None else kept),
        in_imitation_B=among(imitated),
    )


@dataclass(frozen=True)
class MicroBatch:
    """Rows of tokens from some rollouts of the step.

    Attention must be restricted to positions of equal `rollout_RT`, padding excluded.
    """

    token_ids_RT: Tensor
    """Token ids, int64; the padding id where `rollout_RT` is -1."""
    roles_RT: Tensor
    """Role values, int64."""
    rollout_RT: Tensor
    """Index of the token's rollout in the step, int64; -1 for padding."""
    position_ids_RT: Tensor
    """Position of the token in its rollout, 0-based, int64; 0 for padding."""
    behaviour_logprobs_RT: Tensor
    """Logprob under the sampling distribution, nats, float32; 0 for tokens without one."""

    def to(self, device: torch.device | str) -> MicroBatch:
        return MicroBatch(**{name: tensor.to(device) for name, tensor in vars(self).items()})


@dataclass(frozen=True)
class Targets:
    """Tokens of a micro-batch whose logprob is computed: actions, then observations, each in row order."""

    row_N: Tensor
    position_N: Tensor
    """Position in the row of the *predecessor*, whose hidden state predicts the target."""
    token_ids_N: Tensor
    roles_N: Tensor
    rollout_N: Tensor
    behaviour_logprobs_N: Tensor
    action_count: int
    """Number of action targets, which are the first of the N targets."""
    factors_N: Tensor | None = None
    """Factor of each observation target in the env term, float32, and 1 for actions; None if all are 1."""

    def gather(self, hidden_RTH: Tensor) -> Tensor:
        """Return hidden_NH, the hidden states that predict the targets."""
        return hidden_RTH[self.row_N, self.position_N]

    def of_rollouts(self, owners: Sequence[int]) -> Targets:
        """Return the targets with `rollout_N` converted from view v to the rollout `owners[v]` of the step."""
        owner_V = torch.tensor(owners, dtype=torch.int64, device=self.rollout_N.device)
        return replace(self, rollout_N=owner_V[self.rollout_N])

    def replaced(self, observations: Mapping[int, Sequence[int]]) -> Targets:
        """Return the targets with other token ids for the observations of some rollouts, the keys of `observations`.

        The inputs, from which the targets are predicted, do not change.

        Args:
            observations: token ids of all observation targets of a rollout, in order (`WeighedStep.misplaced`).

        Raises:
            ValueError: a rollout has another number of observation targets.
        """
        if not observations:
            return self
        token_ids_N = self.token_ids_N.clone()
        for mine_N, ids in self._observations(observations, "token ids"):
            token_ids_N[mine_N] = torch.tensor(ids, dtype=torch.int64, device=token_ids_N.device)
        return replace(self, token_ids_N=token_ids_N)

    def weighted(self, factors: Mapping[int, Sequence[float]]) -> Targets:
        """Return the targets with the factors of the observations of some rollouts, the keys of `factors`.

        Args:
            factors: factors of all observation targets of a rollout, in order (`WeighedStep.factors`).

        Raises:
            ValueError: a rollout has another number of observation targets.
        """
        if not factors:
            return self
        factors_N = torch.ones_like(self.behaviour_logprobs_N)
        for mine_N, of_tokens in self._observations(factors, "factors"):
            factors_N[mine_N] = torch.tensor(of_tokens, dtype=factors_N.dtype, device=factors_N.device)
        return replace(self, factors_N=factors_N)

    def _observations(
        self, values: Mapping[int, Sequence[Value]], noun: str
    ) -> Iterator[tuple[Tensor, Sequence[Value]]]:
        """Yield the mask of a rollout's observation targets and its `values`, for each rollout that has both."""
        for rollout in sorted(set(self.rollout_N[self.action_count :].tolist()) & values.keys()):
            mine_N = (self.rollout_N == rollout) & (self.roles_N != Role.ACTION)
            if len(values[rollout]) != int(mine_N.sum()):
                raise ValueError(f"{len(values[rollout])} {noun} for {int(mine_N.sum())} targets of rollout {rollout}")
            yield mine_N, values[rollout]


def bucket(
    trajectories: Sequence[Trajectory], token_budget: int, max_padding: float = 0.25, overhead: int = 256
) -> list[list[int]]:
    """Group rollouts of similar length into micro-batches of at most `token_budget` tokens, padding included.

    The rollouts are sorted by length, longest first, ties by index: the result is deterministic, and a step that does
    not fit in memory fails early. They are then partitioned to minimise the tokens computed, with `overhead` tokens
    added per micro-batch. The fraction of padding in a micro-batch is at most `max_padding`. A rollout longer than the
    budget is a micro-batch of its own.

    Returns:
        Lists of indices into `trajectories`; each index occurs once.
    """
    order = sorted(range(len(trajectories)), key=lambda index: (-len(trajectories[index]), index))
    lengths = [len(trajectories[index]) for index in order]
    return [[order[place] for place in part] for part in cheapest_cut(lengths, token_budget, overhead, max_padding)]


def cheapest_cut(lengths: Sequence[int], token_budget: int, overhead: int, max_padding: float = 1.0) -> list[range]:
    """Partition rows into consecutive groups that minimise the tokens computed.

    The cost of a group is its tokens, padding included, plus `overhead` tokens.

    Args:
        lengths: lengths of the rows, tokens, in decreasing order.
        token_budget: maximum size of a group, tokens including padding; a longer row is a group of its own.
        max_padding: maximum fraction of padding in a group.

    Returns:
        Ranges of indices into `lengths`, in order.
    """
    before = [0, *accumulate(lengths)]
    # cost[end] is the lowest cost of the first `end` rows; in that partition the last group begins at first[end].
    cost, first = [0.0], [0]
    for end in range(1, len(lengths) + 1):
        cost.append(math.inf)
        first.append(end - 1)
        for start in reversed(range(end)):
            cells = (end - start) * lengths[start]
            if end - start > 1 and cells > token_budget:
                break
            padding = 1 - (before[end] - before[start]) / cells
            if padding <= max_padding and cost[start] + cells + overhead < cost[end]:
                cost[end], first[end] = cost[start] + cells + overhead, start
    groups, end = [], len(lengths)
    while end > 0:
        groups.append(range(first[end], end))
        end = first[end]
    return groups[::-1]


def collate(trajectories: Sequence[Trajectory], indices: Sequence[int], pad_id: int) -> MicroBatch:
    """Return the rollouts at `indices` as a micro-batch with one rollout per row, padded on the right."""
    return pack(trajectories, [[index] for index in indices], pad_id)


def pack(
    trajectories: Sequence[Trajectory],
    rows: Sequence[Sequence[int]],
    pad_id: int,
    *,
    width: int | None = None,
    padding_side: Literal["left", "right"] = "right",
) -> MicroBatch:
    """Return a micro-batch whose row r concatenates the rollouts at the indices `rows[r]`.

    Args:
        trajectories: all rollouts of the step, which `rollout_RT` indexes.
        width: T, tokens; by default the length of the longest row.

    Raises:
        ValueError: a row is longer than `width`.
    """
    lengths = [sum(len(trajectories[index]) for index in row) for row in rows]
    width = max(lengths) if width is None else width
    if max(lengths) > width:
        raise ValueError(f"a row of {max(lengths)} tokens does not fit in a width of {width}")

    shape = (len(rows), width)
    micro = MicroBatch(
        token_ids_RT=torch.full(shape, pad_id, dtype=torch.int64),
        roles_RT=torch.full(shape, int(Role.PAD), dtype=torch.int64),
        rollout_RT=torch.full(shape, -1, dtype=torch.int64),
        position_ids_RT=torch.zeros(shape, dtype=torch.int64),
        behaviour_logprobs_RT=torch.zeros(shape, dtype=torch.float32),
    )
    for r, row in enumerate(rows):
        start = width - lengths[r] if padding_side == "left" else 0
        for index in row:
            trajectory = trajectories[index]
            span = slice(start, start + len(trajectory))
            micro.token_ids_RT[r, span] = torch.tensor(trajectory.token_ids)
            micro.roles_RT[r, span] = torch.tensor(trajectory.roles)
            micro.rollout_RT[r, span] = index
            micro.position_ids_RT[r, span] = torch.arange(len(trajectory))
            micro.behaviour_logprobs_RT[r, span] = torch.tensor(_behaviour_logprobs(trajectory))
            start = span.stop
    return micro


def targets(micro: MicroBatch, roles: Collection[Role]) -> Targets:
    """Return the targets with the given roles in a micro-batch; training uses `ObjectiveSettings.target_roles`.

    A token can be a target only if its predecessor in the row belongs to the same rollout. This excludes packed
    neighbours, the first token of a rollout, and padding on either side.
    """
    rollout_RT, roles_RT = micro.rollout_RT, micro.roles_RT
    # One column shorter than T: entry t is for predecessor t and target t + 1.
    inside = (rollout_RT[:, 1:] >= 0) & (rollout_RT[:, 1:] == rollout_RT[:, :-1])
    target_roles = roles_RT[:, 1:]

    def locate(wanted: Collection[Role]) -> Tensor:
        wanted_roles = torch.tensor(sorted(wanted), dtype=torch.int64, device=roles_RT.device)
        return (inside & torch.isin(target_roles, wanted_roles)).nonzero()

    actions_N2 = locate({Role.ACTION} & set(roles))
    row_N, position_N = torch.cat([actions_N2, locate(set(roles) - {Role.ACTION})]).unbind(dim=1)
    return Targets(
        row_N=row_N,
        position_N=position_N,
        token_ids_N=micro.token_ids_RT[row_N, position_N + 1],
        roles_N=roles_RT[row_N, position_N + 1],
        rollout_N=rollout_RT[row_N, position_N + 1],
        behaviour_logprobs_N=micro.behaviour_logprobs_RT[row_N, position_N + 1],
        action_count=len(actions_N2),
    )


def _behaviour_logprobs(trajectory: Trajectory) -> list[float]:
    return [logprob for s in trajectory.segments for logprob in (s.logprobs or (0.0,) * len(s.token_ids))]
