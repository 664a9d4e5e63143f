"""Import of other tools' traces into a trajectory file, with counts of imported and refused records."""

from __future__ import annotations

import difflib
import importlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

from echo_cli.errors import EchoError
from echo_cli.files import output_file
from echo_cli.text import escape_unprintable
from echo_cli.trace import Trace, trace_line
from echo_cli.traces.builder import STDIN, ImportOptions, Refusal
from echo_cli.traces.json_records import listed, member, records
from echo_cli.trajectory import NAMED_ROLES

FORMATS = ("openai", "anthropic", "openenv", "awm", "atif", "asciinema", "echo")
"""Names of the formats. Each names a module of `formats` that satisfies `Format`."""
_ALIASES = {
    **dict.fromkeys(("harbor", "terminus", "terminal-bench", "tbench"), "atif"),
    **dict.fromkeys(("claude", "claude-api"), "anthropic"),
    **dict.fromkeys(("chatml", "chat", "messages", "huggingface", "trl", "vllm", "mini-swe-agent"), "openai"),
    **dict.fromkeys(("asciicast", "cast"), "asciinema"),
    **dict.fromkeys(("trajectory", "trajectories", "jsonl"), "echo"),
}
"""Formats by the names of tools and files that have them."""
_WRAPPED = {"claude-code": "anthropic", "claude_code": "anthropic", "codex": "openai", "gemini": "openai"}
"""Format of the messages in the logs of agents whose lines are not read."""

PROMPTED = "asciinema"
"""The only format that reads `ImportOptions.prompt`."""


class Format(Protocol):
    """Module of a format."""

    ROLES: str
    """Role rules of the format, in a few lines."""

    def read(self, path: Path, options: ImportOptions) -> Iterator[Trace | Refusal]:
        """Yield the traces of one file, in order, with a refusal in place of each refused record."""
        ...


def format_named(name: str) -> Format:
    """Import the module of a format.

    Raises:
        EchoError: there is no such format.
    """
    if name not in FORMATS:
        raise EchoError(f"unknown format '{escape_unprintable(name)}'", _format_tip(name))
    return cast(Format, importlib.import_module(f"echo_cli.traces.formats.{name}"))


def _format_tip(name: str) -> str:
    known = name.lower()
    if known in _ALIASES:
        return f"the format of {known} is {_ALIASES[known]}"
    if known in _WRAPPED:
        return f"its log is not read as it is: {_wrapped_tip(_WRAPPED[known])}"
    nearest = difflib.get_close_matches(known, FORMATS, n=1)
    return f"did you mean {nearest[0]}?" if nearest else f"choose from {', '.join(FORMATS)}"


def _wrapped_tip(name: str) -> str:
    return f'write its messages as {{"messages": […]}} and import that as {name}'


@dataclass
class ImportResult:
    """Counts of an import."""

    traces: int = 0
    segments: int = 0
    bytes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(NAMED_ROLES, 0))
    """Bytes of text, in UTF-8, by role."""
    refused: Counter[str] = field(default_factory=Counter)
    """Number of refusals by reason."""
    first_refused: dict[str, str] = field(default_factory=dict)
    """Place where each reason first occurred."""

    def add(self, trace: Trace) -> None:
        """Count a trace."""
        self.traces += 1
        self.segments += len(trace.segments)
        for segment in trace.segments:
            self.bytes[segment.role.name.lower()] += len(segment.text.encode())

    def refuse(self, refusal: Refusal) -> None:
        """Count a refusal."""
        self.refused[refusal.reason] += 1
        self.first_refused.setdefault(refusal.reason, refusal.where)


