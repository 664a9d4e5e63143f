"""Traces for other tools: a line of a trajectory file, an OpenAI conversation or a record of masks for each."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from echo_cli.config.loader import find_config, load_config
from echo_cli.errors import EchoError
from echo_cli.files import output_file
from echo_cli.models.renderer import Renderer
from echo_cli.runs.recordings import Recording, open_recording
from echo_cli.text import escape_unprintable
from echo_cli.trace import Trace, TraceSegment, trace_line, trajectory_of
from echo_cli.traces.retokenize import render_trace
from echo_cli.trajectory import Role, Segment, context_views, split_at_actions

Target = Literal["echo", "openai", "masks"]
DEFAULT_CONFIG = "toy"
"""Whose tokenizer makes masks where the files have no token ids."""

_TIP = "name a run, a pool or a trajectory file"


@dataclass
class ExportResult:
    """Counts of an export."""

    traces: int = 0
    lines: int = 0
    """More than the traces where one has several views, each with its masks."""
    tokens: Counter[str] = field(default_factory=Counter)
    """Of masks: the tokens of the prompts, of the completions, and of each mask."""
    tokenizer: str | None = None
    """Of masks: `own`, that of whoever recorded the ids, or the config whose it is."""


def export_traces(
    sources: Sequence[Path],
    target: Target,
    output: Path | None,
    *,
    config: str | None = None,
    overwrite: bool = False,
) -> ExportResult:
    """Write the traces of `sources` to `output`, which is there once all of it is written.

    Memory holds one trace at a time.

    Args:
        sources: trajectory files, and folders of runs and pools.
        output: None for stdout.
        config: name or file of a config, whose tokenizer makes the ids of masks. None takes the files' own where all
            their segments have them, or else DEFAULT_CONFIG: one tokenizer for all of the output.
        overwrite: replace `output` where it is there.

    Raises:
        EchoError: as `open_recording`; a line is not a trace, there is none, or `output` cannot be written.
    """
    recordings = [open_recording(source) for source in sources]
    result = ExportResult()
    write = _writer(recordings, target, config, result)
    with output_file(output, overwrite=overwrite) as out:
        for trace in _traces(recordings):
            result.traces += 1
            for line in write(trace):
                result.lines += 1
                out.write(line)
        if not result.traces:
            raise EchoError(f"nothing to export: {escape_unprintable(sources[0])} has no trace", _TIP)
    return result


def _writer(
    recordings: Sequence[Recording], target: Target, config: str | None, result: ExportResult
) -> Callable[[Trace], Iterable[bytes]]:
    """What makes the lines of a trace."""
    if target == "echo":
        return lambda trace: [trace_line(trace)]
    if target == "openai":
        from echo_cli.traces.openai_export import openai_record

        return lambda trace: [_line(openai_record(trace))]

    if config is None and all(trace.has_token_ids for trace in _traces(recordings)):
        result.tokenizer = "own"
        return lambda trace: [_counted(record, result.tokens) for record in _checked_masks(trace)]

    from echo_cli.models.loading import load_renderer

    result.tokenizer = DEFAULT_CONFIG if config is None else config
    renderer = load_renderer(load_config(find_config(result.tokenizer)))
    return lambda trace: [_counted(made_masks(trace, renderer), result.tokens)]


def _counted(record: Mapping[str, Any], tokens: Counter[str]) -> bytes:
    """The line of a record of masks, whose tokens are added to `tokens`."""
    for name, values in record.items():
        if isinstance(values, list):
            tokens[name] += len(values) if name.endswith("_token_ids") else sum(values)
    return _line(record)


def _checked_masks(trace: Trace) -> list[dict[str, Any]]:
    try:
        return own_masks(trace)
    except ValueError as error:
        message = (
            f"trace of {escape_unprintable(trace.task_id)} has transient tokens and is no trajectory: "
            f"{escape_unprintable(str(error))}"
        )
        raise EchoError(message, "encode its text anew: --config NAME") from error


def _traces(recordings: Sequence[Recording]) -> Iterator[Trace]:
    for recording in recordings:
        try:
            yield from recording.traces()
        except OSError as error:
            tip = "see that it can be read"
            raise EchoError(f"cannot read {escape_unprintable(recording.path)}: {error.strerror}", tip) from error


def _line(record: Mapping[str, Any]) -> bytes:
    return f"{json.dumps(record)}\n".encode()


MASKS = {
    Role.ACTION: "completion_masks",
    Role.ENV_OUTPUT: "completion_observation_masks",
    Role.WARNING: "completion_warning_masks",
}
"""Which mask has the tokens of a role. They are disjoint; a token of none of them is context."""


def own_masks(trace: Trace) -> list[dict[str, Any]]:
    """Return the masks of a trace that `has_token_ids`, in those tokens: one record, or one for each view.

    Raises:
        ValueError: it has transient tokens, and is no trajectory that a policy can have played.
    """
    prompt = len(split_at_actions(trace.segments)[0])
    if not any(segment.transient for segment in trace.segments):
        return [_record(trace, trace.segments, prompt)]
    # Thinking that was dropped is in the context of its own action alone: such an episode is no single sequence.
    return [_record(trace, view.segments, prompt) for view in context_views(trajectory_of(trace))]


def made_masks(trace: Trace, renderer: Renderer) -> dict[str, Any]:
    """Return the masks of a trace as `renderer` writes it."""
    segments = render_trace(trace, renderer).segments
    return _record(trace, segments, len(split_at_actions(segments)[0]))


def _record(trace: Trace, segments: Sequence[Segment | TraceSegment], prompt: int) -> dict[str, Any]:
    """Return a record whose prompt is the first `prompt` segments."""
    completion = [(token, segment.role) for segment in segments[prompt:] for token in segment.token_ids or ()]
    return {
        "task_id": trace.task_id,
        "reward": trace.reward,
        "prompt_token_ids": [token for segment in segments[:prompt] for token in segment.token_ids or ()],
        "completion_token_ids": [token for token, _ in completion],
        **{name: [int(role is of) for _, role in completion] for of, name in MASKS.items()},
    }
