"""Trajectories for a context that is shorter than they are: cut where it ends, with a notice."""

from __future__ import annotations

from dataclasses import replace

from echo_cli.models.tokenizer import Tokenizer
from echo_cli.rollouts.episode import CUT_NOTICE, CUT_OUTPUT, cut_tokens
from echo_cli.trajectory import Role, Segment, Trajectory


def truncated(trajectory: Trajectory, tokenizer: Tokenizer, max_tokens: int) -> Trajectory | None:
    """`trajectory` in at most `max_tokens`: cut within an output or before a segment of another role, with a notice.

    Turns whose action is gone go too. The others keep their output whole: a (command, output) pair is known to
    training by what the command gave, whatever of it fits here. None where not even the first segment fits.
    """
    if len(trajectory) <= max_tokens:
        return trajectory
    notice = Segment(Role.WARNING, CUT_OUTPUT, tuple(tokenizer.encode(CUT_OUTPUT)), channel=CUT_NOTICE)
    left = max_tokens - len(notice.token_ids)
    kept: list[Segment] = []
    for segment in trajectory.segments:
        if len(segment.token_ids) > left:
            if segment.role is Role.ENV_OUTPUT:
                ids, text = cut_tokens(tokenizer, list(segment.token_ids), left)
                kept += [replace(segment, text=text, token_ids=tuple(ids))] if ids else []
            break
        kept.append(segment)
        left -= len(segment.token_ids)
    if not kept:
        return None
    actions = sum(segment.role is Role.ACTION for segment in kept)
    return replace(trajectory, segments=(*kept, notice), turns=trajectory.turns[:actions], stop_reason="length_cap")
