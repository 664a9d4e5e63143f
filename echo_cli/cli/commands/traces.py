"""`echo-cli traces import`, `export`, `formats` and `schema`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from echo_cli.cli.options import AsJson, Overwrite, command_group, print_json
from echo_cli.errors import EchoError
from echo_cli.text import escape_unprintable

traces = command_group("Trajectory files: from others' traces, and for other tools.")

Output = Annotated[str, typer.Option("--output", "-o", help="File to write; - is stdout.", metavar="OUT.jsonl")]
_STDOUT = "-"


@traces.command("import")
def import_(
    name: Annotated[str, typer.Argument(metavar="FORMAT", help="`traces formats` lists them.")],
    files: Annotated[list[Path], typer.Argument(metavar="FILE", help="Files in that format.")],
    output: Output,
    prompt: Annotated[
        str | None, typer.Option(help="What a shell prompt looks like, in a cast without input.", metavar="REGEX")
    ] = None,
    warning: Annotated[
        str | None, typer.Option(help="What in an observation is the harness's, not the world's.", metavar="REGEX")
    ] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Count what cannot be placed, and go on.")] = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Write the traces of others as a trajectory file.

    It is text with roles, byte for byte as it was recorded. What has no place stops the import, with file, line and
    reason; nothing is written then.
    """
    _check_stdout(output, as_json)
    from echo_cli.traces.builder import ImportOptions
    from echo_cli.traces.importing import import_traces

    options = ImportOptions(prompt, warning)
    result = import_traces(name, files, _path(output), options, skip_bad=skip_bad, overwrite=overwrite)
    refused = [(reason, count, result.first_refused[reason]) for reason, count in result.refused.most_common()]
    for reason, count, first in refused:
        print(f"left out {count}: {escape_unprintable(reason)}, first at {escape_unprintable(first)}", file=sys.stderr)
    if as_json:
        record = {"output": output, "format": name, "files": len(files), "traces": result.traces}
        reasons = [{"reason": reason, "count": count, "first": first} for reason, count, first in refused]
        print_json({**record, "segments": result.segments, "bytes": result.bytes, "refused": reasons})
        return
    sizes = ", ".join(f"{role} {size}" for role, size in result.bytes.items())
    left_out = f", left out: {result.refused.total()}" if refused else ""
    _say(output, f"traces: {result.traces}, segments: {result.segments}{left_out}; bytes: {sizes}")


@traces.command("export")
def export(
    sources: Annotated[list[Path], typer.Argument(metavar="FILE|RUN|POOL", help="Where trajectories are.")],
    to: Annotated[str, typer.Option(help="echo, openai or masks.", metavar="echo|openai|masks")],
    output: Output,
    config: Annotated[
        str | None,
        typer.Option(help="Of masks: whose tokenizer; the files' own ids by default.", metavar="NAME|FILE"),
    ] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Write trajectories for other tools.

    In our form, as OpenAI-style messages, or as token ids with a mask for each role.
    """
    _check_stdout(output, as_json)
    from echo_cli.traces.exporting import Target, export_traces

    target = next((known for known in get_args(Target) if known == to), None)
    if target is None:
        raise EchoError(f"no target '{to}'", f"--to is one of {', '.join(get_args(Target))}")
    if config is not None and target != "masks":
        raise EchoError(f"--config has no effect with --to {to}", "it says whose tokens masks are in")
    result = export_traces(sources, target, _path(output), config=config, overwrite=overwrite)
    masks = {} if result.tokenizer is None else {"tokenizer": result.tokenizer, "tokens": dict(result.tokens)}
    if as_json:
        print_json({"output": output, "to": to, "traces": result.traces, "lines": result.lines, **masks})
        return
    tokens = "" if result.tokenizer is None else f"; tokens: {_tokens_of(result.tokenizer)}"
    _say(output, f"traces: {result.traces}, lines: {result.lines}{tokens}")


@traces.command("formats")
def formats(
    name: Annotated[str | None, typer.Argument(metavar="FORMAT", help="One of them alone.")] = None,
    as_json: AsJson = False,
) -> None:
    """Print the formats of `import`, and which text has which role."""
    from echo_cli.traces.importing import FORMATS, format_named

    rules = {known: format_named(known).ROLES for known in (FORMATS if name is None else [name])}
    if as_json:
        print_json({"formats": rules})
        return
    for number, (known, text) in enumerate(rules.items()):
        print(*([""] if number else []), known, *(f"  {line}" for line in text.strip().splitlines()), sep="\n")


@traces.command("schema")
def schema() -> None:
    """Print the JSON Schema of a trajectory file's lines."""
    from echo_cli.trace import trace_schema

    print(json.dumps(trace_schema(), indent=2))


def _path(output: str) -> Path | None:
    return None if output == _STDOUT else Path(output)


def _check_stdout(output: str, as_json: bool) -> None:
    if output == _STDOUT and as_json:
        raise EchoError("--output - and --json both write to stdout", "give --output a file")


def _say(output: str, what: Any) -> None:
    """Print a result: on stderr where stdout has the traces."""
    print(f"{escape_unprintable(output)}: {what}", file=sys.stderr if output == _STDOUT else sys.stdout)


def _tokens_of(tokenizer: str) -> str:
    return "the files' own" if tokenizer == "own" else f"of the config {escape_unprintable(tokenizer)}"
