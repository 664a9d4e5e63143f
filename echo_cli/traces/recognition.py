"""The formats of traces, by name, and recognition of a file's format from its content."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, cast

from echo_cli.errors import EchoError
from echo_cli.text import escape_unprintable
from echo_cli.trace import Trace
from echo_cli.traces.builder import ImportOptions, Refusal
from echo_cli.traces.containers.archive import is_archive
from echo_cli.traces.input_file import STDIN, first_bytes
from echo_cli.traces.json_records import records

AUTO = "auto"
"""Name in place of a format: each file has the format that is recognised from its content."""

FORMATS = {
    "echo": "echo",
    "asciinema": "terminals.asciinema",
    "inspect": "harnesses.inspect",
    "otel": "telemetry.otel",
    "langsmith": "telemetry.langsmith",
    "openhands": "harnesses.openhands",
    "atif": "harnesses.atif",
    "openenv": "harnesses.openenv",
    "awm": "harnesses.awm",
    "nemo-gym": "harnesses.nemo_gym",
    "mini-swe-agent": "harnesses.mini_swe_agent",
    "swe-agent": "harnesses.swe_agent",
    "verifiers": "harnesses.verifiers",
    "claude-code": "sessions.claude_code",
    "codex": "sessions.codex",
    "gemini": "sessions.gemini",
    "responses": "chats.responses",
    "harmony": "chats.harmony",
    "anthropic": "chats.anthropic",
    "llama-factory": "chats.llama_factory",
    "sharegpt": "chats.sharegpt",
    "openai": "chats.openai",
}
"""Module below `formats` of each format, by its name; of two formats that recognise a file, the first has it."""

_ALIASES = {
    **dict.fromkeys(("harbor", "terminus", "terminal-bench", "tbench"), "atif"),
    **dict.fromkeys(("openhands-sdk", "opendevin", "software-agent-sdk"), "openhands"),
    **dict.fromkeys(("gpt-oss", "openai-harmony", "openai_harmony"), "harmony"),
    **dict.fromkeys(("opentelemetry", "otlp", "genai", "gen_ai"), "otel"),
    **dict.fromkeys(("langchain", "langgraph"), "langsmith"),
    **dict.fromkeys(("inspect_ai", "inspect-ai", "eval"), "inspect"),
    **dict.fromkeys(("claude", "claude-api"), "anthropic"),
    **dict.fromkeys(("claudecode", "claude-agent-sdk", "stream-json"), "claude-code"),
    **dict.fromkeys(("codex-cli", "rollout", "rollouts"), "codex"),
    **dict.fromkeys(("gemini-cli", "google", "gemini-api"), "gemini"),
    **dict.fromkeys(("openai-responses", "response", "responses-api"), "responses"),
    **dict.fromkeys(("chatml", "chat", "messages", "huggingface", "trl", "vllm"), "openai"),
    **dict.fromkeys(("mini", "mini-swe-agent-1", "mini-swe-agent-1.1", "mini_swe_agent"), "mini-swe-agent"),
    **dict.fromkeys(("sweagent", "swe-smith", "swe_agent", "traj", "nebius"), "swe-agent"),
    **dict.fromkeys(("prime-rl", "prime", "environments-hub"), "verifiers"),
    **dict.fromkeys(("nemo", "nemogym", "nemo_gym", "gym"), "nemo-gym"),
    **dict.fromkeys(("llamafactory", "llama_factory"), "llama-factory"),
    **dict.fromkeys(("vicuna", "hermes", "axolotl", "conversations"), "sharegpt"),
    **dict.fromkeys(("asciicast", "cast"), "asciinema"),
    **dict.fromkeys(("trajectory", "trajectories", "jsonl"), "echo"),
}
"""Formats by the names of tools and files that have them."""

_SAMPLED = 20
"""Number of records from which a file's format is recognised."""


@dataclass(frozen=True)
class Sample:
    """Beginning of a file."""

    path: Path
    start: bytes
    """First bytes of the file, as they are on disk."""
    records: Sequence[Any]
    """First JSON values: lines of JSONL, items of an array, rows of a table, or one document; none if it has none."""

    @property
    def first(self) -> Any:
        return self.records[0] if self.records else None


