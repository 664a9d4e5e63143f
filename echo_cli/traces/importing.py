"""Import of other tools' traces into a trajectory file, with counts of imported and refused records."""

from __future__ import annotations

import math
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import BinaryIO, TypeVar

from pydantic import TypeAdapter

from echo_cli.errors import EchoError
from echo_cli.files import output_file
from echo_cli.text import escape_unprintable, size_of
from echo_cli.trace import Trace, trace_line
from echo_cli.traces.builder import ImportOptions, LeftOut, Refusal
from echo_cli.traces.containers.archive import is_archive
from echo_cli.traces.containers.hub_datasets import is_dataset
from echo_cli.traces.cursor import Cursor
from echo_cli.traces.input_file import STDIN, first_bytes, input_stamp
from echo_cli.traces.json_records import records
from echo_cli.traces.partial_output import Job, partial_output
from echo_cli.traces.recognition import AUTO, Format, Recognised, format_named, format_of, is_session_log, recognise
from echo_cli.traces.redaction.redactor import Redactor
from echo_cli.trajectory import NAMED_ROLES

T = TypeVar("T")

_SHOW_EVERY, _SAVE_EVERY = 0.2, 5.0
"""Time between reports of the progress, and between saved states, seconds."""

PROMPTED = "asciinema"
"""The only format that reads `ImportOptions.prompt`."""

OBSERVED = ("openai", "sharegpt")
"""Formats that read `ImportOptions.observation`."""


@dataclass
class ImportResult:
    """Counts of an import."""

    formats: Sequence[Recognised] = ()
    """Format of each file."""
    traces: int = 0
    segments: int = 0
    bytes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(NAMED_ROLES, 0))
    """Bytes of text, in UTF-8, by role."""
    refused: Counter[str] = field(default_factory=Counter)
    """Number of refusals by reason."""
    first_refused: dict[str, str] = field(default_factory=dict)
    """Place where each reason first occurred."""
    left_out: dict[str, LeftOut] = field(default_factory=dict)
    """Parts that are in no segment, by what they are."""
    redacted: Counter[str] | None = None
    """Number of replaced secrets by kind; None if no file was redacted."""

    def add(self, trace: Trace) -> None:
        """Count a trace."""
        self.traces += 1
        self.segments += len(trace.segments)
        for name, role in NAMED_ROLES.items():
            self.bytes[name] += sum(size_of(segment.text) for segment in trace.segments if segment.role is role)
        for what, of in trace.meta.get("left_out", {}).items():
            total = self.left_out.setdefault(what, LeftOut())
            total.parts += of["parts"]
            total.bytes += of["bytes"]

    def refuse(self, refusal: Refusal) -> None:
        """Count a refusal."""
        self.refused[refusal.reason] += 1
        self.first_refused.setdefault(refusal.reason, refusal.where)


@dataclass
class Place:
    """Place in the inputs up to which they are imported."""

    file: int = 0
    """Number of files before the one that is read."""
    offset: int = 0
    number: int = 0
    """Where the record that is read begins, as in `Cursor`."""
    results: int = 0
    """Number of traces and refusals from there on."""


@dataclass
class ImportState:
    """What an interrupted import continues from."""

    place: Place = field(default_factory=Place)
    result: ImportResult = field(default_factory=ImportResult)