def import_traces(
    name: str,
    files: Sequence[Path],
    output: Path | None,
    options: ImportOptions,
    *,
    skip_bad: bool = False,
    overwrite: bool = False,
) -> ImportResult:
    """Write the traces of `files`, which are in the format `name`, to the trajectory file `output`.

    Memory holds one trace at a time; a JSON document is loaded whole. `output` appears once it is complete.

    Args:
        output: None for stdout.
        skip_bad: whether to count refused records and continue, instead of raising at the first refused record.
        overwrite: whether to replace an existing `output`.

    Raises:
        EchoError: the format is unknown; an option or a file is invalid; a record is refused without `skip_bad`; there
            are no traces; `output` cannot be written.
    """
    source = format_named(name)
    _check_options(name, options)
    if files.count(STDIN) > 1:
        raise EchoError("- is given twice", "standard input can be read once")
    for path in files:
        _check_file(path)
    result = ImportResult()
    with output_file(output, overwrite=overwrite) as file:
        for path in files:
            for found in _read(source, path, options):
                if isinstance(found, Trace):
                    result.add(found)
                    file.write(trace_line(found))
                elif skip_bad:
                    result.refuse(found)
                else:
                    tip = "pass --skip-bad to omit such records and count them"
                    raise EchoError(f"{found.where}: {found.reason}", _other_format(path, name) or tip)
        if not result.traces:
            raise EchoError(*_nothing(files, result))
    return result


def _other_format(path: Path, name: str) -> str | None:
    """Return a tip that names the format of a file's first record; None if it may be `name`, or is unknown."""
    record = None if path == STDIN or not path.is_file() else next(records(path), None)
    value = record[1] if isinstance(record, tuple) else None
    if isinstance(member(value, "message"), dict) and member(value, "type") is not None:
        return f"these lines look like a log of Claude Code: {_wrapped_tip('anthropic')}"
    found = _format_of(value)
    return None if found in (None, name) else f"this file looks like the format {found}"


def _format_of(record: Any) -> str | None:
    """Return the format that a record's fields name."""
    fields = set(record) if isinstance(record, dict) else set()
    messages = record if isinstance(record, list) else member(record, "messages")
    blocks = {member(block, "type") for each in listed(messages) for block in listed(member(each, "content"))}
    found = {
        "atif": str(member(record, "schema_version")).startswith("ATIF"),
        "echo": {"task_id", "segments", "turns"} <= fields,
        "asciinema": member(record, "version") in (1, 2, 3) and bool({"width", "term", "stdout"} & fields),
        "openenv": {"messages", "tool_trace"} <= fields,
        "awm": {"task", "steps"} <= fields,
        "anthropic": bool(blocks & {"tool_use", "tool_result", "thinking"}),
        "openai": bool(messages) and all(isinstance(member(each, "role"), str) for each in listed(messages)),
    }
    return next((name for name, fits in found.items() if fits), None)


def _check_options(name: str, options: ImportOptions) -> None:
    if options.prompt is not None and name != PROMPTED:
        raise EchoError(f"--prompt has no effect on {name}", f"only {PROMPTED} uses it")
    for option, pattern in (("--prompt", options.prompt), ("--warning", options.warning)):
        try:
            re.compile(pattern or "")
        except (re.error, RecursionError, OverflowError) as error:
            raise EchoError(f"{option}: not a regular expression: {error}", "use the syntax of Python's re") from error


def _check_file(path: Path) -> None:
    if path == STDIN:
        return
    if path.is_dir():
        raise EchoError(f"{escape_unprintable(path)} is a folder", f"name its files: {escape_unprintable(path)}/*")
    if not path.exists():
        raise EchoError(f"{escape_unprintable(path)} does not exist", "name the files to import")


def _read(source: Format, path: Path, options: ImportOptions) -> Iterator[Trace | Refusal]:
    try:
        yield from source.read(path, options)
    except OSError as error:
        raise EchoError(
            f"cannot read {escape_unprintable(path)}: {error.strerror}", "check that the file is readable"
        ) from error


def _nothing(files: Sequence[Path], result: ImportResult) -> tuple[str, str]:
    what = escape_unprintable(files[0]) if len(files) == 1 else f"{len(files)} files"
    if not result.refused:
        return f"nothing to import: no records in {what}", "name a file with traces"
    reason, count = result.refused.most_common(1)[0]
    records = result.refused.total()
    all_of_them = "the only record" if records == 1 else f"all {records} records"
    message = f"nothing to import: {all_of_them} of {what} {'was' if records == 1 else 'were'} refused"
    return message, f"{count}: {reason}, first at {result.first_refused[reason]}"
