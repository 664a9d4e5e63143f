"""Re-encoding of episodes: a trajectory or a trace becomes a trajectory in another policy's tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from echo_cli.errors import EchoError
from echo_cli.models.renderer import PlainRenderer, Renderer
from echo_cli.models.tokenizer import Tokenizer
from echo_cli.rollouts.episode import cut_tokens
from echo_cli.text import escape_unprintable
from echo_cli.trace import Trace
from echo_cli.traces.conversation import conversation_of, is_conversation
from echo_cli.trajectory import (
    CUT_NOTICE,
    CUT_OUTPUT,
    SCAFFOLD,
    Role,
    Segment,
    Trajectory,
    Turn,
    split_at_actions,
)


def retokenize(trajectory: Trajectory, renderer: Renderer) -> Trajectory:
    """Re-encode an episode with `renderer`: each segment's text is encoded alone, as in an `Episode`.

    For a scripted episode, the renderer it was played with reproduces its ids. Ids that a policy sampled need not be
    the encoding of their text, so ids of its actions may change. The behaviour logprobs belong to the sampled ids and
    are dropped, so the rollout becomes `world_model_only`: RL cannot learn from it.
    """
    world_model_only = trajectory.world_model_only or trajectory.source == "policy"
    segments = _rendered(trajectory.segments, trajectory.turns, renderer)
    return replace(trajectory, segments=segments, world_model_only=world_model_only)


def render_trace(trace: Trace, renderer: Renderer) -> Trajectory:
    """Encode a trace with `renderer`, ignoring any token ids it has; the trajectory is for the env term only.

    Messages of a recorded conversation are encoded as the chat template writes them. In a transcript, or with a plain
    renderer, each segment's text is encoded alone, as in an `Episode`, and an action is its turn's command, as the
    policy would write it.

    Raises:
        EchoError: the chat template cannot write the conversation.
    """
    played = [Segment(segment.role, segment.text, (), channel=segment.channel) for segment in trace.segments]
    written = _written(trace, renderer) if is_conversation(trace) else None
    return Trajectory(
        task_id=trace.task_id,
        group_id=trace.group_id,
        segments=_rendered(played, trace.turns, renderer) if written is None else written,
        turns=trace.turns,
        reward=trace.reward,
        stop_reason=trace.stop_reason,
        source=trace.source,
        world_model_only=True,
        meta=trace.meta,
    )


def _written(trace: Trace, renderer: Renderer) -> tuple[Segment, ...] | None:
    try:
        return renderer.conversation(conversation_of(trace))
    except EchoError as error:
        message = f"the trace of task {escape_unprintable(trace.task_id)}: {error.message}"
        raise EchoError(message, error.tip) from error


def _rendered(played: Sequence[Segment], turns: Sequence[Turn], renderer: Renderer) -> tuple[Segment, ...]:
    tokenizer = renderer.tokenizer
    scaffolded = any(segment.channel == SCAFFOLD for segment in played)
    as_written = isinstance(renderer, PlainRenderer) and not scaffolded
    parts = split_at_actions([segment for segment in played if segment.channel != SCAFFOLD])
    segments: list[Segment] = []
    frame, start = renderer.opening(), renderer.start_ids
    for number, part in enumerate(parts):
        reply = part[1:] if number else part
        if number:
            if start:  # the episode begins with an action, so BOS precedes it
                segments.append(Segment(Role.CONTEXT, "", start))
                start = ()
            segments += frame.after
            command = turns[number - 1].command
            # A line without its newline was cut, or ended with a special token, which is not text in another
            # vocabulary. A line that differs from its command is raw terminal text: typing mistakes, escape
            # sequences, a carriage return.
            text = part[0].text
            written = as_written and (command in (text.removesuffix("\n"), text) or "\n" in text.removesuffix("\n"))
            ids = tokenizer.encode(text) if written else renderer.script(command)
            segments.append(Segment(Role.ACTION, tokenizer.decode(ids), tuple(ids)))
            frame = renderer.reply(ids)
        if reply or number + 1 < len(parts):
            segments += frame.before
        for segment in reply:
            if start and segment.role is not Role.CONTEXT:  # BOS is context
                segments.append(Segment(Role.CONTEXT, "", start))
                start = ()
            segments.append(replace(segment, token_ids=(*start, *tokenizer.encode(segment.text))))
            start = ()
    if not segments or segments[0].role is not Role.CONTEXT:
        segments.insert(0, Segment(Role.CONTEXT, "", start))
    return tuple(segments)


def truncated(trajectory: Trajectory, tokenizer: Tokenizer, max_tokens: int) -> Trajectory | None:
    """Truncate `trajectory` to `max_tokens`, within an output or before a segment of another role, with a notice.

    Turns whose action is cut off are dropped. The other turns keep their full output, because it identifies a
    (command, output) pair in training. Return None if not even the first segment fits.
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
