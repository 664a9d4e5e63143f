"""The contexts that a trajectory's tokens were seen in, as trajectories of their own: its views.

`Segment.transient` tokens, thinking that is dropped, are in the context of their own action and of nothing after it.
So an episode that has some is no single sequence, and a token scored in the whole transcript would be scored in a
context that nobody sampled it in. A view is a sequence that there was. Its targets keep their roles, and everything
else in it is context, so that each token of the trajectory is a target in one view, in the context it was sampled in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from echo_cli.trajectory import Role, Segment, Trajectory


def visible(trajectory: Trajectory) -> Trajectory:
    """`trajectory` without transient tokens: the transcript as its last turn saw it. Texts stay what they were."""
    if not any(segment.transient for segment in trajectory.segments):
        return trajectory
    return replace(trajectory, segments=tuple(map(_visible, trajectory.segments)))


def views(trajectory: Trajectory) -> list[Trajectory]:
    """The sequences in which the targets of `trajectory` are scored; the trajectory alone without transient tokens.

    First the visible transcript, whose targets are the observations and the actions that were seen whole. Then, for
    each action with transient tokens, what was visible before it and the action: its tokens alone are targets.
    """
    base = visible(trajectory)
    if base is trajectory:
        return [trajectory]
    context = tuple(replace(segment, role=Role.CONTEXT, logprobs=None) for segment in base.segments)
    played = trajectory.segments
    seen = tuple(context[n] if played[n].transient else segment for n, segment in enumerate(base.segments))
    actions = [(*context[:n], replace(segment, transient=0)) for n, segment in enumerate(played) if segment.transient]
    return [replace(trajectory, segments=segments) for segments in (seen, *actions)]


@dataclass(frozen=True)
class Views:
    """The views of a step's rollouts, and of each the index of its rollout."""

    trajectories: tuple[Trajectory, ...]
    owners: tuple[int, ...]


def expand(trajectories: Sequence[Trajectory], *, use_rl: bool) -> Views:
    """The views of `trajectories`, in order.

    Those of actions are left out where actions are no targets: without RL, and of `world_model_only` rollouts.
    """
    found = [
        (view, owner)
        for owner, trajectory in enumerate(trajectories)
        for view in views(trajectory)[: None if use_rl and not trajectory.world_model_only else 1]
    ]
    return Views(tuple(view for view, _ in found), tuple(owner for _, owner in found))


def _visible(segment: Segment) -> Segment:
    first = segment.transient
    logprobs = None if segment.logprobs is None else segment.logprobs[first:]
    return replace(segment, token_ids=segment.token_ids[first:], logprobs=logprobs, transient=0)
