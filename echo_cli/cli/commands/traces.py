"""`echo-cli traces import`, `export`, `formats` and `schema`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from echo_cli.cli.commands.traces_stats import stats
from echo_cli.cli.options import (
    AsJson,
    Overwrite,
    Recordings,
    TrustRemoteCode,
    command_group,
    examples,
    print_json,
    tokenizer_overrides,
)
from echo_cli.errors import EchoError
from echo_cli.terminal import put
from echo_cli.traces.containers.hub_datasets import is_dataset
from echo_cli.traces.recognition import AUTO, FORMATS

if TYPE_CHECKING:
    from echo_cli.traces.builder import ImportOptions

traces = command_group(
    "Trajectory files: import traces, export for other tools.",
    "traces import openai chats.jsonl -o outputs/traces.jsonl",
    "traces export outputs/toy-seed0 --to openai -o outputs/messages.jsonl",
)

Output = Annotated[str, typer.Option("--output", "-o", help="Output file; - is stdout.", metavar="OUT.jsonl")]
Redact = Annotated[
    bool | None,
    typer.Option(
        "--redact/--no-redact",
        help="Replace secrets, home folders, e-mail addresses. Default: in session logs of coding agents.",
    ),
]
_STDOUT = "-"


@traces.command("import", epilog=examples("traces import openai chats.jsonl -o outputs/traces.jsonl"))
def import_(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[FORMAT] FILE...",
            help="Files, plain, compressed or Parquet, or data sets, hf:ORG/NAME; - is stdin. "
            f"Formats: {AUTO} (default), {', '.join(FORMATS)}.",
        ),
    ],
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="Output file; - is stdout.", metavar="OUT.jsonl")
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(help="Pattern of a shell prompt, for a cast without input events.", metavar="REGEX")
    ] = None,
    warning: Annotated[
        str | None, typer.Option(help="Pattern of harness text in observations; its role is warning.", metavar="REGEX")
    ] = None,
    observation: Annotated[
        str | None,
        typer.Option(help="Messages of a chat that the environment wrote: a role, or a pattern.", metavar="ROLE|REGEX"),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Refuse records with parts that cannot be placed.")] = False,
    redact: Redact = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Skip and count records that cannot be imported.")
    ] = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="Print the first trace of one file with its roles; write nothing.")
    ] = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Import recorded traces into a trajectory file.

    The file contains text with roles, byte for byte as recorded. In place of a part that cannot be placed, such as an
    image, a warning names what was left out. A record whose roles are uncertain is an error with file, line and reason,
    and nothing is written.
    """
    from echo_cli.cli.display.imports import import_progress, show_import, tell_interrupted
    from echo_cli.traces.builder import ImportOptions
    from echo_cli.traces.importing import import_traces

    name, files = _format_and_files(words)
    options = ImportOptions(prompt, warning, observation, redact, strict=strict)
    if explain:
        _explain(name, files, options, output, as_json=as_json)
        return
    if output is None:
        raise EchoError("no output file", "set --output OUT.jsonl, or --output - for stdout")
    _check_stdout(output, as_json)
    try:
        with import_progress(files) as report:
            result = import_traces(
                name, files, _path(output), options, skip_bad=skip_bad, overwrite=overwrite, report=report
            )
    except (SystemExit, KeyboardInterrupt):  # Ctrl-C and the like
        tell_interrupted(_path(output))
        raise
    show_import(result, files, output, as_json=as_json)


def _format_and_files(words: list[str]) -> tuple[str, list[Path]]:
    """Split the words into a format, `auto` if none is named, and files."""
    first, *others = words
    is_file = first == "-" or Path(first).exists() or is_dataset(Path(first))
    if first == AUTO or first in FORMATS or (others and not is_file):
        if not others:
            raise EchoError(f"no file to import as {first}", f"name its files: traces import {first} FILE -o OUT.jsonl")
        return first, [Path(word) for word in others]
    return AUTO, [Path(word) for word in words]


def _explain(name: str, files: list[Path], options: ImportOptions, output: str | None, *, as_json: bool) -> None:
    from echo_cli.cli.display.imports import show_first_trace
    from echo_cli.traces.importing import first_trace

    if output is not None:
        raise EchoError("--explain writes no file", "omit --output")
    if len(files) > 1:
        raise EchoError(f"--explain shows one file, and {len(files)} are given", "name one file")
    found, trace = first_trace(name, files[0], replace(options, places=True))
    show_first_trace(files[0], found, trace, as_json=as_json)


@traces.command(
    "export", epilog=examples("traces export outputs/toy-seed0 --to openai -o outputs/messages.jsonl", configs=True)
)
def export(
    sources: Recordings,
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
    words = tokenizer_overrides(config, trust_remote_code)
    result = export_traces(sources, target, _path(output), config=config, overrides=words, overwrite=overwrite)
    masks = {} if result.tokenizer is None else {"tokenizer": result.tokenizer, "tokens": dict(result.tokens)}
    if as_json:
        print_json({"output": output, "to": to, "traces": result.traces, "lines": result.lines, **masks})
        return
    tokenizer = "" if result.tokenizer is None else f"; tokenizer: {_shown_tokenizer(result.tokenizer)}"
    _say(output, f"traces: {result.traces}, lines: {result.lines}{tokenizer}")


traces.command("stats", epilog=examples("traces stats outputs/traces.jsonl", configs=True))(stats)


@traces.command("formats", epilog=examples("traces formats openai"))
def formats(
    name: Annotated[str | None, typer.Argument(metavar="FORMAT", help="Print this format only.")] = None,
    as_json: AsJson = False,
) -> None:
    """Print the formats of `import` and their role rules."""
    from echo_cli.traces.recognition import format_named

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
