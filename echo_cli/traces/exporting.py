"""Export of traces for other tools: as trajectory files, OpenAI conversations or token ids with masks."""

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
"""Config whose tokenizer encodes masks if the files have no token ids."""


@dataclass
class ExportResult:
    """Counts of an export."""

    traces: int = 0
    lines: int = 0
    """Number of lines written; exceeds `traces` if a trace has several context views, each with its own masks."""
    tokens: Counter[str] = field(default_factory=Counter)
    """For masks: numbers of tokens in the prompts, in the completions and in each mask."""
    tokenizer: str | None = None
    """For masks: `own` if the ids come from the files, else the config whose tokenizer encoded the texts."""


def export_traces(
    sources: Sequence[Path],
    target: Target,
    output: Path | None,
    *,
    config: str | None = None,
    overrides: Sequence[str] = (),
    overwrite: bool = False,
) -> ExportResult:
    """Write the traces of `sources` to `output`, which appears once it is complete.

    Memory holds one trace at a time.

    Args:
        sources: trajectory files, and folders of runs and pools.
        output: None for stdout.
        config: name or file of the config whose tokenizer encodes masks. None uses the files' own ids if all segments
            have them, else DEFAULT_CONFIG. One output uses one tokenizer.
        overrides: overrides of that config.
        overwrite: whether to replace an existing `output`.

    Raises:
        EchoError: as `open_recording`; a line is not a trace; there are no traces; `output` cannot be written.
    """
    recordings = [open_recording(source) for source in sources]
    result = ExportResult()
    write = _writer(recordings, target, config, overrides, result)
    with output_file(output, overwrite=overwrite) as out:
        for trace in recorded_traces(recordings):
            result.traces += 1
            for line in write(trace):
                result.lines += 1
                out.write(line)
        for recording in recordings:
            recording.check_any(result.traces)
    return result


def _writer(
    recordings: Sequence[Recording],
    target: Target,
    config: str | None,
    overrides: Sequence[str],
    result: ExportResult,
) -> Callable[[Trace], Iterable[bytes]]:
    """Return the function that converts a trace to its output lines."""
    if target == "echo":
        return lambda trace: [trace_line(trace)]
    if target == "openai":
        from echo_cli.traces.conversation import openai_record

        return lambda trace: [_line(openai_record(trace))]

    if config is None and all(trace.has_token_ids for trace in recorded_traces(recordings)):
        result.tokenizer = "own"
        return lambda trace: [_counted(record, result.tokens) for record in _checked_masks(trace)]

    from echo_cli.models.loading import load_renderer

    result.tokenizer = DEFAULT_CONFIG if config is None else config
    renderer = load_renderer(load_config(find_config(result.tokenizer), overrides))
    return lambda trace: [_counted(made_masks(trace, renderer), result.tokens)]


def _counted(record: Mapping[str, Any], tokens: Counter[str]) -> bytes:
    """Return a record of masks as a line, and add its token counts to `tokens`."""
    for name, values in record.items():
        if isinstance(values, list):
            tokens[name] += len(values) if name.endswith("_token_ids") else sum(values)
    return _line(record)


def _checked_masks(trace: Trace) -> list[dict[str, Any]]:
    try:
        return own_masks(trace)
    except ValueError as error:
        message = (
            f"the trace of task {escape_unprintable(trace.task_id)} has transient tokens but is not a trajectory: "
            f"{escape_unprintable(str(error))}"
        )
        raise EchoError(message, "re-encode its text with --config NAME") from error


def recorded_traces(recordings: Sequence[Recording]) -> Iterator[Trace]:
    """Stream the traces of files.

    Raises:
        EchoError: a file cannot be read, or a line is not a trace.
    """
    for recording in recordings:
        try:
            yield from recording.traces()
        except OSError as error:
            tip = "check that the file is readable"
            raise EchoError(f"cannot read {escape_unprintable(recording.path)}: {error.strerror}", tip) from error


def _line(record: Mapping[str, Any]) -> bytes:
    return f"{json.dumps(record)}\n".encode()


MASKS = {
    Role.ACTION: "completion_masks",
    Role.ENV_OUTPUT: "completion_observation_masks",
    Role.WARNING: "completion_warning_masks",
}
"""Name of the mask of each role's tokens. The masks are disjoint; a token in none of them is context."""


def own_masks(trace: Trace) -> list[dict[str, Any]]:
    """Return the masks of a trace that `has_token_ids`, over its own ids: one record per context view.

    Raises:
        ValueError: the trace has transient tokens and violates an invariant of `Trajectory`.
    """
    prompt = len(split_at_actions(trace.segments)[0])
    if not any(segment.transient for segment in trace.segments):
        return [_record(trace, trace.segments, prompt)]
    # Dropped thinking is in the context of its own action only, so the episode is not a single sequence.
    return [_record(trace, view.segments, prompt) for view in context_views(trajectory_of(trace))]


def made_masks(trace: Trace, renderer: Renderer) -> dict[str, Any]:
    """Return the masks of a trace as `renderer` encodes it."""
    segments = render_trace(trace, renderer).segments
    return _record(trace, segments, len(split_at_actions(segments)[0]))


def _record(trace: Trace, segments: Sequence[Segment | TraceSegment], prompt: int) -> dict[str, Any]:
    """Return a record of masks whose prompt is the first `prompt` segments."""
    completion = [(token, segment.role) for segment in segments[prompt:] for token in segment.token_ids or ()]
    return {
        "task_id": trace.task_id,
        "reward": trace.reward,
        "prompt_token_ids": [token for segment in segments[:prompt] for token in segment.token_ids or ()],
        "completion_token_ids": [token for token, _ in completion],
        **{name: [int(role is of) for _, role in completion] for of, name in MASKS.items()},
    }
