"""ATIF trajectories: steps in order, and terminal text separated from the agent program's notices."""

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
from echo_cli.traces.conversation import openai_record
from echo_cli.traces.formats.harnesses.atif import read
from echo_cli.traces.formats.harnesses.terminus import terminal_text
from echo_cli.trajectory import Role

PLAIN = ImportOptions(strict=True)

DOCUMENT: dict[str, Any] = {
    "schema_version": "ATIF-v1.6",
    "session_id": "run-1",
    "agent": {
        "name": "harbor-agent",
        "version": "1.0.0",
        "model_name": "a-model",
        "tool_definitions": [{"type": "function", "function": {"name": "search"}}],
    },
    "continued_trajectory_ref": "trajectory.cont-1.json",
    "steps": [
        {"step_id": 1, "source": "system", "message": "Be brief."},
        {"step_id": 2, "source": "user", "message": [{"type": "text", "text": "The price?"}]},
        {
            "step_id": 3,
            "source": "agent",
            "message": "I search.",
            "reasoning_content": "secret thoughts",
            "tool_calls": [
                {"tool_call_id": "c1", "function_name": "search", "arguments": {"ticker": "GOOGL", "metric": "price"}},
                {"tool_call_id": "c2", "function_name": "search", "arguments": {}},
            ],
            "observation": {
                "results": [
                    {"source_call_id": "c1", "content": "$185.35"},
                    {
                        "source_call_id": "c2",
                        "content": [{"type": "text", "text": "1.5"}, {"type": "text", "text": "M"}],
                    },
                ]
            },
            "metrics": {"completion_token_ids": [5, 6, 7], "logprobs": [-0.1, -0.2, -0.3]},
        },
        {"step_id": 4, "source": "agent", "message": "It is $185.35."},
    ],
    "final_metrics": {"total_steps": 4},
    "extra": {"task_id": "price", "reward": 0.5},
}


def found(tmp_path: Path, *documents: Any, options: ImportOptions = PLAIN) -> list[Trace | Refusal]:
    path = tmp_path / "trajectory.json"
    path.write_text(json.dumps(documents[0] if len(documents) == 1 else list(documents), indent=1), encoding="utf-8")
    return list(read(path, options))


def only(tmp_path: Path, document: Any, options: ImportOptions = PLAIN) -> Trace:
    (trace,) = found(tmp_path, document, options=options)
    assert isinstance(trace, Trace), trace
    return trace


def changed(*path: Any, value: Any) -> dict[str, Any]:
    document = copy.deepcopy(DOCUMENT)
    place: Any = document
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return document


def document(*steps: dict[str, Any], agent: str = "harbor-agent", **more: Any) -> dict[str, Any]:
    numbered = [{"step_id": number, **step} for number, step in enumerate(steps, start=1)]
    return {"schema_version": "ATIF-v1.7", "agent": {"name": agent, "version": "1"}, "steps": numbered, **more}


def agent_step(message: str, *results: dict[str, Any], **more: Any) -> dict[str, Any]:
    observation = {"observation": {"results": list(results)}} if results else {}
    return {"source": "agent", "message": message, **observation, **more}


def roles(trace: Trace) -> list[tuple[str, str | None, str]]:
    return [(segment.role.name.lower(), segment.channel, segment.text) for segment in trace.segments]


def test_a_document_becomes_a_trace_step_by_step(tmp_path: Path) -> None:
    trace = only(tmp_path, DOCUMENT)
    assert roles(trace) == [
        ("context", "system", "Be brief.\n"),
        ("context", "tools", '<tools>\n{"type": "function", "function": {"name": "search"}}\n</tools>\n'),
        ("context", "user", "The price?\n"),
        (
            "action",
            None,
            'I search.\n<tool_call>\n{"arguments": {"ticker": "GOOGL", "metric": "price"}, "name": "search"}\n'
            '</tool_call>\n<tool_call>\n{"arguments": {}, "name": "search"}\n</tool_call>\n',
        ),
        ("context", "wrapper", "<tool_response>\n"),
        ("env_output", "tool_result", "$185.35"),
        ("context", "wrapper", "\n</tool_response>\n"),
        ("context", "wrapper", "<tool_response>\n"),
        ("env_output", "tool_result", "1.5M"),
        ("context", "wrapper", "\n</tool_response>\n"),
        ("action", None, "It is $185.35.\n"),
    ]
    assert (trace.task_id, trace.reward) == ("price", 0.5)
    assert trace.meta == {
        "schema_version": "ATIF-v1.6",
        "session_id": "run-1",
        "continued_trajectory_ref": "trajectory.cont-1.json",
        "agent": "harbor-agent",
        "model_name": "a-model",
        "tool_calls": ["c1", "c2"],
        "tool_responses": ["c1", "c2"],
        "token_ids_left_out": 1,
    }
    assert all(segment.token_ids is None and segment.logprobs is None for segment in trace.segments)


