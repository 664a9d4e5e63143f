"""Chats of TRL and of Hugging Face's templates, and `--observation`: calls without ids, and observations of users."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from imported_chats import END, SPOKEN, TEXTS, answered, call_text, parts_of, the_refusal, the_trace

from echo_cli.errors import EchoError
from echo_cli.traces.builder import ImportOptions
from echo_cli.traces.conversation import conversation_of, openai_record
from echo_cli.traces.importing import import_traces


def call(name: str, arguments: Any = None, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments or {}}, **more}


def chat(calls: Any, *answers: dict[str, Any], **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "tool_calls": calls}]
    return {"messages": [*messages, *({"role": "tool", **answer} for answer in answers)], **more}


def test_an_answer_without_an_id_is_to_the_call_of_its_name(tmp_path: Path) -> None:
    swapped = [{"name": "lamp", "content": "on"}, {"name": "door", "content": "shut"}]
    tools = json.dumps([{"type": "function", "function": {"name": "lamp"}}])
    trace = the_trace("openai", chat([call("door"), call("lamp")], *swapped, tools=tools), tmp_path)
    assert parts_of(trace) == [
        ("context", "tools", '<tools>\n{"type": "function", "function": {"name": "lamp"}}\n</tools>\n'),
        ("context", "user", "q\n"),
        ("action", None, call_text("door", "{}") + call_text("lamp", "{}")),
        *answered("on"),
        *answered("shut"),
    ]
    assert trace.meta == {"tool_calls": ["call_0", "call_1"], "tool_responses": ["call_1", "call_0"]}
    said = openai_record(trace)["messages"]
    assert [each.get("tool_call_id") for each in said] == [None, None, "call_1", "call_0"]


def test_answers_without_names_are_in_the_order_of_the_calls(tmp_path: Path) -> None:
    trace = the_trace("openai", chat([call("f"), call("g")], {"content": "1"}, {"content": "2"}), tmp_path)
    assert trace.meta["tool_responses"] == ["call_0", "call_1"]


def test_only_the_calls_of_the_last_action_are_answered_without_an_id(tmp_path: Path) -> None:
    record = chat([call("f")])
    record["messages"] += [{"role": "user", "content": "?"}, {"role": "assistant", "tool_calls": [call("f")]}]
    record["messages"] += [{"role": "tool", "content": "2"}]
    assert the_trace("openai", record, tmp_path).meta["tool_responses"] == ["call_1"]


@pytest.mark.parametrize(
    "record",
    [
        chat([call("f")], {"name": "g", "content": "1"}),
        chat([call("f")], {"content": "1"}, {"content": "2"}),
        chat([call("f")], {"tool_call_id": "c", "content": "1"}),
    ],
)
def test_an_answer_to_no_call_is_refused(record: Any, tmp_path: Path) -> None:
    assert the_refusal("openai", record, tmp_path) == "a tool answer without an open tool call"


@pytest.mark.parametrize(
    "calls",
    [
        [call("f", {"a": 1}, id="c")],
        [call("f", {"a": 1}, id="")],
        [{"name": "f", "arguments": {"a": 1}}],
        [json.dumps({"id": "c", "name": "f", "arguments": '{"a": 1}'})],
        json.dumps([call("f", {"a": 1})]),
    ],
)
def test_calls_have_one_text_however_they_are_written(calls: Any, tmp_path: Path) -> None:
    trace = the_trace("openai", chat(calls, {"content": None}), tmp_path)
    assert parts_of(trace)[1:] == [("action", None, call_text("f", '{"a": 1}')), *answered("")]


def test_messages_as_json_text_are_messages(tmp_path: Path) -> None:
    record = chat([call("f")], {"content": "1"})
    text = {"messages": json.dumps(record["messages"]), "tools": "lamp: a lamp"}
    trace = the_trace("openai", text, tmp_path)
    assert parts_of(trace) == parts_of(the_trace("openai", record, tmp_path))
    assert trace.meta["left_out"] == {"tools that are not a list of objects": {"parts": 1, "bytes": 12}}


def world(*, first: str = "user") -> dict[str, Any]:
    turns = [("assistant", "ls"), ("user", "Output: a\n[ok]"), ("assistant", "Done.")]
    return {"messages": [{"role": role, "content": text} for role, text in [(first, "List them."), *turns]]}


@pytest.mark.parametrize(
    ("told", "seen"),
    [
        (None, [("context", "user", "Output: a\n[ok]\n")]),
        ("user", [("env_output", "observation", "Output: a\n[ok]"), END]),
        ("^Output", [("env_output", "observation", "Output: a\n[ok]"), END]),
        (
            r"^Output: ((?s:.*))\[ok\]",
            [
                ("context", "wrapper", "Output: "),
                ("env_output", "observation", "a\n"),
                ("context", "wrapper", "[ok]"),
                END,
            ],
        ),
        (
            r"^(Out(p)ut: )(?=((a)\n))(a)(x)?",  # groups in groups, at the same start, in a lookahead, without a match
            [
                ("env_output", "observation", "Output: "),
                ("env_output", "observation", "a\n"),
                ("context", "wrapper", "[ok]"),
                END,
            ],
        ),
        ("nothing of this", [("context", "user", "Output: a\n[ok]\n")]),
    ],
)
def test_observations_of_the_user_are_named_by_an_option(told: str | None, seen: list[Any], tmp_path: Path) -> None:
    options = ImportOptions(observation=told)
    trace = the_trace("openai", world(), tmp_path, options)
    assert parts_of(trace) == [
        ("context", "user", "List them.\n"), ("action", None, "ls\n"), *seen, ("action", None, "Done.\n")
    ]  # fmt: skip
    assert [message.text for message in conversation_of(trace).messages][2] == "Output: a\n[ok]"


def test_an_option_names_a_role_of_its_own(tmp_path: Path) -> None:
    record = world(first="environment")
    trace = the_trace("openai", record, tmp_path, ImportOptions(observation="environment"))
    assert parts_of(trace)[0] == ("env_output", "observation", "List them.")
    assert parts_of(the_trace("openai", record, tmp_path))[0][0] == "warning"


def test_an_option_without_effect_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(world()))
    with pytest.raises(EchoError, match="--observation has no effect on anthropic") as found:
        import_traces("anthropic", [tmp_path / "a.json"], None, ImportOptions(observation="user"))
    assert found.value.tip == "only openai and sharegpt use it"
    with pytest.raises(EchoError, match="--observation: not a regular expression"):
        import_traces("openai", [tmp_path / "a.json"], None, ImportOptions(observation="("))


@settings(deadline=None, max_examples=40)
@given(
    st.lists(
        st.tuples(SPOKEN, st.lists(st.tuples(st.sampled_from("fg"), TEXTS, TEXTS), max_size=3), TEXTS),
        min_size=1,
        max_size=3,
    )
)
def test_every_byte_is_in_one_segment_or_left_out(tmp_path_factory: pytest.TempPathFactory, turns: list[Any]) -> None:
    messages: list[dict[str, Any]] = []
    expected: list[tuple[str, str | None, str]] = []
    thought = 0
    for words, exchanges, told in turns:
        calls = [call(name, {"x": text}) for name, text, _ in exchanges]
        messages += [{"role": "user", "content": told}]
        messages += [{"role": "assistant", "content": words, "thinking": told, "tool_calls": calls}]
        messages += [{"role": "tool", "name": name, "content": text} for name, _, text in exchanges]
        written = [call_text(name, json.dumps({"x": text}, ensure_ascii=False)) for name, text, _ in exchanges]
        expected += [("context", "user", f"{told}\n"), ("action", None, f"{words}\n{''.join(written)}")]
        expected += [part for _, _, text in exchanges for part in answered(text)]
        thought += len(told.encode())
    trace = the_trace("openai", {"messages": messages}, tmp_path_factory.mktemp("a"))
    assert parts_of(trace) == expected
    assert trace.meta["left_out"]["reasoning"] == {"parts": len(turns), "bytes": thought}


@pytest.mark.parametrize(
    "name", ["mini-swe-agent", "swe-agent", "verifiers", "nemo-gym", "sharegpt", "llama-factory", "openai"]
)
@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_a_file_that_is_cut_in_the_middle_is_not_imported(name: str, suffix: str, tmp_path: Path) -> None:
    whole = json.dumps(chat([call("f")], {"content": "1"}))
    path = tmp_path / f"a.{suffix}"
    path.write_text(whole[: len(whole) // 2])
    with pytest.raises(EchoError, match=f"a.{suffix}:1: not JSON"):
        import_traces(name, [path], tmp_path / "out.jsonl", ImportOptions())
    assert not (tmp_path / "out.jsonl").exists()
