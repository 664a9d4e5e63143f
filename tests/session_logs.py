"""Conversations of an agent with a person and its tools, for tests that write them as a tool does and import them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from echo_cli.trace import Trace
from echo_cli.traces.builder import ImportOptions, Refusal
from echo_cli.traces.recognition import format_named, recognise
from echo_cli.trajectory import CLOSE, OPEN

# Text that breaks parsers: line ends, NUL, characters outside the BMP, and the wrappers' own tags.
HOSTILE = st.lists(
    st.sampled_from(["\r", "\n", "\r\n", "\0", "\u2028", "\x1b[31m", "🦊", "é", "\ufeff", " ", "a", "Output:\n", '"}'])
    | st.sampled_from([OPEN, CLOSE, "<tool_call>\n{}\n</tool_call>\n", "</tool_use_error>", "</system-reminder>"])
    | st.text(max_size=8),
    max_size=4,
).map("".join)
WORDS = HOSTILE.map(lambda text: f"I {text}")
ARGUMENTS = st.dictionaries(st.text(max_size=4), st.text(max_size=4) | st.integers() | st.none(), max_size=3)


@dataclass(frozen=True)
class Call:
    """A call of a tool, and its result."""

    name: str
    arguments: dict[str, Any]
    output: str
    exit_code: int


@dataclass(frozen=True)
class Reply:
    """A prompt, and the reply to it."""

    prompt: str
    reasoning: str
    words: str
    calls: tuple[Call, ...]


CALLS = st.builds(Call, st.sampled_from(["shell", "look"]), ARGUMENTS, HOSTILE, st.integers(1, 255))
CONVERSATIONS = st.lists(
    st.builds(Reply, HOSTILE, HOSTILE, WORDS, st.lists(CALLS, max_size=3).map(tuple)), min_size=1, max_size=4
)


def expected(
    conversation: Iterable[Reply], around: Callable[[Call], tuple[str, str]] = lambda call: ("", "")
) -> dict[str, str]:
    """Return the text of each role, of a conversation whose prompts and replies alternate.

    Args:
        around: returns the text that the tool puts before and after a call's output.
    """
    context, action, env_output = "", "", ""
    for reply in conversation:
        context += f"{reply.prompt}\n"
        action += f"{reply.words}\n"
        for call in reply.calls:
            arguments = json.dumps(call.arguments, ensure_ascii=False)
            action += f'<tool_call>\n{{"arguments": {arguments}, "name": "{call.name}"}}\n</tool_call>\n'
            before, after = around(call)
            context += f"{OPEN}{before}{after}{CLOSE}"
            env_output += call.output
    return {"context": context, "action": action, "env_output": env_output, "warning": ""}


def by_role(trace: Trace) -> dict[str, str]:
    """Return the text of each role of a trace."""
    found = dict.fromkeys(("context", "action", "env_output", "warning"), "")
    for segment in trace.segments:
        found[segment.role.name.lower()] += segment.text
    return found


def write_lines(path: Path, lines: Iterable[Any]) -> Path:
    """Write values as JSON Lines."""
    path.write_text("".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines), encoding="utf-8")
    return path


def imported(name: str, path: Path, options: ImportOptions | None = None) -> list[Trace | Refusal]:
    """Return what an import of a file yields, and check that the file is recognised."""
    assert recognise(path).name == name
    return list(format_named(name).read(path, options or ImportOptions()))


def traces_of(name: str, path: Path, options: ImportOptions | None = None) -> list[Trace]:
    """Return the traces of a file without refusals."""
    found = imported(name, path, options)
    assert not [each for each in found if isinstance(each, Refusal)], found
    return [each for each in found if isinstance(each, Trace)]


def roles(trace: Trace) -> list[tuple[str, str | None, str]]:
    """Return role, channel and text of each segment, without the wrappers of answers."""
    found = [(segment.role.name.lower(), segment.channel, segment.text) for segment in trace.segments]
    return [each for each in found if each[2] not in (OPEN, CLOSE)]


def left_out(trace: Trace) -> dict[str, tuple[int, int]]:
    """Return parts and bytes of what an import left out, by what it is."""
    return {what: (of["parts"], of["bytes"]) for what, of in trace.meta.get("left_out", {}).items()}