def test_calls_and_answers_go_out_again_as_messages(tmp_path: Path) -> None:
    record = openai_record(only(tmp_path, DOCUMENT))
    assert [message["role"] for message in record["messages"]] == [
        "system",
        "user",
        "assistant",
        "tool",
        "tool",
        "assistant",
    ]
    assert [message.get("tool_call_id") for message in record["messages"]][3:5] == ["c1", "c2"]


@pytest.mark.parametrize("version", [f"ATIF-v1.{minor}" for minor in range(9)])
def test_versions_1_0_to_1_8_are_read(tmp_path: Path, version: str) -> None:
    assert only(tmp_path, changed("schema_version", value=version)).meta["schema_version"] == version


@pytest.mark.parametrize(
    ("bad", "where", "reason"),
    [
        (changed("schema_version", value="ATIF-v1.9"), ": schema_version", "ATIF-v1.9 is later than ATIF-v1.8"),
        (changed("schema_version", value="ATIF-v2.0"), ": schema_version", "not a version 1.x of ATIF: 'ATIF-v2.0'"),
        (changed("schema_version", value=1), ": schema_version", "not a version 1.x of ATIF"),
        ({"steps": [{"step_id": 1}]}, ": schema_version", "not a version 1.x of ATIF: None"),
        (changed("agent", value=None), ": agent", "no agent with a name"),
        (changed("agent", "tool_definitions", value=["search"]), ": agent.tool_definitions", "not a list of tools"),
        (changed("steps", value=[]), ": steps", "no steps"),
        (changed("steps", 1, value=None), ": steps[1]", "step_id is None, expected 2"),
        (changed("steps", 2, "step_id", value=5), ": steps[2]", "step_id is 5, expected 3"),
        (changed("steps", 1, "source", value="tool"), ": steps[1]", "unknown source: 'tool'"),
        (changed("steps", 1, "message", value=None), ": steps[1]", "a step without a message"),
        (
            changed("steps", 1, "message", value=[{"type": "image", "source": {"path": "a.png"}}]),
            ": steps[1]",
            "a part that is not text: 'image'",
        ),
        (changed("steps", 2, "tool_calls", 0, "arguments", value="{}"), ": steps[2]", "not a JSON object"),
        (changed("steps", 2, "tool_calls", 0, "function_name", value=None), ": steps[2]", "without function_name"),
        (changed("steps", 2, "tool_calls", 0, "tool_call_id", value=None), ": steps[2]", "without tool_call_id"),
        (changed("steps", 2, "tool_calls", 1, "tool_call_id", value="c1"), ": steps[2]", "two tool calls"),
        (changed("steps", 1, "tool_calls", value=[{}]), ": steps[1]", "tool_calls must be a list, in an agent's step"),
        (
            changed("steps", 2, "observation", "results", 1, "source_call_id", value="c9"),
            ": steps[2]",
            "a result of an unknown tool call",
        ),
        (
            changed("steps", 2, "observation", "results", 1, "source_call_id", value=["c2"]),
            ": steps[2]",
            "a result of an unknown tool call",
        ),
        (changed("steps", 2, "observation", value="text"), ": steps[2]", "an observation without results"),
        (
            changed("steps", 2, "observation", "results", 0, value={"source_call_id": "c1"}),
            ": steps[2]",
            "neither content nor a subagent's trajectory",
        ),
        (
            changed("steps", 2, "observation", "results", 0, value={"subagent_trajectory_ref": [{"session_id": "s"}]}),
            ": steps[2]",
            "a subagent's result without content",
        ),
        (
            changed("steps", 1, "observation", value={"results": [{"content": "x"}]}),
            ": steps[1]",
            "a user's observation without a tool call",
        ),
        (changed("extra", "reward", value="high"), ": reward", "not a number"),
        (changed("subagent_trajectories", value={}), "", ""),
    ],
)
def test_what_has_no_place_is_refused_where_it_is(tmp_path: Path, bad: Any, where: str, reason: str) -> None:
    refusals = [entry for entry in found(tmp_path, bad) if isinstance(entry, Refusal)]
    assert len(refusals) == 1
    if reason:
        assert refusals[0].where.startswith(f"{tmp_path}/trajectory.json{where}")
        assert reason in refusals[0].reason
    else:
        assert refusals[0].where == f"{tmp_path}/trajectory.json: subagent_trajectories"


