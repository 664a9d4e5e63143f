"""Rollouts of NeMo-Gym: the input is context, the output has the agent's items and the world's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from imported_chats import END, SPOKEN, TEXTS, Part, answered, call_text, parts_of, the_refusal, the_trace


def rollout(given_items: Any, output: list[Any], **more: Any) -> dict[str, Any]:
    asked = {"input": given_items, "tools": [{"type": "function", "name": "f"}]}
    return {"responses_create_params": asked, "response": {"id": "r", "output": output}, "reward": 1.0, **more}


def said(text: str) -> dict[str, Any]:
    content = [{"type": "output_text", "text": text, "annotations": []}]
    return {"type": "message", "role": "assistant", "content": content, "generation_token_ids": [1]}


def told(text: str, role: str = "user") -> dict[str, Any]:
    return {"type": "message", "role": role, "content": text}


def called(call_id: str) -> dict[str, Any]:
    return {"type": "function_call", "call_id": call_id, "name": "f", "arguments": "{}"}


def returned(call_id: str, text: str) -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": call_id, "output": text}


def test_the_world_answers_in_the_output(tmp_path: Path) -> None:
    before = [told("s", "system"), told("q"), said("e"), called("c0"), returned("c0", "0"), told("Go.")]
    output = [called("c1"), returned("c1", "3"), said("hit"), told("bust")]
    trace = the_trace("nemo-gym", rollout(before, output, _ng_task_index=7), tmp_path)
    quoted = [part if part[0] == "context" else ("context", "copied", part[2]) for part in answered("0")]
    assert parts_of(trace) == [
        ("context", "system", "s\n"),
        ("context", "tools", '<tools>\n{"type": "function", "name": "f"}\n</tools>\n'),
        ("context", "user", "q\n"),
        ("context", "copied", f"e\n{call_text('f', '{}')}"),
        *quoted,
        ("context", "user", "Go.\n"),
        ("action", None, call_text("f", "{}")),
        *answered("3"),
        ("action", None, "hit\n"),
        ("env_output", "observation", "bust"),
        END,
    ]
    assert (trace.task_id, trace.reward, len(trace.turns)) == ("7", 1.0, 2)
    assert trace.meta == {"tool_calls": ["c1"], "tool_responses": ["c1"]}


def test_a_message_without_text_does_not_cost_the_rollout(tmp_path: Path) -> None:
    trace = the_trace("nemo-gym", rollout("q", [said("a") | {"content": None}, said("b")]), tmp_path)
    assert parts_of(trace)[2][:2] == ("action", None)
    assert trace.meta["left_out"] == {"a message without text": {"parts": 1, "bytes": 0}}


def test_the_input_may_be_the_users_text(tmp_path: Path) -> None:
    trace = the_trace("nemo-gym", rollout("q", [said("a")]), tmp_path)
    assert [part for part in parts_of(trace) if part[1] != "tools"] == [
        ("context", "user", "q\n"),
        ("action", None, "a\n"),
    ]
    reason = "no responses_create_params with a response"
    assert the_refusal("nemo-gym", {"responses_create_params": {}, "response": {"output": []}}, tmp_path) == reason


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(SPOKEN, TEXTS, st.booleans()), min_size=1, max_size=4))
def test_every_byte_is_in_one_segment(
    tmp_path_factory: pytest.TempPathFactory, turns: list[tuple[str, str, bool]]
) -> None:
    output: list[Any] = []
    expected: list[Part] = []
    for number, (words, seen, tool) in enumerate(turns):
        output.append(said(words))
        output += [called(f"c{number}"), returned(f"c{number}", seen)] if tool else [told(seen)]
        expected.append(("action", None, f"{words}\n{call_text('f', '{}') if tool else ''}"))
        shown: list[Part] = [("env_output", "observation", seen)] if seen else []
        expected += answered(seen) if tool else [*shown, END]
    trace = the_trace("nemo-gym", rollout([told("q")], output), tmp_path_factory.mktemp("a"))
    assert parts_of(trace)[2:] == expected
