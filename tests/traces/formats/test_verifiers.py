"""Rollouts of verifiers environments: a prompt, and a completion of the agent's messages and the world's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from imported_chats import END, SPOKEN, TEXTS, Part, answered, call_text, parts_of, the_refusal, the_trace, written

from echo_cli.errors import EchoError
from echo_cli.traces.recognition import recognise


def rollout(prompt: list[Any], completion: list[Any], **more: Any) -> dict[str, Any]:
    return {"example_id": 3, "prompt": prompt, "completion": completion, "reward": 0.5, "answer": "x", **more}


def message(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def test_the_world_answers_in_the_completion(tmp_path: Path) -> None:
    call = json.dumps({"id": "c1", "name": "look", "arguments": '{"at": "map"}'})
    prompt = [message("system", "s"), message("user", "e"), message("assistant", "f"), message("user", "q")]
    completion = [
        message("assistant", "Guess.", reasoning_content="Hm."),
        message("user", "Wrong."),
        message("assistant", "", tool_calls=[call]),
        message("tool", "sea", tool_call_id="c1"),
    ]
    tools = [{"name": "look", "description": "d", "parameters": {}}]
    trace = the_trace("verifiers", rollout(prompt, completion, tool_defs=tools), tmp_path)
    assert parts_of(trace) == [
        ("context", "system", "s\n"),
        ("context", "tools", f"<tools>\n{json.dumps(tools[0])}\n</tools>\n"),
        ("context", "user", "e\n"),
        ("context", "copied", "f\n"),
        ("context", "user", "q\n"),
        ("action", None, "Guess.\n"),
        ("env_output", "observation", "Wrong."),
        END,
        ("action", None, call_text("look", '{"at": "map"}')),
        *answered("sea"),
    ]
    assert (trace.task_id, trace.reward) == ("3", 0.5)
    former = rollout(prompt, completion, info=json.dumps({"oai_tools": tools}))
    assert parts_of(the_trace("verifiers", former, tmp_path)) == parts_of(trace)


def test_a_prompt_and_a_completion_of_another_tool_are_not_recognised(tmp_path: Path) -> None:
    record = {"prompt": [message("user", "q")], "completion": [message("assistant", "a")]}
    with pytest.raises(EchoError, match="no known format: its first record has prompt, completion"):
        recognise(written(record, tmp_path))
    text = rollout([], []) | {"prompt": "q", "completion": "a"}
    assert the_refusal("verifiers", text, tmp_path) == "no prompt and completion of messages"


@settings(deadline=None, max_examples=40)
@given(
    st.lists(TEXTS, min_size=1, max_size=2), st.lists(st.tuples(SPOKEN, TEXTS, st.booleans()), min_size=1, max_size=4)
)
def test_every_byte_is_in_one_segment(
    tmp_path_factory: pytest.TempPathFactory, asked: list[str], turns: list[tuple[str, str, bool]]
) -> None:
    completion: list[Any] = []
    expected: list[Part] = [("context", "user", f"{text}\n") for text in asked]
    for number, (words, seen, tool) in enumerate(turns):
        calls = [json.dumps({"id": f"c{number}", "name": "f", "arguments": "{}"})] if tool else None
        completion += [message("assistant", words, tool_calls=calls)]
        completion += [message("tool", seen, tool_call_id=f"c{number}") if tool else message("user", seen)]
        expected.append(("action", None, f"{words}\n{call_text('f', '{}') if tool else ''}"))
        shown: list[Part] = [("env_output", "observation", seen)] if seen else []
        expected += answered(seen) if tool else [*shown, END]
    record = rollout([message("user", text) for text in asked], completion)
    assert parts_of(the_trace("verifiers", record, tmp_path_factory.mktemp("a"))) == expected
