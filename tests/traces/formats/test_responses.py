"""Items of OpenAI's Responses API."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from session_logs import CONVERSATIONS, Reply, by_role, expected, imported, left_out, roles, traces_of, write_lines

from echo_cli.errors import EchoError
from echo_cli.trace import Trace
from echo_cli.traces.builder import ImportOptions, Refusal
from echo_cli.traces.conversation import openai_record
from echo_cli.traces.importing import import_traces


def call(call_id: str, name: str, arguments: str) -> dict[str, Any]:
    return {"type": "function_call", "id": f"fc_{call_id}", "call_id": call_id, "name": name, "arguments": arguments}


def output(call_id: str, text: Any, kind: str = "function_call") -> dict[str, Any]:
    return {"type": f"{kind}_output", "call_id": call_id, "output": text}


def message(role: str, text: str, kind: str = "output_text") -> dict[str, Any]:
    return {"type": "message", "role": role, "content": [{"type": kind, "text": text}]}


def one(tmp_path: Path, record: Any, options: ImportOptions | None = None) -> Trace:
    (trace,) = traces_of("responses", write_lines(tmp_path / "r.jsonl", [record]), options)
    return trace


ITEMS = [
    {"role": "user", "content": "go"},
    {"type": "reasoning", "id": "rs", "summary": [{"type": "summary_text", "text": "Hmm"}], "encrypted_content": "x"},
    message("assistant", "Look."),
    call("c1", "shell", '{"command":  "ls"}'),
    call("c2", "shell", "{}"),
    output("c1", "a\n"),
    output("c2", [{"type": "input_text", "text": "b"}, {"type": "input_image", "image_url": "data:"}]),
    message("assistant", "Done."),
]


@pytest.mark.parametrize("first", [0, 1])
def test_items_have_their_roles_in_each_kind_of_record(first: int, tmp_path: Path) -> None:
    bare = one(tmp_path, ITEMS[first:])
    assert roles(bare)[1 - first :] == [
        (
            "action",
            None,
            'Look.\n<tool_call>\n{"arguments": {"command":  "ls"}, "name": "shell"}\n</tool_call>\n'
            '<tool_call>\n{"arguments": {}, "name": "shell"}\n</tool_call>\n',
        ),
        ("env_output", "tool_result", "a\n"),
        ("env_output", "tool_result", "b"),
        ("warning", "left_out", "[left out: a part that is not text: 'input_image']\n"),
        ("action", None, "Done.\n"),
    ]
    assert left_out(bare)["reasoning"] == (1, 3)
    record = {"id": "resp_1", "input": ITEMS[:2], "output": ITEMS[2:], "instructions": "Be brief.", "reward": True}
    trace = one(tmp_path, {**record, "tools": [{"type": "function", "name": "shell"}]})
    assert (trace.task_id, trace.reward) == ("resp_1", 1.0)
    assert roles(trace)[:2] == [
        ("context", "system", "Be brief.\n"),
        ("context", "tools", '<tools>\n{"type": "function", "name": "shell"}\n</tools>\n'),
    ]
    assert by_role(trace)["env_output"] == "a\nb"
    assert roles(one(tmp_path, {"input": "go", "output": ITEMS[2:]}))[0] == ("context", "user", "go\n")
    assert openai_record(bare)["messages"][-2]["tool_call_id"] == "c2"


def test_a_file_is_one_conversation_or_many(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(ITEMS, indent=1))
    assert len(traces_of("responses", tmp_path / "a.json")) == 1
    (tmp_path / "a.json").write_text(json.dumps([ITEMS, {"items": ITEMS}], indent=1))
    assert len(traces_of("responses", tmp_path / "a.json")) == 2


def test_calls_that_are_not_functions(tmp_path: Path) -> None:
    items = [
        {"type": "custom_tool_call", "call_id": "c1", "name": "apply_patch", "input": '*** "a"'},
        output("c1", "Done!", "custom_tool_call"),
        {"type": "local_shell_call", "id": "c2", "action": {"type": "exec", "command": ["ls"]}},
        {"type": "local_shell_call_output", "id": "c2", "output": "a\n"},
        {"type": "shell_call", "call_id": "c3", "action": {"commands": ["ls"]}},
        output("c3", [{"stdout": "a", "stderr": "b", "outcome": {"type": "exit", "exit_code": 2}}], "shell_call"),
    ]
    trace = one(tmp_path, items)
    assert [text for role, _, text in roles(trace) if role == "action"] == [
        '<tool_call>\n{"arguments": {"input": "*** \\"a\\""}, "name": "apply_patch"}\n</tool_call>\n',
        '<tool_call>\n{"arguments": {"type": "exec", "command": ["ls"]}, "name": "local_shell"}\n</tool_call>\n',
        '<tool_call>\n{"arguments": {"commands": ["ls"]}, "name": "shell"}\n</tool_call>\n',
    ]
    observed = [(channel, text) for role, channel, text in roles(trace) if role == "env_output"]
    assert observed == [("tool_result", "Done!"), ("tool_result", "a\n"), ("stdout", "a"), ("stderr", "b")]
    assert [turn.exit_code for turn in trace.turns] == [None, None, 2]


def test_parts_that_cannot_be_placed_are_left_out(tmp_path: Path) -> None:
    items = [*ITEMS, {"type": "web_search_call", "status": "completed"}, output("c9", "lost"), {"role": "odd"}]
    found = left_out(one(tmp_path, items))
    assert found["an item of another type: 'web_search_call'"] == (1, 0)
    assert found["an output whose call is not in the record"] == (1, 4)
    assert found["a message of unknown role: 'odd'"] == (1, 0)
    (refused,) = imported("responses", tmp_path / "r.jsonl", ImportOptions(strict=True))
    assert isinstance(refused, Refusal) and refused.where == f"{tmp_path}/r.jsonl:1: items[6]"


def test_a_call_without_a_name_and_a_record_without_items_are_refused(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "r.jsonl", [[*ITEMS[:3], {"type": "function_call", "call_id": "c"}], {"input": []}])
    nameless, empty = imported("responses", path)
    assert nameless == Refusal(f"{path}:1: items[3]", "a function_call without a name or an id")
    assert empty == Refusal(f"{path}:2", "no items")


def test_a_file_cut_in_the_middle_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text(json.dumps(ITEMS, indent=1)[:-40])
    with pytest.raises(EchoError, match=r"r\.json:\d+: not JSON"):
        import_traces("responses", [path], tmp_path / "out.jsonl", ImportOptions())


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(CONVERSATIONS)
def test_every_byte_of_the_items_is_placed_or_counted(tmp_path: Path, conversation: list[Reply]) -> None:
    items = list[dict[str, Any]]()
    for number, reply in enumerate(conversation):
        reasoning = {"type": "reasoning", "content": [{"type": "reasoning_text", "text": reply.reasoning}]}
        items += [message("user", reply.prompt, "input_text"), reasoning, message("assistant", reply.words)]
        ids = [f"c{number}-{place}" for place in range(len(reply.calls))]
        for call_id, made in zip(ids, reply.calls, strict=True):
            items.append(call(call_id, made.name, json.dumps(made.arguments, ensure_ascii=False)))
        items += [output(call_id, made.output) for call_id, made in zip(ids, reply.calls, strict=True)]
    trace = one(tmp_path, items)
    assert by_role(trace) == expected(conversation)
    assert left_out(trace) == {"reasoning": (len(conversation), sum(len(r.reasoning.encode()) for r in conversation))}