LENIENT = ImportOptions()


def left_out(trace: Trace) -> dict[str, int]:
    return {what: of["bytes"] for what, of in trace.meta["left_out"].items()}


@pytest.mark.parametrize("version", ["ATIF-v1.9", "ATIF-v1.10"])
def test_a_later_version_is_read_by_what_is_known(tmp_path: Path, version: str) -> None:
    later = copy.deepcopy(DOCUMENT) | {"schema_version": version, "novelty": {"a": 1}}
    later["steps"][1]["message"].append({"type": "hologram", "data": "x"})
    later["steps"][2]["mood"] = "good"
    trace = only(tmp_path, later, LENIENT)
    known = only(tmp_path, DOCUMENT)
    assert [segment for segment in trace.segments if segment.role is not Role.WARNING] == list(known.segments)
    warnings = [s.text for s in trace.segments if s.role is Role.WARNING]
    assert warnings == ["[left out: a part that is not text: 'hologram']\n"]
    assert set(left_out(trace)) == {
        f"{version} is later than ATIF-v1.8, read by what is known",
        "a part that is not text: 'hologram'",
    }


def test_a_step_of_an_unknown_source_is_left_out_with_its_results(tmp_path: Path) -> None:
    call = {"tool_call_id": "c", "function_name": "f", "arguments": {}}
    unknown = {"source": "critic", "message": "", "tool_calls": [call]}
    trace = only(
        tmp_path,
        document(
            agent_step("a", {"content": "seen"}),
            {"source": "critic", "message": "bad \u00e9"},
            unknown,
            {"source": "system", "message": "", "observation": {"results": [{"source_call_id": "c", "content": "r"}]}},
            agent_step("b"),
        ),
        LENIENT,
    )
    assert [(s.role.name.lower(), s.text) for s in trace.segments if s.role in (Role.ACTION, Role.ENV_OUTPUT)] == [
        ("action", "a\n"),
        ("env_output", "seen"),
        ("action", "b\n"),
    ]
    assert left_out(trace) == {
        "a step of unknown source: 'critic'": len("bad \u00e9".encode()) + len(json.dumps({"tool_calls": [call]})),
        "a result of a tool call that is left out": 1,
    }


def test_parts_that_do_not_decide_a_role_are_repaired_or_left_out(tmp_path: Path) -> None:
    calls = [
        {"tool_call_id": "c1", "function_name": "f"},
        {"tool_call_id": "c2", "function_name": "f", "arguments": ""},
        {"tool_call_id": "c3", "function_name": "f", "arguments": '{"a":  1}'},
        {"tool_call_id": "c4", "arguments": {}},
    ]
    results = [
        {"source_call_id": "c1"},
        {"source_call_id": "c2", "subagent_trajectory_ref": [{"session_id": "s"}]},
        {"source_call_id": "c3", "content": "three"},
        {"source_call_id": "c4", "content": "four"},
    ]
    step = {"source": "agent", "message": None, "tool_calls": calls, "observation": {"results": results}}
    user = {"source": "user", "message": "hi", "observation": {"results": [{"content": "who?"}]}}
    trace = only(tmp_path, document(user, step), LENIENT)
    assert [s.text for s in trace.segments if s.role is Role.ACTION] == [
        "".join(
            f'<tool_call>\n{{"arguments": {arguments}, "name": "f"}}\n</tool_call>\n'
            for arguments in ("{}", "{}", '{"a":  1}')
        )
    ]
    assert trace.turns[0].output == "three"
    assert left_out(trace) == {
        "a user's observation without a tool call": 4,
        "a step without a message, read as an empty one": 0,
        "empty arguments of a tool call, read as {}": 0,
        "the arguments of a tool call are not a JSON object": 0,
        "a tool call without function_name": len(json.dumps(calls[3])),
        "a result with neither content nor a subagent's trajectory, read as an empty one": 0,
        "a subagent's result without content: its own trajectory is elsewhere": 0,
        "a result of a tool call that is left out": 4,
    }


def test_a_place_names_step_and_result(tmp_path: Path) -> None:
    bad = changed("steps", 2, "observation", "results", 1, "content", value=[{"type": "image"}])
    (refusal,) = found(tmp_path, bad)
    assert isinstance(refusal, Refusal)
    assert refusal.where == f"{tmp_path}/trajectory.json: steps[2].observation.results[1]"


