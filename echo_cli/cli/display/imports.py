"""Printing for `traces import`: counts, and a first trace with the rule behind every role."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

from echo_cli.cli.display.tables import new_console
from echo_cli.cli.options import print_json
from echo_cli.terminal import guarded_streams, put
from echo_cli.text import clipped, escape_unprintable, without_middle
from echo_cli.trace import Trace
from echo_cli.traces.builder import LeftOut
from echo_cli.traces.importing import OBSERVED, ImportResult
from echo_cli.traces.input_file import input_stamp
from echo_cli.traces.partial_output import partial_path
from echo_cli.traces.recognition import Recognised, format_named

_SHOWN = 64
"""Length of a segment's text in a row, characters."""


@contextmanager
def import_progress(files: Sequence[Path]) -> Iterator[Callable[[int], None]]:
    """Yield a function that shows how many bytes of `files` are imported; on a terminal only, on stderr."""
    console = new_console(err=True)
    if not console.is_terminal:
        yield lambda _: None
        return
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bars, guarded_streams():
        bar = bars.add_task("", total=None, start=False)

        def show(imported: int) -> None:
            if not bars.tasks[0].started:  # the speed is that of this call, which may continue an earlier one
                bars.update(bar, completed=imported, total=sum(input_stamp(path)[0] for path in files) or None)
                bars.start_task(bar)
            bars.update(bar, completed=imported)

        yield show


def tell_interrupted(output: Path | None) -> None:
    """Say how to continue an import that was interrupted, if it can be continued."""
    if output is not None and partial_path(output).exists():
        put(f"{output} is not complete: the same command continues the import", err=True)


def show_import(result: ImportResult, files: Sequence[Path], output: str, *, as_json: bool) -> None:
    """Print the counts of an import; on stderr if the traces are on stdout."""
    for reason, count in result.refused.most_common():
        put(f"skipped {count}: {reason}, first at {result.first_refused[reason]}", err=True)
    if as_json:
        print_json(_record(result, files, output))
    else:
        put(*_lines(result, files, output), err=output == "-")
    if not result.bytes["env_output"]:
        put(*_nothing_observed(result), err=True)


def _record(result: ImportResult, files: Sequence[Path], output: str) -> dict[str, Any]:
    reasons = [
        {"reason": reason, "count": count, "first": result.first_refused[reason]}
        for reason, count in result.refused.most_common()
    ]
    formats = [
        {"file": str(path), "format": found.name, "why": found.why}
        for path, found in zip(files, result.formats, strict=True)
    ]
    left_out = {what: {"parts": of.parts, "bytes": of.bytes} for what, of in result.left_out.items()}
    counts = {"traces": result.traces, "segments": result.segments, "bytes": result.bytes}
    parts = {"left_out": left_out, "redacted": result.redacted, "refused": reasons}
    return {"output": output, "files": formats, **counts, **parts}


def _lines(result: ImportResult, files: Sequence[Path], output: str) -> list[str]:
    alike = dict[Recognised, list[Path]]()
    for path, found in zip(files, result.formats, strict=True):
        alike.setdefault(found, []).append(path)
    formats = [
        f"{escape_unprintable(first)}{f' and {len(more)} more' if more else ''}: {found.name}, because {found.why}"
        for found, (first, *more) in alike.items()
        if found.why is not None
    ]
    left_out = [_left_out(what, of) for what, of in sorted(result.left_out.items(), key=lambda item: -item[1].parts)]
    kinds = [f"{kind} {count}" for kind, count in (result.redacted or {}).items()]
    total = (
        [] if result.redacted is None else [f"redacted {result.redacted.total()}{': ' * bool(kinds)}{', '.join(kinds)}"]
    )
    sizes = ", ".join(f"{role} {size}" for role, size in result.bytes.items())
    skipped = f", skipped: {result.refused.total()}" if result.refused else ""
    counts = f"{output}: traces: {result.traces}, segments: {result.segments}{skipped}; bytes: {sizes}"
    return [*formats, *left_out, *total, counts]


def _nothing_observed(result: ImportResult) -> list[str]:
    """Return the notice of an import without an observation, and the tip where an option can name observations."""
    tip = "tip: if user messages are the environment's answers, name them: --observation user, or --observation REGEX"
    named = any(found.name in OBSERVED for found in result.formats)
    return ["no text of these traces is env_output, so there is nothing to predict", *([tip] if named else [])]


def show_first_trace(path: Path, found: Recognised, trace: Trace, *, as_json: bool) -> None:
    """Print a trace's segments with their places in the record, and the role rules of its format."""
    rules = format_named(found.name).ROLES.strip().splitlines()
    places = trace.meta.get("places") or ["" for _ in trace.segments]
    rows = [
        {"place": place, "role": segment.role.name.lower(), "channel": segment.channel, "text": segment.text}
        for place, segment in zip(places, trace.segments, strict=True)
    ]
    if as_json:
        print_json({"format": found.name, "why": found.why, "rules": rules, "task_id": trace.task_id, "segments": rows})
        return
    because = "" if found.why is None else f", because {found.why}"
    put(f"{escape_unprintable(path)}: {found.name}{because}", *(f"  {rule}" for rule in rules), "")
    widths = {name: max(len(str(row[name] or "-")) for row in rows) for name in ("place", "role", "channel")}
    for row in rows:
        source = "  ".join(f"{row[name] or '-':{width}}" for name, width in widths.items())
        put(f"{source}  {without_middle(escape_unprintable(row['text']), _SHOWN)}")
    for what, of in trace.meta.get("left_out", {}).items():
        put(_left_out(what, LeftOut(**of)))


def _left_out(what: str, of: LeftOut) -> str:
    size = f", {of.bytes} bytes" if of.bytes else ""
    return f"left out {of.parts}: {clipped(escape_unprintable(what))}{size}"
