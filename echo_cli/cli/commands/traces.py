"""`echo-cli traces import`, `export`, `formats` and `schema`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from echo_cli.cli.options import (
    AsJson,
    Overwrite,
    TrustRemoteCode,
    as_overrides,
    command_group,
    examples,
    model_overrides,
    print_json,
)
from echo_cli.errors import EchoError
from echo_cli.terminal import put
from echo_cli.traces.importing import FORMATS

traces = command_group(
    "Trajectory files: import traces, export for other tools.",
    "traces import openai chats.jsonl -o outputs/traces.jsonl",
    "traces export outputs/toy-seed0 --to openai -o outputs/messages.jsonl",
)

Output = Annotated[str, typer.Option("--output", "-o", help="Output file; - is stdout.", metavar="OUT.jsonl")]
_STDOUT = "-"


@traces.command("import", epilog=examples("traces import openai chats.jsonl -o outputs/traces.jsonl"))
def import_(
    name: Annotated[str, typer.Argument(metavar="FORMAT", help=f"Input format: {', '.join(FORMATS)}.")],
    files: Annotated[list[Path], typer.Argument(metavar="FILE", help="Input files, plain or .gz; - is stdin.")],
    output: Output,
    prompt: Annotated[
        str | None, typer.Option(help="Pattern of a shell prompt, for a cast without input events.", metavar="REGEX")
    ] = None,
    warning: Annotated[
        str | None, typer.Option(help="Pattern of harness text in observations; its role is warning.", metavar="REGEX")
    ] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Skip and count records that cannot be imported.")
    ] = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Import recorded traces into a trajectory file.

    The file contains text with roles, byte for byte as recorded. A record that cannot be imported is an error with
    file, line and reason, and nothing is written.
    """
    _check_stdout(output, as_json)
    from echo_cli.traces.builder import ImportOptions
    from echo_cli.traces.importing import import_traces

    options = ImportOptions(prompt, warning)
    result = import_traces(name, files, _path(output), options, skip_bad=skip_bad, overwrite=overwrite)
    refused = [(reason, count, result.first_refused[reason]) for reason, count in result.refused.most_common()]
    for reason, count, first in refused:
        put(f"skipped {count}: {reason}, first at {first}", err=True)
    if as_json:
        record = {"output": output, "format": name, "files": len(files), "traces": result.traces}
        reasons = [{"reason": reason, "count": count, "first": first} for reason, count, first in refused]
        print_json({**record, "segments": result.segments, "bytes": result.bytes, "refused": reasons})
        return
    sizes = ", ".join(f"{role} {size}" for role, size in result.bytes.items())
    skipped = f", skipped: {result.refused.total()}" if refused else ""
    _say(output, f"traces: {result.traces}, segments: {result.segments}{skipped}; bytes: {sizes}")


@traces.command(
    "export", epilog=examples("traces export outputs/toy-seed0 --to openai -o outputs/messages.jsonl", configs=True)
)
def export(
    sources: Annotated[
        list[Path], typer.Argument(metavar="FILE|RUN|POOL", help="Files, runs or pools with trajectories.")
    ],
    to: Annotated[str, typer.Option(help="Output format.", metavar="echo|openai|masks")],
    output: Output,
    config: Annotated[
        str | None,
        typer.Option(
            help="With --to masks: config of the tokenizer; default: the files' token ids.", metavar="NAME|FILE"
        ),
    ] = None,
    overwrite: Overwrite = False,
    trust_remote_code: TrustRemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Export trajectories for other tools.

    Writes a trajectory file (echo), OpenAI-style messages (openai), or token ids with a mask per role (masks).
    """
    _check_stdout(output, as_json)
    from echo_cli.traces.exporting import Target, export_traces

    target = next((known for known in get_args(Target) if known == to), None)
    if target is None:
        raise EchoError(f"no target '{to}'", f"--to is one of {', '.join(get_args(Target))}")
    if config is not None and target != "masks":
        raise EchoError(f"--config has no effect with --to {to}", "--config sets the tokenizer of --to masks")
    words = as_overrides([], **model_overrides(trust_remote_code))
    if words and config is None:
        raise EchoError("--trust-remote-code has no effect without --config", "omit it")
    result = export_traces(sources, target, _path(output), config=config, overrides=words, overwrite=overwrite)
    masks = {} if result.tokenizer is None else {"tokenizer": result.tokenizer, "tokens": dict(result.tokens)}
    if as_json:
        print_json({"output": output, "to": to, "traces": result.traces, "lines": result.lines, **masks})
        return
    tokenizer = "" if result.tokenizer is None else f"; tokenizer: {_shown_tokenizer(result.tokenizer)}"
    _say(output, f"traces: {result.traces}, lines: {result.lines}{tokenizer}")


@traces.command("formats", epilog=examples("traces formats openai"))
def formats(
    name: Annotated[str | None, typer.Argument(metavar="FORMAT", help="Print this format only.")] = None,
    as_json: AsJson = False,
) -> None:
    """Print the formats of `import` and their role rules."""
    from echo_cli.traces.importing import FORMATS, format_named

    rules = {known: format_named(known).ROLES for known in (FORMATS if name is None else [name])}
    if as_json:
        print_json({"formats": rules})
        return
    for number, (known, text) in enumerate(rules.items()):
        put(*([""] if number else []), known, *(f"  {line}" for line in text.strip().splitlines()))


@traces.command("schema", epilog=examples("traces schema"))
def schema() -> None:
    """Print the JSON Schema of a trajectory file's lines."""
    from echo_cli.trace import trace_schema

    put(*json.dumps(trace_schema(), indent=2).split("\n"))


def _path(output: str) -> Path | None:
    return None if output == _STDOUT else Path(output)


def _check_stdout(output: str, as_json: bool) -> None:
    if output == _STDOUT and as_json:
        raise EchoError("--output - and --json both write to stdout", "set --output to a file")


def _say(output: str, what: Any) -> None:
    """Print a result, on stderr if the traces are on stdout."""
    put(f"{output}: {what}", err=output == _STDOUT)


def _shown_tokenizer(tokenizer: str) -> str:
    return "the files' own" if tokenizer == "own" else f"config {tokenizer}"
