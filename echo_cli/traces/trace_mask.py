"""Traces as token ids with a mask for each role, in the form that OpenEnv's RFC 010 has for rollouts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from echo_cli.models.renderer import Renderer
from echo_cli.trace import Trace, trajectory_of
from echo_cli.traces.retokenize import rendered
from echo_cli.trajectory import Role, Trajectory
from echo_cli.view import views

MASKS = {
    Role.ACTION: "completion_masks",
    Role.ENV_OUTPUT: "completion_observation_masks",
    Role.WARNING: "completion_warning_masks",
}
"""Which mask has the tokens of a role. They are disjoint; a token of none of them is context."""

_Tokens = Sequence[tuple[Role, Sequence[int]]]
"""The segments of a sequence: roles and ids."""


def own_masks(trace: Trace) -> list[dict[str, Any]]:
    """The masks of a trace that `has_token_ids`, in those tokens: one record, or one for each view.

    Raises:
        ValueError: it has transient tokens, and is no trajectory that a policy can have played.
    """
    tokens = [(segment.role, segment.token_ids or ()) for segment in trace.segments]
    prompt = _before_action(tokens)
    if not any(segment.transient for segment in trace.segments):
        return [_record(trace, tokens, prompt)]
    # Thinking that was dropped is in the context of its own action alone: such an episode is no single sequence.
    found = views(trajectory_of(trace))
    return [_record(trace, _tokens(view), prompt) for view in found]


def made_masks(trace: Trace, renderer: Renderer) -> dict[str, Any]:
    """The masks of a trace as `renderer` writes it."""
    tokens = _tokens(rendered(trace, renderer))
    return _record(trace, tokens, _before_action(tokens))


def _tokens(trajectory: Trajectory) -> _Tokens:
    return [(segment.role, segment.token_ids) for segment in trajectory.segments]


def _before_action(tokens: _Tokens) -> int:
    """How many segments precede the first action; all of them where there is none."""
    return next((number for number, (role, _) in enumerate(tokens) if role is Role.ACTION), len(tokens))


def _record(trace: Trace, tokens: _Tokens, prompt: int) -> dict[str, Any]:
    """A record whose prompt is the first `prompt` segments."""
    completion = tokens[prompt:]
    return {
        "task_id": trace.task_id,
        "reward": trace.reward,
        "prompt_token_ids": [token for _, ids in tokens[:prompt] for token in ids],
        "completion_token_ids": [token for _, ids in completion for token in ids],
        **{name: [int(role is of) for role, ids in completion for _ in ids] for of, name in MASKS.items()},
    }