class Format(Protocol):
    """Module of a format."""

    ROLES: str
    """Role rules of the format, in a few lines."""

    def recognise(self, sample: Sample) -> str | None:
        """Return the evidence that a file has this format, as a clause of which the file is the subject, or None.

        A format of one episode per record looks at the first record alone; a format whose file is one episode may look
        at all of them.
        """
        ...

    def read(self, path: Path, options: ImportOptions) -> Iterator[Trace | Refusal]:
        """Yield the traces of one file, in order, with a refusal in place of each refused record."""
        ...


@dataclass(frozen=True)
class Recognised:
    """Format of a file, with the evidence for it."""

    name: str
    why: str | None = None
    """Evidence for the format, a clause; None if the format was named."""


def format_named(name: str) -> Format:
    """Import the module of a format.

    Raises:
        EchoError: there is no such format.
    """
    if name not in FORMATS:
        raise EchoError(f"unknown format '{escape_unprintable(name)}'", _format_tip(name))
    return cast(Format, importlib.import_module(f"echo_cli.traces.formats.{FORMATS[name]}"))


def is_session_log(name: str) -> bool:
    """Return whether a format is that of the logs that an agent keeps on a person's machine."""
    return FORMATS[name].startswith("sessions.")


def _format_tip(name: str) -> str:
    known = name.lower()
    if known in _ALIASES:
        return f"the format of {known} is {_ALIASES[known]}"
    nearest = difflib.get_close_matches(known, FORMATS, n=1)
    return f"did you mean {nearest[0]}?" if nearest else f"choose from {AUTO}, {', '.join(FORMATS)}"


def recognise(path: Path) -> Recognised:
    """Recognise the format of a file.

    Raises:
        EchoError: standard input or a pipe; no format has such content; or records near its beginning have different
            formats.
        OSError: the file cannot be read.
    """
    if path == STDIN or (path.exists() and not path.is_file()):  # it can be read once
        name = "standard input" if path == STDIN else escape_unprintable(path)
        raise EchoError(f"the format of {name} is not recognised", f"name it: traces import FORMAT {path}")
    start = first_bytes(path)
    sample = Sample(path, start, () if is_archive(start) else _first_records(path))
    found = _recognise(sample)
    if found is None:
        raise EchoError(_nothing_known(path), "name the format; `traces formats` lists what each reads")
    _check_alike(sample)
    return found


def _check_alike(sample: Sample) -> None:
    """Check that no record near the beginning shows another format by itself.

    Raises:
        EchoError: one does.
    """
    first = format_of(sample.first)
    if first is None:
        return  # the file is one episode, which no record shows by itself
    for number, record in enumerate(sample.records, start=1):
        if (other := format_of(record)) not in (None, first):
            raise EchoError(
                f"{escape_unprintable(sample.path)}: record 1 looks like {first}, record {number} like {other}",
                "write records of one format to a file of their own",
            )


def format_of(record: Any) -> str | None:
    """Return the name of the format that a record alone shows; None if it shows none."""
    found = _recognise(Sample(Path("record.json"), b"", [record]))
    return None if found is None else found.name


def _recognise(sample: Sample) -> Recognised | None:
    for name in FORMATS:
        if (why := format_named(name).recognise(sample)) is not None:
            return Recognised(name, why)
    return None


def _first_records(path: Path) -> list[Any]:
    """Return the first JSON values of a file, up to one that is damaged."""
    found = []
    for entry in islice(records(path), _SAMPLED):
        if isinstance(entry, Refusal):
            break
        found.append(entry[1])
    return found


def _nothing_known(path: Path) -> str:
    """Return why a file has no known format, by its first record."""
    name, entry = escape_unprintable(path), next(records(path), None)
    if entry is None:
        return f"{name} has no records"
    if isinstance(entry, Refusal):
        return f"{escape_unprintable(entry.where)}: no known format, and {entry.reason}"
    first = entry[1]
    if not isinstance(first, dict):
        return f"{name}: no known format: its first record is not a JSON object"
    fields = ", ".join(escape_unprintable(str(field)) for field in list(first)[:6]) or "no fields"
    return f"{name}: no known format: its first record has {fields}"