def import_traces(
    name: str,
    files: Sequence[Path],
    output: Path | None,
    options: ImportOptions,
    *,
    skip_bad: bool = False,
    overwrite: bool = False,
    report: Callable[[int], None] = lambda _: None,
) -> ImportResult:
    """Write the traces of `files`, which are in the format `name`, to the trajectory file `output`.

    Memory holds one trace at a time; a JSON document is loaded whole. `output` appears once it is complete. An import
    into a file that was interrupted is continued by the next one with the same arguments, unless an input is a pipe.

    Args:
        name: a format, or "auto": each file has the format that is recognised from its content.
        output: None for stdout.
        skip_bad: whether to count refused records and continue, instead of raising at the first refused record.
        overwrite: whether to replace an existing `output`.
        report: takes the number of bytes of the inputs that are imported, a few times per second.

    Raises:
        EchoError: the format is unknown, or not recognised; an option or a file is invalid; `output` is an input; a
            record is refused without `skip_bad`; there are no traces; `output` cannot be written, or an import of other
            inputs or options into it was interrupted; detect-secrets is needed and not installed.
    """
    if files.count(STDIN) > 1:
        raise EchoError("- is given twice", "standard input can be read once")
    if output is not None and (same := next((path for path in files if _is_same_file(path, output)), None)):
        raise EchoError(f"--output is {escape_unprintable(same)}, which is to be imported", "choose another --output")
    formats = formats_of(name, files)
    for recognised in formats:
        _check_options(recognised.name, options)
    whole = _Import(files, formats, options, skip_bad, report)
    if output is None or (output.exists() and not output.is_file() and not output.is_dir()) or not whole.is_repeatable:
        with output_file(output, overwrite=overwrite) as file:
            return whole.run(file, ImportState(), lambda _: None)
    states = TypeAdapter(ImportState)
    with partial_output(output, whole.job(), overwrite=overwrite) as partial:
        state = states.validate_python(partial.state) if partial.state else ImportState()
        return whole.run(partial.file, state, lambda state: partial.save(states.dump_python(state, mode="json")))


@dataclass(frozen=True)
class _Import:
    """Import of files whose formats are known."""

    files: Sequence[Path]
    formats: Sequence[Recognised]
    options: ImportOptions
    skip_bad: bool
    report: Callable[[int], None]

    @property
    def is_repeatable(self) -> bool:
        """Whether the files can be read again: none is a pipe."""
        return all(is_dataset(path) or (path != STDIN and path.is_file()) for path in self.files)

    def job(self) -> Job:
        """Return what the import's output depends on."""
        options = {name: value for name, value in vars(self.options).items() if name != "cursor"}
        return {
            "inputs": [[str(path), *input_stamp(path)] for path in self.files],
            "formats": [recognised.name for recognised in self.formats],
            "options": {**options, "skip_bad": self.skip_bad},
            "versions of echo-cli": version("echo-cli"),
        }

    def run(self, file: BinaryIO, state: ImportState, save: Callable[[ImportState], None]) -> ImportResult:
        """Write the traces from `state` on to `file`, call `save` now and then, and return the counts of all."""
        place, result = state.place, state.result
        result.formats = self.formats
        redacts = [_redacts(recognised.name, self.options) for recognised in self.formats]
        redactor = Redactor(counts=result.redacted or Counter()) if any(redacts) else None
        result.redacted = None if redactor is None else redactor.counts
        sizes = [input_stamp(path)[0] for path in self.files]
        saved = shown = -math.inf
        while place.file < len(self.files):
            known, place.results, cursor = place.results, 0, Cursor(place.offset, place.number)
            for found in self._results(place.file, cursor):
                if cursor.place != (place.offset, place.number):
                    (place.offset, place.number), place.results, known = cursor.place, 0, 0
                place.results += 1
                if place.results <= known:
                    continue
                if redactor is not None and redacts[place.file] and isinstance(found, Trace):
                    found = redactor.redact(found)
                self._add(found, place.file, result, file)
                now = time.monotonic()
                if now - shown >= _SHOW_EVERY:
                    shown = now
                    self.report(sum(sizes[: place.file]) + cursor.consumed())
                if now - saved >= _SAVE_EVERY:
                    saved = now
                    save(state)
            place.file, place.offset, place.number, place.results = place.file + 1, 0, 0, 0
        if not result.traces:
            raise EchoError(*_nothing(self.files, result))
        return result

    def _results(self, number: int, cursor: Cursor) -> Iterator[Trace | Refusal]:
        source = format_named(self.formats[number].name)
        return _read(source, self.files[number], replace(self.options, cursor=cursor))

    def _add(self, found: Trace | Refusal, number: int, result: ImportResult, file: BinaryIO) -> None:
        if isinstance(found, Trace):
            result.add(found)
            file.write(trace_line(found))
        elif self.skip_bad:
            result.refuse(found)
        else:
            tip = "pass --skip-bad to omit such records and count them"
            other = _other_format(self.files[number], self.formats[number].name)
            raise EchoError(f"{found.where}: {found.reason}", other or tip)


