"""Selection of the env term's targets: a factor per observation token, by role, channel and the action before it.

A factor depends on the token's own rollout alone, never on the micro-batch, the rank or the other rollouts.
"""

from __future__ import annotations

from collections.abc import Sequence

from echo_cli.config.objective import ObjectiveSettings
from echo_cli.trajectory import Role, Segment, Trajectory


def target_factors(trajectories: Sequence[Trajectory], settings: ObjectiveSettings) -> dict[int, list[float]]:
    """Return the factors on the cross-entropies of each rollout's observation tokens, in order, by rollout.

    The tokens are those of `settings.selected_roles`; a token whose factor is 0 is not a target of the env term. The
    factor is 0 after an action whose entropy is below `env_min_action_entropy`, and otherwise the channel's factor in
    `env_weights`, or else the role's, or else 1.

    Returns:
        An empty mapping if neither setting is set: all factors are 1.
    """
    if not settings.env_weights and settings.env_min_action_entropy is None:
        return {}
    return {index: _factors(trajectory, settings) for index, trajectory in enumerate(trajectories)}


def action_entropy(action: Segment) -> float | None:
    """Return the mean surprisal of a sampled action's tokens, nats per token; None without logprobs, as in scripts.

    It is an estimate of the entropy of the distributions that the tokens were sampled from, temperature included. An
    action without tokens has the entropy 0.
    """
    if action.logprobs is None:
        return None
    return -sum(action.logprobs) / max(len(action.logprobs), 1)


def unmatched_line(trajectories: Sequence[Trajectory], settings: ObjectiveSettings) -> str | None:
    """Return a line on the names in `env_weights` that no observation of the rollouts has; None if there is none."""
    segments = [
        segment
        for trajectory in trajectories
        for segment in trajectory.segments
        if segment.role in settings.selected_roles and segment.token_ids
    ]
    found = sorted({name for segment in segments for name in (_role_name(segment), segment.channel) if name})
    unmatched = [name for name in settings.env_weights if name not in found]
    if not unmatched:
        return None
    return (
        f"warning: no observation in the env term is named {' or '.join(unmatched)}, as in objective.env_weights; "
        f"roles and channels of this step: {', '.join(found)}"
    )


def _factors(trajectory: Trajectory, settings: ObjectiveSettings) -> list[float]:
    roles, factors, selected = settings.selected_roles, list[float](), True
    for segment in trajectory.segments:
        if segment.role is Role.ACTION:
            selected = _is_uncertain(segment, settings.env_min_action_entropy)
        elif segment.role in roles:
            factors += [_weight(segment, settings) if selected else 0.0] * len(segment.token_ids)
    return factors


def _is_uncertain(action: Segment, minimum: float | None) -> bool:
    """Return whether the observations after an action are selected, given `env_min_action_entropy`."""
    entropy = action_entropy(action)
    return minimum is None or entropy is None or entropy >= minimum


def _weight(segment: Segment, settings: ObjectiveSettings) -> float:
    by_role = settings.env_weights.get(_role_name(segment), 1.0)
    return by_role if segment.channel is None else settings.env_weights.get(segment.channel, by_role)


def _role_name(segment: Segment) -> str:
    return segment.role.name.lower()
