"""Group-relative advantages from rewards.

Shape suffixes: B rollouts of the optimizer step, G rollouts of one group.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from echo_cli.config.objective import AdvantageKind
from echo_cli.errors import EchoError
from echo_cli.trajectory import Trajectory

EPSILON = 1e-6
"""Constant added to the standard deviation in `group_norm`, as in the paper and the GRPO releases."""


def advantages(rewards_B: Tensor, group_ids: Sequence[str], kind: AdvantageKind) -> Tensor:
    """Return the advantage of each rollout within its group.

    - `group_norm`: (r - mean) / (std + 1e-6), with the sample standard deviation (n - 1), as in the GRPO releases that
      use `torch.std` with its default.
    - `group_mean`: r - mean.
    - `rloo`: r - mean of the other rollouts of the group, which equals (r - mean) · G / (G - 1).

    The advantages of a group without reward variance are exactly 0; this includes groups of one rollout.

    Args:
        rewards_B: floating point. All rollouts of a group must be present, so no group may be split over ranks.
        group_ids: B group names.

    Returns:
        advantages_B, in the dtype of `rewards_B`.

    Raises:
        ValueError: the number of group ids is not B.
    """
    if len(group_ids) != len(rewards_B):
        raise ValueError(f"{len(group_ids)} group ids for {len(rewards_B)} rewards")
    members: dict[str, list[int]] = {}
    for index, group_id in enumerate(group_ids):
        members.setdefault(group_id, []).append(index)
    advantages_B = torch.zeros_like(rewards_B)
    for indices in members.values():
        advantages_B[indices] = _group_advantages(rewards_B[indices], kind)
    return advantages_B


def step_advantages(trajectories: Sequence[Trajectory], kind: AdvantageKind) -> Tensor:
    """Return the advantages of a step's rollouts, float64 [B].

    A `world_model_only` rollout has no RL term: its advantage is 0, and its reward, if any, is excluded from the
    statistics of its group.

    Raises:
        EchoError: a rollout with an RL term has no reward.
    """
    scored = [index for index, trajectory in enumerate(trajectories) if not trajectory.world_model_only]
    rewards: list[float] = []
    for index in scored:
        reward = trajectories[index].reward
        if reward is None:
            raise EchoError(
                f"rollout of task {trajectories[index].task_id!r} has no reward",
                "call the verifier, mark the rollout world_model_only, or set objective.use_rl=false",
            )
        rewards.append(reward)
    advantages_B = torch.zeros(len(trajectories), dtype=torch.float64)
    group_ids = [trajectories[index].group_id for index in scored]
    advantages_B[scored] = advantages(torch.tensor(rewards, dtype=torch.float64), group_ids, kind)
    return advantages_B


def _group_advantages(rewards_G: Tensor, kind: AdvantageKind) -> Tensor:
    # Compare the rewards themselves: the mean of equal floats may differ from them by a rounding error, which
    # group_norm would divide by 1e-6.
    if bool((rewards_G == rewards_G[0]).all()):
        return torch.zeros_like(rewards_G)
    centred_G = rewards_G - rewards_G.mean()
    if kind == "group_norm":
        return centred_G / (rewards_G.std() + EPSILON)
    if kind == "rloo":
        return centred_G * (len(rewards_G) / (len(rewards_G) - 1))
    return centred_G
