"""Trajectory files for other tools: one echo-cli trajectory, OpenAI conversation or record of masks a line."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from echo_cli.config.loader import find_config, load_config
from echo_cli.errors import EchoError
from echo_cli.files import output_file, shown
from echo_cli.runs.recordings import Recording, open_recording
from echo_cli.trace import Trace, trace_line

Target = Literal["echo", "openai", "masks"]
DEFAULT_CONFIG = "toy"
"""Whose tokenizer makes masks where the files have no token ids."""

_TIP = "name a run, a pool or a trajectory file"


@dataclass
class ExportResult:
    """What an export came to."""

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
        EchoError: as `open_recording`; a line is not a trajectory, there is none, or `output` cannot be written.
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
            raise EchoError(f"nothing to export: {shown(sources[0])} has no trajectory", _TIP)
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
    from echo_cli.traces.trace_mask import made_masks, own_masks

    if config is None and all(trace.has_token_ids for trace in _traces(recordings)):
        result.tokenizer = "own"
        return lambda trace: [_counted(record, result.tokens) for record in _checked(own_masks, trace)]

    from echo_cli.models.policy import load_renderer

    result.tokenizer = DEFAULT_CONFIG if config is None else config
    renderer = load_renderer(load_config(find_config(result.tokenizer)))
    return lambda trace: [_counted(made_masks(trace, renderer), result.tokens)]


def _counted(record: Mapping[str, Any], tokens: Counter[str]) -> bytes:
    """The line of a record of masks, whose tokens are added to `tokens`."""
    for name, values in record.items():
        if isinstance(values, list):
            tokens[name] += len(values) if name.endswith("_token_ids") else sum(values)
    return _line(record)


def _checked(masks: Callable[[Trace], list[dict[str, Any]]], trace: Trace) -> list[dict[str, Any]]:
    try:
        return masks(trace)
    except ValueError as error:
        message = f"trace of {shown(trace.task_id)} has transient tokens and is no trajectory: {shown(str(error))}"
        raise EchoError(message, "encode its text anew: --config NAME") from error


def _traces(recordings: Sequence[Recording]) -> Iterator[Trace]:
    for recording in recordings:
        try:
            yield from recording.traces()
        except OSError as error:
            tip = "see that it can be read"
            raise EchoError(f"cannot read {shown(recording.path)}: {error.strerror}", tip) from error


def _line(record: Mapping[str, Any]) -> bytes:
    return f"{json.dumps(record)}\n".encode()