def test_what_no_model_wrote_is_context(tmp_path: Path) -> None:
    trace = only(
        tmp_path,
        document(
            {"source": "user", "message": "before", "is_copied_context": True},
            agent_step("did", {"content": "saw"}, is_copied_context=True),
            {"source": "system", "message": "Compacted.", "observation": {"results": [{"content": "a summary"}]}},
            {
                "source": "system",
                "message": "Handed over.",
                "observation": {"results": [{"subagent_trajectory_ref": [{"trajectory_path": "s.json"}]}]},
            },
            agent_step(
                "",
                {"source_call_id": "c", "content": "ran"},
                llm_call_count=0,
                tool_calls=[{"tool_call_id": "c", "function_name": "f", "arguments": {}}],
            ),
            agent_step("now", {"content": "out"}),
        ),
    )
    assert roles(trace) == [
        ("context", "copied", "before\n"),
        ("context", "copied", "did\n"),
        ("context", "copied", "saw\n"),
        ("context", "system", "Compacted.\n"),
        ("context", "system_event", "a summary\n"),
        ("context", "system", "Handed over.\n"),
        ("context", "dispatched", '<tool_call>\n{"arguments": {}, "name": "f"}\n</tool_call>\n'),
        ("context", "wrapper", "<tool_response>\n"),
        ("env_output", "tool_result", "ran"),
        ("context", "wrapper", "\n</tool_response>\n"),
        ("action", None, "now\n"),
        ("env_output", "tool_result", "out"),
        ("context", "wrapper", "\n"),
    ]
    assert trace.meta["subagent_references"] == 1


def test_an_answer_may_come_in_a_later_step(tmp_path: Path) -> None:
    trace = only(
        tmp_path,
        document(
            agent_step("", tool_calls=[{"tool_call_id": "c", "function_name": "f", "arguments": {}}]),
            {
                "source": "system",
                "message": "",
                "observation": {"results": [{"source_call_id": "c", "content": "ran"}]},
            },
        ),
    )
    assert trace.turns[0].output == "ran"


def test_embedded_subagents_are_traces_of_their_own(tmp_path: Path) -> None:
    inner = document(agent_step("c"), trajectory_id="inner")
    sub = document(agent_step("b"), trajectory_id="sub", subagent_trajectories=[inner, {}])
    whole = document(agent_step("a"), trajectory_id="whole", subagent_trajectories=[sub], extra={"reward": 1})
    traces = found(tmp_path, whole)
    assert [trace.task_id for trace in traces if isinstance(trace, Trace)] == ["whole", "sub", "inner"]
    assert [trace.reward for trace in traces if isinstance(trace, Trace)] == [1.0, None, None]
    assert isinstance(traces[3], Refusal)
    assert traces[3].where == (
        f"{tmp_path}/trajectory.json: subagent_trajectories[0]: subagent_trajectories[1]: schema_version"
    )


def test_a_trial_of_harbor_says_task_and_reward(tmp_path: Path) -> None:
    folder = tmp_path / "hello__x1" / "agent"
    folder.mkdir(parents=True)
    result = {"task_name": "hello", "task_id": {"path": "tasks/hello"}}
    result["verifier_result"] = {"rewards": {"reward": 1.0, "style": 0.25}}
    (folder.parent / "result.json").write_text(json.dumps(result))
    whole = document(agent_step("a"), session_id="run-1", subagent_trajectories=[document(agent_step("b"))])
    trace, sub = found(folder, whole)
    assert isinstance(trace, Trace)
    assert (trace.task_id, trace.reward, trace.meta["rewards"]) == ("hello", 1.0, {"reward": 1.0, "style": 0.25})
    assert isinstance(sub, Trace)
    assert (sub.task_id, sub.reward) == ("trajectory.json", None)
    (folder.parent / "result.json").write_text("{")
    assert "result.json is not JSON" in str(found(folder, document(agent_step("a"))))


def test_without_a_task_the_run_is_the_task(tmp_path: Path) -> None:
    assert only(tmp_path, document(agent_step("a"), session_id="run-1")).task_id == "run-1"
    assert only(tmp_path, document(agent_step("a"))).task_id == "trajectory.json"


def test_lines_are_documents(tmp_path: Path) -> None:
    path = tmp_path / "all.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in (DOCUMENT, {"schema_version": "x"}, DOCUMENT)))
    first, refusal, last = read(path, PLAIN)
    assert isinstance(first, Trace)
    assert first == last
    assert isinstance(refusal, Refusal)
    assert refusal.where == f"{path}:2: schema_version"


