"""Importers of conversations and of Agent World Model: roles and text, byte for byte, or a refusal with its place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echo_cli.errors import EchoError
from echo_cli.trace import Trace, trace_line
from echo_cli.traces.builder import ImportOptions, Refusal
from echo_cli.traces.recognition import format_named
from echo_cli.trajectory import Role

AWM_EPISODE = Path(__file__).resolve().parents[4] / "shared" / "data" / "awm_ecommerce_episode.json"

# Text that breaks parsers: line ends, NUL, characters outside the BMP, and the wrappers' own tags.
HOSTILE = st.lists(
    st.sampled_from(["\r", "\n", "\r\n", "\0", "\u2028", "\x1b[31m", "🦊", "é", "\ufeff", " ", "a"])
    | st.sampled_from(["<tool_response>\n", "\n</tool_response>\n", "<tool_call>\n{}\n</tool_call>\n"])
    | st.text(),
    max_size=6,
).map("".join)
ARGUMENTS = st.dictionaries(st.text(), st.text() | st.integers() | st.none() | st.lists(st.booleans()), max_size=3)


def imported(name: str, path: Path, options: ImportOptions | None = None) -> list[Trace | Refusal]:
    return list(format_named(name).read(path, options or ImportOptions()))


def only(name: str, record: Any, tmp_path: Path, options: ImportOptions | None = None) -> Trace:
    (tmp_path / "a.json").write_text(json.dumps(record), encoding="utf-8")
    (found,) = imported(name, tmp_path / "a.json", options)
    assert isinstance(found, Trace), found
    return found


def refusal(name: str, record: Any, tmp_path: Path) -> tuple[str, str]:
    (tmp_path / "a.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
    (found,) = imported(name, tmp_path / "a.json", ImportOptions(strict=True))
    assert isinstance(found, Refusal), found
    return found.where.removeprefix(str(tmp_path)), found.reason


def roles(trace: Trace) -> list[tuple[str, str | None, str]]:
    return [(segment.role.name.lower(), segment.channel, segment.text) for segment in trace.segments]


def text_of(trace: Trace, role: Role) -> str:
    return "".join(segment.text for segment in trace.segments if segment.role is role)


def openai_call(call_id: str, arguments: Any, name: str = "bash") -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def openai_chat(call: dict[str, Any], answer: Any = "ok") -> list[dict[str, Any]]:
    return [
        {"role": "user", "content": "go"},
        {"role": "assistant", "content": "Now.", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": answer},
    ]


def awm_episode(*observations: Any) -> dict[str, Any]:
    steps = [{"action": {"tool_name": "look", "arguments": {"b": 1, "a": "é"}}, "observation": o} for o in observations]
    return {"scenario": "shop", "task": "Buy it.", "task_idx": 4, "tools": ["look"], "steps": steps, "reward": 0.5}


def test_openai_messages_have_their_roles(tmp_path: Path) -> None:
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "developer", "content": [{"type": "text", "text": "No "}, {"type": "text", "text": "jokes."}]},
        *openai_chat(openai_call("c1", '{"b":  1, "a": 2}'), "out\r\n"),
        {"role": "assistant", "content": "Wait."},
        {"role": "assistant", "content": "Done."},
    ]
    trace = only("openai", {"id": 7, "tools": [{"z": 1, "a": "é"}], "messages": chat, "score": 1}, tmp_path)
    call = '<tool_call>\n{"arguments": {"b":  1, "a": 2}, "name": "bash"}\n</tool_call>\n'
    assert roles(trace) == [
        ("context", "system", "Be brief.\n"),
        ("context", "developer", "No jokes.\n"),
        ("context", "tools", '<tools>\n{"z": 1, "a": "é"}\n</tools>\n'),
        ("context", "user", "go\n"),
        ("action", None, f"Now.\n{call}"),
        ("context", "wrapper", "<tool_response>\n"),
        ("env_output", "tool_result", "out\r\n"),
        ("context", "wrapper", "\n</tool_response>\n"),
        ("action", None, "Wait.\nDone.\n"),
    ]
    assert (trace.task_id, trace.reward, trace.source, trace.world_model_only) == ("7", 1.0, "trace", True)
    assert [(turn.command, turn.output, turn.exit_code) for turn in trace.turns] == [
        (f"Now.\n{call}".removesuffix("\n"), "out\r\n", None),
        ("Wait.\nDone.", "", None),
    ]


def test_openai_calls_of_the_legacy_form(tmp_path: Path) -> None:
    chat = [
        {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
        {"role": "function", "name": "f", "content": "3"},
    ]
    assert text_of(only("openai", chat, tmp_path), Role.ENV_OUTPUT) == "3"
    why = refusal("openai", [chat[0], {**chat[1], "name": "g"}], tmp_path)[1]
    assert why == "a tool answer without an open tool call"


def test_openai_arguments_as_an_object_are_those_as_text(tmp_path: Path) -> None:
    as_text = only("openai", openai_chat(openai_call("c1", '{"a": [1.5, null]}')), tmp_path)
    assert as_text == only("openai", openai_chat(openai_call("c1", {"a": [1.5, None]})), tmp_path)


@pytest.mark.parametrize(
    ("chat", "place", "reason"),
    [
        ([], "", "no messages"),
        ({"messages": "hello"}, "", "no messages"),
        ([{"role": "user", "content": "hi"}], "", "neither an action nor an observation"),
        ([{"role": "narrator", "content": "hi"}], "messages[0]", "a message of unknown role: 'narrator'"),
        ([{"role": "user"}], "messages[0]", "a message without text"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "messages[0]", "a part that is not text: 'image_url'"),
        ([{"role": "assistant", "audio": {"id": "x"}}], "messages[0]", "audio"),
        (openai_chat(openai_call("c1", "{a}")), "messages[1]", "the arguments of a tool call are not JSON"),
        (openai_chat(openai_call("c1", '{"a": NaN}')), "messages[1]", "NaN is not a JSON number"),
        (openai_chat(openai_call("c1", '{"a": 1e999}')), "messages[1]", "a number is too large"),
        (openai_chat(openai_call("c1", "[" * 100_000)), "messages[1]", "nested too deeply"),
        (openai_chat(openai_call("c2", "{}")), "messages[2]", "a tool answer without an open tool call"),
        (openai_chat({"id": "c1", "type": "custom"}), "messages[1]", "a tool call that is not a function call"),
        ({"messages": openai_chat(openai_call("c1", "{}")), "reward": "1"}, "reward", "reward is not a number"),
        ({"messages": openai_chat(openai_call("c1", "{}")), "reward": 10**400}, "reward", "reward is too large"),
        (openai_chat(openai_call("c1", "{}"), "\ud83d"), "", "segments[3].text is not Unicode"),
    ],
)
def test_what_openai_messages_cannot_say_is_refused(chat: Any, place: str, reason: str, tmp_path: Path) -> None:
    where, why = refusal("openai", chat, tmp_path)
    expected = "/a.json:1" if chat == [] else "/a.json"  # a file of one line is JSONL
    assert where == (f"{expected}: {place}" if place else expected)
    assert reason in why


def test_openai_files_are_one_conversation_an_array_or_lines(tmp_path: Path) -> None:
    chat = openai_chat(openai_call("c1", "{}"))
    bare, named = chat, {"task_id": "t", "messages": chat}
    (tmp_path / "array.json").write_text(json.dumps([named, bare, 3], indent=2))
    (tmp_path / "lines.jsonl").write_text(f"\ufeff{json.dumps(bare)}\r\n\n{{\n{json.dumps(named)}\n".encode().decode())
    first, second, third = imported("openai", tmp_path / "array.json")
    assert isinstance(first, Trace) and isinstance(second, Trace)
    assert (first.task_id, second.task_id) == ("t", "array.json[1]")
    assert third == Refusal(f"{tmp_path}/array.json[2]", "no messages")
    one, bad, two = imported("openai", tmp_path / "lines.jsonl")
    assert isinstance(one, Trace) and isinstance(two, Trace) and isinstance(bad, Refusal)
    assert (one.task_id, two.task_id) == ("lines.jsonl:1", "t")
    assert bad.where == f"{tmp_path}/lines.jsonl:3" and bad.reason.startswith("not JSON: ")


def test_a_broken_document_is_refused_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('\n[\n{"messages": oops}\n]')
    (tmp_path / "b.jsonl").write_bytes(b"\xff\n")
    (broken,), (binary,) = imported("openai", tmp_path / "a.json"), imported("openai", tmp_path / "b.jsonl")
    assert isinstance(broken, Refusal) and broken.where == f"{tmp_path}/a.json:3"
    assert binary == Refusal(f"{tmp_path}/b.jsonl:1", "not UTF-8")


def test_anthropic_blocks_have_their_roles(tmp_path: Path) -> None:
    def used(call_id: str, of: dict[str, Any]) -> dict[str, Any]:
        return {"type": "tool_use", "id": call_id, "name": "bash", "input": of}

    result = {
        "type": "tool_result",
        "tool_use_id": "t1",
        "content": [{"type": "text", "text": t} for t in ("a", "\nb")],
    }
    failed = {"type": "tool_result", "tool_use_id": "t2", "content": "no\n", "is_error": True}
    chat = [
        {"role": "user", "content": "go"},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "Hm."},
                {"type": "text", "text": "I "},
                {"type": "text", "text": "look."},
                used("t1", {"b": 1, "a": 2}),
                used("t2", {}),
            ],
        },
        {"role": "user", "content": [result, failed, {"type": "text", "text": "And?"}]},
        {"role": "assistant", "content": "Nothing."},
    ]
    system = [{"type": "text", "text": "Be brief."}]
    trace = only("anthropic", {"system": system, "tools": [{"name": "bash"}], "messages": chat}, tmp_path)
    calls = [f'<tool_call>\n{{"arguments": {of}, "name": "bash"}}\n</tool_call>\n' for of in ('{"b": 1, "a": 2}', "{}")]
    before, after = ("context", "wrapper", "<tool_response>\n"), ("context", "wrapper", "\n</tool_response>\n")
    assert roles(trace) == [
        ("context", "system", "Be brief.\n"),
        ("context", "tools", '<tools>\n{"name": "bash"}\n</tools>\n'),
        ("context", "user", "go\n"),
        ("action", None, f"I look.\n{calls[0]}{calls[1]}"),
        before,
        ("env_output", "tool_result", "a\nb"),
        *(after, before),
        ("env_output", "tool_error", "no\n"),
        after,
        ("context", "user", "And?\n"),
        ("action", None, "Nothing.\n"),
    ]
    assert trace.turns[0].output == "a\nbno\n"


@pytest.mark.parametrize(
    ("role", "block", "reason"),
    [
        ("user", {"type": "image", "source": {}}, "a block that is neither text nor a tool_result: 'image'"),
        ("user", {"type": "tool_result", "tool_use_id": "t9"}, "a tool answer without an open tool call"),
        ("user", {"type": "text"}, "a part that is not text"),
        ("user", "text", "content that is neither text nor blocks"),
        ("assistant", {"type": "server_tool_use"}, "neither text nor a tool_use: 'server_tool_use'"),
        ("assistant", {"type": "tool_use", "id": "t"}, "a tool_use without a name or an id"),
        ("assistant", {"type": "tool_use", "id": "t", "name": "f", "input": "x"}, "kept as text"),
        ("tool", {"type": "text", "text": "x"}, "a message of unknown role: 'tool'"),
    ],
)
def test_what_anthropic_blocks_cannot_say_is_refused(role: str, block: Any, reason: str, tmp_path: Path) -> None:
    chat = {"messages": [{"role": "assistant", "content": "Hi."}, {"role": role, "content": [block]}]}
    where, why = refusal("anthropic", chat, tmp_path)
    assert where == "/a.json: messages[1]" and reason in why


def test_an_episode_of_agent_world_model_has_its_roles(tmp_path: Path) -> None:
    call = '<tool_call>\n{"arguments": {"b": 1, "a": "é"}, "name": "look"}\n</tool_call>\n'
    seen = [
        {"tool_result": '{\n  "é": 1}'},
        {"tool_result": None, "error": "no such tool", "warning": "2 steps left"},
        {"reward_type": "complete", "verify_result": {"z": 1, "a": 2}, "error": None},
    ]
    trace = only("awm", awm_episode(*seen), tmp_path)
    before, after = ("context", "wrapper", "<tool_response>\n"), ("context", "wrapper", "\n</tool_response>\n")
    assert roles(trace) == [
        ("context", "system", "You carry out a task in shop by calling tools.\n"),
        ("context", "user", "Buy it.\n"),
        ("context", "tools", "<tools>\nlook\n</tools>\n"),
        *(("action", None, call), before, ("env_output", "tool_result", '{\n  "é": 1}'), after),
        *(("action", None, call), before, ("env_output", "tool_result", '{"error": "no such tool"}')),
        *(("context", "wrapper", "\n"), ("warning", "warning", "2 steps left"), after),
        *(("action", None, call), before),
        ("env_output", "tool_result", '{"reward_type": "complete", "verify_result": {"a": 2, "z": 1}}'),
        after,
    ]
    assert (trace.task_id, trace.reward) == ("shop:4", 0.5)


def test_the_last_action_may_be_without_its_observation(tmp_path: Path) -> None:
    last = only("awm", awm_episode({"tool_result": "x"}, None), tmp_path)
    assert [turn.output for turn in last.turns] == ["x", ""]
    where, reason = refusal("awm", awm_episode(None, {"tool_result": "x"}), tmp_path)
    assert where == "/a.json: steps[0]" and reason == "a step without an observation"
    assert refusal("awm", awm_episode({"done": True}), tmp_path)[1].startswith("an observation with neither")
    assert refusal("awm", {"task": "x"}, tmp_path)[1] == "not an episode: it has no steps"


def test_parts_of_agent_world_model_that_cannot_be_placed_are_left_out(tmp_path: Path) -> None:
    episode = awm_episode(None, {"done": True}, "text", {"tool_result": "x", "warning": 3})
    episode["tools"] = {"look": 1}
    episode["steps"][0]["action"]["arguments"] = None
    trace = only("awm", episode, tmp_path)
    assert [turn.output for turn in trace.turns] == ["", "", "", "x"]
    assert trace.turns[0].command == '<tool_call>\n{"arguments": {}, "name": "look"}\n</tool_call>'
    assert {what: of["bytes"] for what, of in trace.meta["left_out"].items()} == {
        "tools that are not a list": len('{"look": 1}'),
        "empty arguments of a tool call, read as {}": 0,
        "a step without an observation": 0,
        "an observation with neither tool_result, verify_result nor error": len('{"done": true}'),
        "an observation that is not a JSON object": len('"text"'),
        "a warning that is not text": 1,
    }


@pytest.mark.skipif(not AWM_EPISODE.is_file(), reason="the recorded episode is not part of this repository")
def test_the_recorded_episode_of_agent_world_model_has_the_sizes_of_its_source() -> None:
    (trace,) = imported("awm", AWM_EPISODE)
    assert isinstance(trace, Trace)
    assert (len(text_of(trace, Role.ACTION)), len(text_of(trace, Role.ENV_OUTPUT))) == (588, 4455)
    wrapped = sum(len(segment.text) for segment in trace.segments if segment.channel in ("wrapper", "tool_result"))
    assert wrapped == 4659  # the source counts the wrappers as observation
    assert len(trace.turns) == 6 and trace.reward == 0.0


@settings(deadline=None)
@given(st.lists(st.tuples(HOSTILE, HOSTILE, ARGUMENTS), min_size=1, max_size=3))
def test_observations_are_byte_for_byte_those_of_the_source(
    tmp_path_factory: pytest.TempPathFactory, turns: list[tuple[str, str, dict[str, Any]]]
) -> None:
    folder = tmp_path_factory.mktemp("a")
    chat: list[dict[str, Any]] = []
    blocks: list[dict[str, Any]] = []
    steps = []
    for said, seen, arguments in turns:
        chat += [
            {"role": "user", "content": said},
            {"role": "assistant", "content": said, "tool_calls": [openai_call("c", json.dumps(arguments))]},
            {"role": "tool", "tool_call_id": "c", "content": seen},
        ]
        used = {"type": "tool_use", "id": "c", "name": "bash", "input": arguments}
        result = {"type": "tool_result", "tool_use_id": "c", "content": seen}
        blocks += [{"role": "assistant", "content": [{"type": "text", "text": said}, used]}]
        blocks += [{"role": "user", "content": [result, {"type": "text", "text": said}]}]
        steps += [{"action": {"tool_name": "bash", "arguments": arguments}, "observation": {"tool_result": seen}}]
    whole = "".join(seen for _, seen, _ in turns)
    for name, record in (("openai", chat), ("anthropic", blocks), ("awm", {"task": "t", "steps": steps})):
        trace = only(name, record, folder)
        assert text_of(trace, Role.ENV_OUTPUT) == whole
        assert [turn.output for turn in trace.turns] == [seen for _, seen, _ in turns]
        (folder / "a.jsonl").write_bytes(trace_line(trace))
        assert imported("echo", folder / "a.jsonl") == [trace]
    assert text_of(only("openai", chat, folder), Role.CONTEXT).count("<tool_response>\n") >= len(turns)


@settings(deadline=None)
@given(HOSTILE)
def test_a_warning_is_cut_out_of_an_observation_and_nothing_is_lost(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    folder = tmp_path_factory.mktemp("a")
    record = openai_chat(openai_call("c1", "{}"), f"[cut]{text}[cut]")
    trace = only("openai", record, folder, ImportOptions(warning=r"\[cut\]|x*"))
    observed = [s for s in trace.segments if s.role in (Role.ENV_OUTPUT, Role.WARNING)]
    assert "".join(segment.text for segment in observed) == f"[cut]{text}[cut]"
    assert {s.text for s in (observed[0], observed[-1])} == {"[cut]"}
    assert observed[0].role is observed[-1].role is Role.WARNING


def test_lines_of_echo_are_validated_one_by_one(tmp_path: Path) -> None:
    good = only("openai", openai_chat(openai_call("c1", "{}")), tmp_path)
    (tmp_path / "a.jsonl").write_bytes(trace_line(good) + b"{}\n" + trace_line(good))
    first, bad, last = imported("echo", tmp_path / "a.jsonl")
    assert first == last == good
    assert bad == Refusal(f"{tmp_path}/a.jsonl:2", "not a trace: task_id: Field required")
    with pytest.raises(EchoError, match="--warning has no effect on echo"):
        imported("echo", tmp_path / "a.jsonl", ImportOptions(warning="x"))
