"""Conversations drawn for property tests of the formats, and the segments that an import must make of them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

from echo_cli.trace import Trace, without_thinking
from echo_cli.traces.builder import LEFT_OUT, said, tool_call
from echo_cli.trajectory import TOOLS, Role

HOSTILE = st.lists(
    st.sampled_from(["\r", "\n", "\0", "\u2028", "\x1b[31m", "🦊", "é", "\ufeff", " ", "a", '{"a": 1}'])
    | st.sampled_from(["<tool_response>\n", "\n</tool_response>\n", "<tool_call>\n{}\n</tool_call>\n", "<think>"])
    | st.text(max_size=5),
    max_size=5,
).map("".join)
"""Texts that break parsers."""

ARGUMENTS = st.dictionaries(st.text(max_size=5), st.text(max_size=5) | st.integers() | st.none(), max_size=2)


@dataclass(frozen=True)
class Call:
    """A tool call with its answer."""

    call_id: str
    name: str
    arguments: dict[str, Any]
    output: str


@dataclass(frozen=True)
class Turn:
    """A person's message and the assistant's reply."""

    user: str
    words: str
    reasoning: str
    calls: list[Call] = field(default_factory=list)


@st.composite
def turns(draw: st.DrawFn) -> list[Turn]:
    """Draw a conversation in which every reply is an action."""
    found, number = list[Turn](), 0
    for _ in range(draw(st.integers(1, 3))):
        calls = []
        for _ in range(draw(st.integers(0, 2))):
            number += 1
            output, arguments = draw(HOSTILE), draw(ARGUMENTS)
            calls.append(Call(f"call-{number}", draw(st.sampled_from(["bash", "look"])), arguments, output))
        words = draw(HOSTILE if calls else HOSTILE.filter(lambda text: bool(without_thinking(text).strip())))
        found.append(Turn(draw(HOSTILE), words, draw(HOSTILE), calls))
    return found


def expected(chat: list[Turn]) -> list[tuple[Role, str]]:
    """Return the role and text of each segment that is neither a list of tools nor a wrapper."""
    found = []
    for turn in chat:
        texts = [tool_call(call.name, json.dumps(call.arguments, ensure_ascii=False)) for call in turn.calls]
        found += [(Role.CONTEXT, f"{turn.user}\n"), (Role.ACTION, said(turn.words, texts))]
        found += [(Role.ENV_OUTPUT, call.output) for call in turn.calls if call.output]
    return found


def recorded(trace: Trace) -> list[tuple[Role, str]]:
    """Return the role and text of each segment that is neither a list of tools, a wrapper nor a notice."""
    own = (TOOLS, "wrapper", LEFT_OUT)
    return [(segment.role, segment.text) for segment in trace.segments if segment.channel not in own]


def left_out(trace: Trace) -> dict[str, int]:
    """Return the bytes of what was left out of a trace, by what it is."""
    return {what: of["bytes"] for what, of in trace.meta.get("left_out", {}).items()}


def reasoning_bytes(chat: list[Turn]) -> int:
    return sum(len(turn.reasoning.encode()) for turn in chat)
