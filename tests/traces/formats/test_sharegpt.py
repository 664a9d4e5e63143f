"""Conversations of ShareGPT and of LLaMA-Factory v1."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from imported_chats import END, SPOKEN, TEXTS, Part, answered, call_text, parts_of, the_refusal, the_trace

from echo_cli.traces.builder import ImportOptions


def conversation(*turns: tuple[str, Any], **more: Any) -> dict[str, Any]:
    return {"conversations": [{"from": role, "value": value} for role, value in turns], **more}


def test_sharegpt_messages_have_their_roles(tmp_path: Path) -> None:
    call = json.dumps({"name": "f", "arguments": {"b": 1, "a": "é"}})
    turns = [("human", "q"), ("function_call", call), ("observation", "3"), ("gpt", "Three.")]
    tools = json.dumps([{"name": "f"}])
    trace = the_trace("sharegpt", conversation(*turns, system="s", tools=tools, id="i", reward=1), tmp_path)
    assert parts_of(trace) == [
        ("context", "system", "s\n"),
        ("context", "tools", '<tools>\n{"name": "f"}\n</tools>\n'),
        ("context", "user", "q\n"),
        ("action", None, call_text("f", '{"b": 1, "a": "é"}')),
        *answered("3"),
        ("action", None, "Three.\n"),
    ]
    assert (trace.task_id, trace.reward) == ("i", 1.0)


def test_calls_in_the_words_of_hermes_are_answered_in_blocks(tmp_path: Path) -> None:
    calls = call_text("f", '{"a": 1}') * 2
    blocks = "<tool_response>\n1\n</tool_response>\n<tool_response>\n2\n</tool_response>"
    trace = the_trace("sharegpt", conversation(("gpt", calls.rstrip("\n")), ("tool", blocks)), tmp_path)
    assert parts_of(trace) == [("action", None, calls), *answered("1"), *answered("2")]


def test_a_list_of_calls_and_a_call_that_is_none(tmp_path: Path) -> None:
    calls = json.dumps([{"name": name, "arguments": {}} for name in "fg"])
    turns = [("function_call", calls), ("observation", "1"), ("observation", "2"), ("function_call", "ls -l")]
    trace = the_trace("sharegpt", conversation(*turns), tmp_path)
    assert parts_of(trace) == [
        ("action", None, call_text("f", "{}") + call_text("g", "{}")),
        *answered("1"),
        *answered("2"),
        ("action", None, "ls -l\n"),
    ]
    assert list(trace.meta["left_out"]) == ["a function_call that is not JSON of calls, kept as text"]


def test_what_sharegpt_cannot_say_is_left_out(tmp_path: Path) -> None:
    rejected = {"from": "gpt", "value": "é"}
    record = conversation(("narrator", "Once"), ("gpt", "Hi."), ("human", None), images=["a.png"], rejected=rejected)
    trace = the_trace("sharegpt", record, tmp_path)
    assert trace.meta["left_out"] == {
        "a message of unknown role: 'narrator'": {"parts": 1, "bytes": 4},
        "a message without text": {"parts": 1, "bytes": 0},
        "chosen and rejected answers": {"parts": 1, "bytes": 2},
        "images": {"parts": 1, "bytes": 0},
    }
    assert the_refusal("sharegpt", {"conversations": []}, tmp_path) == "no conversations"


@pytest.mark.parametrize("told", ["human", "^Out"])
def test_observations_of_the_human_are_named_by_an_option(told: str, tmp_path: Path) -> None:
    record = conversation(("human", "List them."), ("gpt", "ls"), ("human", "Out: a"))
    assert parts_of(the_trace("sharegpt", record, tmp_path))[-1] == ("context", "user", "Out: a\n")
    trace = the_trace("sharegpt", record, tmp_path, ImportOptions(observation=told))
    assert parts_of(trace)[2:] == [("env_output", "observation", "Out: a"), END]


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(TEXTS, st.lists(st.tuples(TEXTS, TEXTS), max_size=2), SPOKEN), min_size=1, max_size=3))
def test_every_byte_of_sharegpt_is_in_one_segment(tmp_path_factory: pytest.TempPathFactory, turns: list[Any]) -> None:
    told: list[tuple[str, str]] = []
    expected: list[Part] = []
    for asked, exchanges, words in turns:
        told.append(("human", asked))
        expected.append(("context", "user", f"{asked}\n"))
        for argument, answer in exchanges:
            told += [
                ("function_call", json.dumps({"name": "f", "arguments": {"x": argument}})),
                ("observation", answer),
            ]
            expected.append(("action", None, call_text("f", json.dumps({"x": argument}, ensure_ascii=False))))
            expected += answered(answer)
        told.append(("gpt", words))
        expected.append(("action", None, f"{words}\n"))
    assert parts_of(the_trace("sharegpt", conversation(*told), tmp_path_factory.mktemp("a"))) == expected


def part(kind: str, value: str) -> dict[str, str]:
    return {"type": kind, "value": value}


def test_llama_factory_parts_have_their_roles(tmp_path: Path) -> None:
    call = part("tool_call", json.dumps({"name": "f", "arguments": {"a": 1}}))
    messages = [
        {"role": "system", "content": [part("text", "s")], "loss_weight": 0.0},
        {"role": "user", "content": [part("text", "q "), part("image_url", "a.png"), part("text", "?")]},
        {
            "role": "assistant",
            "content": [part("reasoning", "Hm."), part("text", "L."), call, part("tool_call", "oops")],
        },
        {"role": "tool", "content": [part("text", "3"), part("text", "4")]},
    ]
    trace = the_trace("llama-factory", {"messages": messages, "tools": '[{"name": "f"}]'}, tmp_path)
    assert parts_of(trace) == [
        ("context", "system", "s\n"),
        ("context", "tools", '<tools>\n{"name": "f"}\n</tools>\n'),
        ("context", "user", "q ?\n"),
        ("warning", "left_out", "[left out: a part that is not text: 'image_url']\n"),
        ("action", None, f"L.\n{call_text('f', json.dumps(dict(a=1)))}"),
        ("warning", "left_out", "[left out: a tool call that is not a function call]\n"),
        *answered("34"),
    ]
    assert trace.meta["left_out"]["reasoning"] == {"parts": 1, "bytes": 3}
    assert trace.meta["left_out"]["a tool call that is not a function call"] == {"parts": 1, "bytes": 4}


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(TEXTS, SPOKEN, st.lists(TEXTS, max_size=2)), min_size=1, max_size=3))
def test_every_byte_of_llama_factory_is_in_one_segment(
    tmp_path_factory: pytest.TempPathFactory, turns: list[Any]
) -> None:
    messages: list[Any] = []
    expected: list[Part] = []
    for asked, words, answers in turns:
        calls = [part("tool_call", json.dumps({"name": "f", "arguments": {"x": text}})) for text in answers]
        messages.append({"role": "user", "content": [part("text", asked)]})
        messages.append({"role": "assistant", "content": [part("text", words), *calls]})
        messages += [{"role": "tool", "content": [part("text", text)]} for text in answers]
        block = "".join(call_text("f", json.dumps({"x": text}, ensure_ascii=False)) for text in answers)
        expected += [("context", "user", f"{asked}\n"), ("action", None, f"{words}\n{block}")]
        expected += [segment for text in answers for segment in answered(text)]
    assert parts_of(the_trace("llama-factory", {"messages": messages}, tmp_path_factory.mktemp("a"))) == expected