def formats_of(name: str, files: Sequence[Path]) -> list[Recognised]:
    """Return the format of each file: the named one, or with "auto" the one that is recognised.

    Raises:
        EchoError: the format is unknown, or not recognised; a file does not exist or cannot be read.
    """
    if name != AUTO:
        format_named(name)
    for path in files:
        _check_file(path)
    return [_readable(path, recognise) if name == AUTO else Recognised(name) for path in files]


def first_trace(name: str, path: Path, options: ImportOptions) -> tuple[Recognised, Trace]:
    """Return the format of a file and its first trace, redacted as in an import.

    Raises:
        EchoError: as for `import_traces`; a record before the first trace was refused.
    """
    (recognised,) = formats_of(name, [path])
    _check_options(recognised.name, options)
    found = next(_read(format_named(recognised.name), path, options), None)
    if isinstance(found, Trace):
        return recognised, Redactor().redact(found) if _redacts(recognised.name, options) else found
    if found is None:
        raise EchoError(f"no records in {escape_unprintable(path)}", "name a file with traces")
    raise EchoError(f"{found.where}: {found.reason}", "see `traces formats` for what the format holds")


def _other_format(path: Path, name: str) -> str | None:
    """Return a tip that names the format of a file's first record; None if it may be `name`, or is unknown."""
    has_records = is_dataset(path) or (path != STDIN and path.is_file() and not is_archive(first_bytes(path)))
    record = next(records(path), None) if has_records else None
    found = format_of(record[1]) if isinstance(record, tuple) else None
    return None if found in (None, name) else f"this file looks like the format {found}"


def _check_options(name: str, options: ImportOptions) -> None:
    if options.prompt is not None and name != PROMPTED:
        raise EchoError(f"--prompt has no effect on {name}", f"only {PROMPTED} uses it")
    if options.observation is not None and name not in OBSERVED:
        raise EchoError(f"--observation has no effect on {name}", f"only {' and '.join(OBSERVED)} use it")
    patterns = {"--prompt": options.prompt, "--warning": options.warning, "--observation": options.observation}
    for option, pattern in patterns.items():
        try:
            re.compile(pattern or "")
        except (re.error, RecursionError, OverflowError) as error:
            raise EchoError(f"{option}: not a regular expression: {error}", "use the syntax of Python's re") from error


def _redacts(name: str, options: ImportOptions) -> bool:
    return is_session_log(name) if options.redact is None else options.redact


def _is_same_file(path: Path, output: Path) -> bool:
    return path != STDIN and path.is_file() and output.exists() and path.samefile(output)


def _check_file(path: Path) -> None:
    if path == STDIN or is_dataset(path):
        return
    if path.is_dir():
        raise EchoError(f"{escape_unprintable(path)} is a folder", f"name its files: {escape_unprintable(path)}/*")
    if not path.exists():
        raise EchoError(f"{escape_unprintable(path)} does not exist", "name the files to import")


def _read(source: Format, path: Path, options: ImportOptions) -> Iterator[Trace | Refusal]:
    reading = source.read(path, options)
    while (found := _readable(path, lambda _: next(reading, None))) is not None:
        yield found


def _readable(path: Path, read: Callable[[Path], T]) -> T:
    """Return `read(path)`, with one line for a file that cannot be read."""
    try:
        return read(path)
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
