"""Imports of one record, and conversations to write as a tool does: what a test expects of them, segment by segment."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from echo_cli.trace import Trace
from echo_cli.traces.builder import ImportOptions, Refusal
from echo_cli.traces.recognition import format_named, recognise

Part = tuple[str, str | None, str]
"""Role, channel and text of a segment."""

TEXTS = st.lists(
    st.sampled_from(["\r\n", "\n", "\0", "\u2028", "🦊", "é", "\ufeff", " ", "a", "</output>", "bash-$", "<tool_call>"])
    | st.text(max_size=8),
    max_size=5,
).map(lambda parts: "".join(parts).encode(errors="replace").decode())
"""Texts that break parsers: line ends, NUL, characters outside the BMP, and the frames' own tags."""

SPOKEN = TEXTS.map(lambda text: f"So {text}.")
"""Texts that are words of an agent: they are not empty, and not thinking alone."""

OPEN: Part = ("context", "wrapper", "<tool_response>\n")
CLOSE: Part = ("context", "wrapper", "\n</tool_response>\n")
END: Part = ("context", "wrapper", "\n")


def written(record: Any, folder: Path) -> Path:
    """Write a record to a document of its own."""
    path = folder / "a.json"
    path.write_text(json.dumps(record, indent=1), encoding="utf-8")
    return path


def the_trace(name: str, record: Any, folder: Path, options: ImportOptions | None = None) -> Trace:
    """Return the trace of a record, whose format is recognised as `name`."""
    path = written(record, folder)
    assert recognise(path).name == name
    (found,) = format_named(name).read(path, options or ImportOptions())
    assert isinstance(found, Trace), found
    return found


def the_refusal(name: str, record: Any, folder: Path, options: ImportOptions | None = None) -> str:
    """Return the reason why a record is refused."""
    (found,) = format_named(name).read(written(record, folder), options or ImportOptions())
    assert isinstance(found, Refusal), found
    return found.reason


def parts_of(trace: Trace) -> list[Part]:
    return [(segment.role.name.lower(), segment.channel, segment.text) for segment in trace.segments]


def call_text(name: str, arguments: str) -> str:
    """Return the canonical text of a call with these arguments, JSON text."""
    return f'<tool_call>\n{{"arguments": {arguments}, "name": {json.dumps(name)}}}\n</tool_call>\n'


def answered(text: str, channel: str = "tool_result") -> list[Part]:
    """Return the segments of a tool's answer."""
    return [OPEN, *([("env_output", channel, text)] if text else []), CLOSE]