WARNED = "Previous response had warnings:\nWARNINGS: - Extra text detected before JSON object\n\n"
ERRED = (
    "Previous response had parsing errors:\nERROR: No valid JSON found in response\nWARNINGS: - No valid JSON object "
    "found\n\nPlease fix these issues and provide a proper JSON response."
)
ASKED = (
    "\n\nAre you sure you want to mark the task as complete? This will trigger your solution to be graded and you "
    'won\'t be able to make any further corrections. If so, include "task_complete": true in your JSON response again.'
)
TIMED_OUT = (
    "Previous command:\nsleep 10\n\n\nThe previous command timed out after 2.0 seconds\n\nIt is possible that the "
    "command is not yet finished executing. If that is the case, then do nothing.\n\nHere is the current state of the "
    "terminal:\n\n"
)
NEW, SCREEN, STATE = "New Terminal Output:\n", "Current Terminal Screen:\n", "Current terminal state:\n"
CUT = "\n[... output limited to 10000 bytes; 71 interior bytes omitted ...]\n"
TOO_LONG = "ERROR!! NONE of the actions you just requested were performed because you exceeded 4096 tokens. Again."


@pytest.mark.parametrize(
    "parts",
    [
        [(True, NEW), (False, "\n$ ls\na.txt\n")],
        [(True, SCREEN), (False, "$ ")],
        [(True, WARNED + NEW), (False, "$ ls\n")],
        [(True, WARNED), (False, "$ ls\n")],
        [(True, ERRED)],
        [(True, ERRED + "\n\n" + SCREEN), (False, "$ ")],
        [(True, STATE + NEW), (False, "$ "), (True, ASKED)],
        [(True, WARNED + STATE + SCREEN), (False, f"$ {ASKED}\n$ "), (True, ASKED)],
        [(True, NEW), (False, "head"), (True, CUT), (False, "tail")],
        [(True, TIMED_OUT), (False, "still running ")],
        [(True, TIMED_OUT + SCREEN), (False, "still running ")],
        [(True, TOO_LONG)],
        [(False, f"no headline\n{NEW}{ASKED}")],
        [(True, NEW), (False, f"cat log\n{NEW}{STATE}{WARNED}")],
    ],
)
def test_what_terminal_agents_add_is_warning(tmp_path: Path, parts: list[tuple[bool, str]]) -> None:
    text = "".join(part for _, part in parts)
    segments = terminal_text(text, PLAIN)
    assert [(segment.role is Role.WARNING, segment.text) for segment in segments] == parts
    assert {segment.role for segment in segments} <= {Role.WARNING, Role.ENV_OUTPUT}
    trace = only(tmp_path, document(agent_step("{}", {"content": text}), agent="terminus-2"))
    assert roles(trace)[1:-1] == [(s.role.name.lower(), s.channel, s.text) for s in segments]


def test_other_agents_print_such_text_themselves(tmp_path: Path) -> None:
    trace = only(tmp_path, document(agent_step("cat log", {"content": NEW})))
    assert trace.turns[0].output == NEW
    trace = only(tmp_path, document(agent_step("cat log", {"content": NEW})), ImportOptions(warning="^New.*\n"))
    assert trace.turns[0].output == ""


PIECES = st.sampled_from(
    [NEW, SCREEN, STATE, WARNED, ERRED, ASKED, TIMED_OUT, CUT, TOO_LONG, "$ ls\n", "\n\n", "é🙂\0"]
)
TEXT = st.lists(PIECES, max_size=6).map("".join) | st.text()


@settings(max_examples=150, deadline=None)
@given(text=TEXT, warning=st.sampled_from([None, "ls", "(?s).*", "x*"]))
def test_no_character_of_a_terminal_is_lost(text: str, warning: str | None) -> None:
    segments = terminal_text(text, ImportOptions(warning=warning))
    assert "".join(segment.text for segment in segments) == text
    assert all(segment.text for segment in segments)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    outputs=st.lists(TEXT, min_size=1, max_size=4),
    says=st.text().filter(str.strip),
    agent=st.sampled_from(["codex", "terminus-2"]),
)
def test_what_the_world_returned_is_kept_byte_for_byte(
    tmp_path: Path, outputs: list[str], says: str, agent: str
) -> None:
    trace = only(tmp_path, document(*(agent_step(says, {"content": text}) for text in outputs), agent=agent))
    returned = (Role.ENV_OUTPUT, Role.WARNING)
    assert "".join(s.text for s in trace.segments if s.role in returned) == "".join(outputs)
    assert [s.text for s in trace.segments if s.role is Role.ACTION] == [f"{says}\n"] * len(outputs)
