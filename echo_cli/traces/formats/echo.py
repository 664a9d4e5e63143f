"""Trajectory files of echo-cli itself: every line is validated, and rewritten in the current version."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from echo_cli.errors import EchoError
from echo_cli.trace import Trace, parse_trace
from echo_cli.traces.builder import ImportOptions, Refusal, json_text
from echo_cli.traces.containers.tables import is_table
from echo_cli.traces.input_file import TOO_LONG, input_file, lines_of
from echo_cli.traces.json_records import listed, member, read_json
from echo_cli.traces.recognition import Sample

ROLES = """\
input       trajectory files of any version: from runs, pools or imports
roles       as recorded; no role is re-derived, so --warning is not accepted
refused     a line that is not a trace"""


def recognise(sample: Sample) -> str | None:
    """Return the evidence of a trajectory file's fields, or None."""
    named = isinstance(sample.first, dict) and {"task_id", "segments", "turns"} <= set(sample.first)
    return "its records have task_id, segments and turns" if named else None


def read(path: Path, options: ImportOptions) -> Iterator[Trace | Refusal]:
    """Yield the traces of a trajectory file.

    Raises:
        EchoError: `options.warning` is given.
    """
    if options.warning is not None:
        raise EchoError("--warning has no effect on echo", "omit it: the lines of a trajectory file already have roles")
    if is_table(path):
        yield from read_json(path, _row, cursor=options.cursor)
        return
    with input_file(path, options.cursor) as file:
        for number, line in lines_of(file, options.cursor):
            try:
                yield parse_trace(line) if line is not None else Refusal(f"{path}:{number}", TOO_LONG)
            except ValueError as error:
                yield Refusal(f"{path}:{number}", f"not a trace: {error}")


def _row(record: Any, _: str) -> Trace:
    """Parse a row of a table, which has no nulls: an exit code is required and may be null."""
    for turn in listed(member(record, "turns")):
        turn.setdefault("exit_code", None)
    return parse_trace(json_text(record).encode())
