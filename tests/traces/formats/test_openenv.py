"""Episode records of OpenEnv: messages and tool_trace must agree, and RFC 010's segments keep their roles."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from echo_cli.trace import Trace
from echo_cli.traces.builder import ImportOptions, Refusal
from echo_cli.traces.formats.harnesses.openenv import read
from echo_cli.trajectory import Role

PLAIN = ImportOptions(strict=True)


def call(call_id: str, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}


def result(data: Any, **more: Any) -> dict[str, Any]:
    return {"data": data, "done": False, "metadata": {}, "error": None, **more}


def entry(name: str, arguments: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    return {"tool_name": name, "arguments": arguments, "result": given}


EPISODE: dict[str, Any] = {
    "episode_id": "ep-000000",
    "messages": [
        {"role": "system", "content": "Use the shell."},
        {"role": "user", "content": "What is in a.txt?"},
        {"role": "assistant", "content": "I look.", "tool_calls": [call("c1", "bash", {"command": "cat a.txt"})]},
        {"role": "tool", "tool_call_id": "c1", "name": "bash", "content": '{"exit_code": 3, "stdout": "one\\n"}'},
        {"role": "assistant", "content": "", "tool_calls": [call("c2", "bash", {"command": "x"})]},
        {"role": "tool", "tool_call_id": "c2", "name": "bash", "content": ""},
        {"role": "assistant", "content": "It is one."},
    ],
    "reward": 1.0,
    "done": True,
    "tool_trace": [
        entry("bash", {"command": "cat a.txt"}, result({"stdout": "one\n", "exit_code": 3})),
        entry("bash", {"command": "x"}, result(None, error="no such tool")),
    ],
    "metrics": {"turns": 3},
    "verify_metrics": {},
    "artifacts": {"final_state": {"secret": 1}},
    "task": {"task_id": "read-a"},
    "extra": {},
}


def found(tmp_path: Path, *records: Any, options: ImportOptions = PLAIN) -> list[Trace | Refusal]:
    path = tmp_path / "results.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return list(read(path, options))


def only(tmp_path: Path, record: Any, options: ImportOptions = PLAIN) -> Trace:
    (trace,) = found(tmp_path, record, options=options)
    assert isinstance(trace, Trace), trace
    return trace


def refused(tmp_path: Path, record: Any) -> tuple[str, str]:
    (refusal,) = found(tmp_path, record)
    assert isinstance(refusal, Refusal), refusal
    return refusal.where.removeprefix(f"{tmp_path}/results.jsonl"), refusal.reason


def changed(*path: Any, value: Any) -> dict[str, Any]:
    record = copy.deepcopy(EPISODE)
    place: Any = record
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return record


def test_a_record_becomes_a_trace_segment_by_segment(tmp_path: Path) -> None:
    trace = only(tmp_path, EPISODE)
    assert [(segment.role.name.lower(), segment.channel, segment.text) for segment in trace.segments] == [
        ("context", "system", "Use the shell.\n"),
        ("context", "user", "What is in a.txt?\n"),
        (
            "action",
            None,
            'I look.\n<tool_call>\n{"arguments": {"command": "cat a.txt"}, "name": "bash"}\n</tool_call>\n',
        ),
        ("context", "wrapper", "<tool_response>\n"),
        ("env_output", "tool_result", '{"exit_code": 3, "stdout": "one\\n"}'),
        ("context", "wrapper", "\n</tool_response>\n"),
        ("action", None, '<tool_call>\n{"arguments": {"command": "x"}, "name": "bash"}\n</tool_call>\n'),
        ("context", "wrapper", "<tool_response>\n"),
        ("context", "wrapper", "\n</tool_response>\n"),
        ("action", None, "It is one.\n"),
    ]
    assert (trace.task_id, trace.reward, trace.turns[0].exit_code, trace.turns[1].exit_code) == ("read-a", 1.0, 3, None)
    assert trace.meta["tool_calls"] == trace.meta["tool_responses"] == ["c1", "c2"]
    assert "artifacts" not in trace.meta


def test_an_error_that_the_agent_read_is_what_the_tool_said(tmp_path: Path) -> None:
    trace = only(tmp_path, changed("messages", 5, "content", value="no such tool"))
    assert ("tool_error", "no such tool") in [(segment.channel, segment.text) for segment in trace.segments]


def test_what_warning_matches_in_an_answer_is_warning(tmp_path: Path) -> None:
    record = changed("messages", 3, "content", value="one\n[cut]\n")
    record["tool_trace"][0]["result"]["data"] = "one\n[cut]\n"
    trace = only(tmp_path, record, ImportOptions(warning=r"\[cut\]\n"))
    assert [s.text for s in trace.segments if s.role is Role.WARNING] == ["[cut]\n"]
    assert trace.turns[0].output == "one\n"


@pytest.mark.parametrize(
    ("record", "where", "reason"),
    [
        (changed("tool_trace", value=None), ":1", "no tool_trace"),
        (changed("messages", value=[]), ":1", "neither messages nor segments"),
        (
            changed("messages", 3, "content", value='{"exit_code": 3, "stdout": "two"}'),
            ":1: messages[3]",
            "a different result",
        ),
        (changed("messages", 3, "content", value="{"), ":1: messages[3]", "a different result"),
        (changed("tool_trace", 0, "result", "data", "exit_code", value=True), ":1: messages[3]", "a different result"),
        (changed("tool_trace", 0, "tool_name", value="python"), ":1: messages[3]", "a different tool"),
        (changed("tool_trace", 0, "arguments", value={}), ":1: messages[3]", "different arguments"),
        (changed("tool_trace", 0, value={}), ":1: messages[3]", "tool_trace[0] has no result"),
        (changed("tool_trace", value=EPISODE["tool_trace"][:1]), ":1: messages[5]", "the tool_trace lacks"),
        (changed("tool_trace", value=EPISODE["tool_trace"] * 2), ":1: tool_trace[2]", "no message shows"),
        (changed("messages", 3, "tool_call_id", value="c9"), ":1: messages[3]", "without an open tool call"),
        (changed("messages", 1, "role", value="judge"), ":1: messages[1]", "unknown role: 'judge'"),
        (changed("messages", 1, "content", value=[{"type": "image"}]), ":1: messages[1]", "a part that is not text"),
        (changed("messages", 2, "tool_calls", 0, "function", "arguments", value="{"), ":1: messages[2]", "not JSON"),
        (changed("messages", 2, "tool_calls", 0, "id", value=None), ":1: messages[2]", "without an id"),
        (changed("reward", value="high"), ":1: reward", "not a number"),
        (
            {"segments": [{"role": "pad", "text": "x"}]},
            ":1: segments[0]",
            "a segment of unknown role: 'pad'",
        ),
        ({"segments": [{"role": "action"}]}, ":1: segments[0]", "without its text"),
        ({"segments": [{"role": "context", "text": "x"}]}, ":1", "neither an action nor an observation"),
        ("episode", ":1", "not an episode record"),
    ],
)
def test_what_has_no_place_is_refused_where_it_is(tmp_path: Path, record: Any, where: str, reason: str) -> None:
    place, said = refused(tmp_path, record)
    assert place == where
    assert reason in said


def test_parts_that_do_not_decide_a_role_are_left_out(tmp_path: Path) -> None:
    record = copy.deepcopy(EPISODE)
    record["messages"].insert(2, {"role": "judge", "content": "fine \u00e9"})
    record["messages"][1]["content"] = [{"type": "text", "text": "What is in a.txt?"}, {"type": "image"}]
    record["messages"][5]["tool_calls"][0]["function"]["arguments"] = ""
    record["tool_trace"][1]["arguments"] = None
    trace = only(tmp_path, record, ImportOptions())
    whole = only(tmp_path, EPISODE)
    assert [turn.output for turn in trace.turns] == [turn.output for turn in whole.turns]
    assert {what: of["bytes"] for what, of in trace.meta["left_out"].items()} == {
        "a message of unknown role: 'judge'": len("fine \u00e9".encode()),
        "a part that is not text: 'image'": 0,
        "empty arguments of a tool call, read as {}": 0,
    }


def test_a_segment_of_an_unknown_role_is_left_out(tmp_path: Path) -> None:
    tagged = [{"role": "action", "text": "ls\n"}, {"role": "pad", "text": "xx"}, {"role": "env_output", "text": "a\n"}]
    trace = only(tmp_path, {"segments": tagged}, ImportOptions())
    assert [s.role for s in trace.segments] == [Role.ACTION, Role.WARNING, Role.ENV_OUTPUT]
    assert trace.meta["left_out"] == {"a segment of unknown role: 'pad'": {"parts": 1, "bytes": 2}}


def test_a_bad_record_stops_none_of_the_others(tmp_path: Path) -> None:
    kinds = [type(entry) for entry in found(tmp_path, EPISODE, {}, EPISODE)]
    assert kinds == [Trace, Refusal, Trace]


def test_an_array_is_its_records(tmp_path: Path) -> None:
    path = tmp_path / "episodes.json"
    path.write_text(json.dumps([EPISODE, {}], indent=1), encoding="utf-8")
    trace, refusal = read(path, PLAIN)
    assert isinstance(trace, Trace)
    assert isinstance(refusal, Refusal)
    assert refusal.where == f"{path}[1]"


def test_tagged_segments_keep_their_roles(tmp_path: Path) -> None:
    tagged = [("context", "$ "), ("action", "ls\n"), ("warning", "[stdout]\n"), ("env_output", "a.txt\n")]
    record = {"task_prompt": "list", "reward": 0.5, "segments": [{"role": role, "text": text} for role, text in tagged]}
    trace = only(tmp_path, record)
    assert [(segment.role.name.lower(), segment.text) for segment in trace.segments] == tagged
    assert (trace.turns[0].command, trace.turns[0].output, trace.reward) == ("ls", "a.txt\n", 0.5)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.lists(JSON, min_size=1, max_size=4), says=st.text())
def test_what_tools_gave_is_kept_byte_for_byte(tmp_path: Path, data: list[Any], says: str) -> None:
    messages: list[dict[str, Any]] = [{"role": "user", "content": says}]
    shown = []
    for number, value in enumerate(data):
        # The text in which OpenEnv's harness shows a result to its model.
        text = "" if value is None else value if isinstance(value, str) else json.dumps(value, sort_keys=True)
        shown.append(text)
        messages.append({"role": "assistant", "content": says, "tool_calls": [call(f"c{number}", "t", {})]})
        messages.append({"role": "tool", "tool_call_id": f"c{number}", "content": text})
    trace = only(tmp_path, {"messages": messages, "tool_trace": [entry("t", {}, result(value)) for value in data]})
    assert [turn.output for turn in trace.turns] == shown
    assert "".join(s.text for s in trace.segments if s.role is Role.ENV_OUTPUT) == "".join(shown)
