"""Runs of mini-swe-agent: text and tool calls, the frames of its observations, exit messages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from imported_chats import CLOSE, END, OPEN, SPOKEN, TEXTS, Part, call_text, parts_of, the_trace

from echo_cli.traces.builder import ImportOptions
from echo_cli.traces.conversation import conversation_of

FRAME: Part = ("context", "wrapper", "<returncode>0</returncode>\n<output>\n")
AFTER: Part = ("context", "wrapper", "</output>")


def run(*messages: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Return a record of version 1.1: a task, a response and what follows."""
    before = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]
    said = {
        "role": "assistant",
        "content": "THOUGHT: look\n\n```bash\nls\n```",
        "extra": {"actions": [{"command": "ls"}]},
    }
    return {"messages": [*before, said, *messages], "trajectory_format": "mini-swe-agent-1.1", **more}


def after(record: dict[str, Any], folder: Path, options: ImportOptions | None = None) -> list[Part]:
    """Return the segments after the first response."""
    parts = parts_of(the_trace("mini-swe-agent", record, folder, options))
    assert parts[:2] == [("context", "system", "s\n"), ("context", "user", "q\n")]
    return parts[3:]


def shown(content: str, **extra: Any) -> dict[str, Any]:
    return {"role": "user", "content": content, "extra": extra}


def test_an_output_is_what_its_frame_encloses(tmp_path: Path) -> None:
    record = run(shown("<returncode>0</returncode>\n<output>\na\n</output>\n</output>"), instance_id="i")
    trace = the_trace("mini-swe-agent", record, tmp_path)
    assert parts_of(trace)[3:] == [FRAME, ("env_output", "tool_result", "a\n</output>\n"), AFTER, END]
    assert (trace.task_id, trace.turns[0].exit_code, trace.turns[0].output) == ("i", 0, "a\n</output>\n")
    said = conversation_of(trace).messages
    assert [message.role for message in said] == ["system", "user", "assistant", "user"]
    assert said[-1].text == "<returncode>0</returncode>\n<output>\na\n</output>\n</output>"


def test_the_notices_around_an_output_are_warnings(tmp_path: Path) -> None:
    content = (
        "<exception>no</exception>\n<returncode>-1</returncode>\n<warning>\nToo long.\n</warning><output_head>\nA\n"
        "</output_head>\n<elided_chars>\n9 characters elided\n</elided_chars>\n<output_tail>\nB\n</output_tail>"
    )
    parts = after(run(shown(content)), tmp_path)
    assert [part for part in parts if part[0] != "context"] == [
        ("warning", "notice", "<exception>no</exception>"),
        ("warning", "notice", "<warning>\nToo long.\n</warning>"),
        ("env_output", "tool_result", "A"),
        ("warning", "notice", "<elided_chars>\n9 characters elided\n</elided_chars>"),
        ("env_output", "tool_result", "B"),
    ]
    assert "".join(text for _, _, text in parts) == f"{content}\n"


def test_a_json_frame_keeps_the_escapes_that_the_model_read(tmp_path: Path) -> None:
    content = '{\n  "returncode": 1,\n  "output": "a\\n\\"b\\" \\u003c", "exception_info": "late"\n}'
    trace = the_trace("mini-swe-agent", run(shown(content, returncode=1)), tmp_path)
    assert parts_of(trace)[3:] == [
        ("context", "wrapper", '{\n  "returncode": 1,\n  "output": "'),
        ("env_output", "tool_result", 'a\\n\\"b\\" \\u003c'),
        ("context", "wrapper", '", '),
        ("warning", "notice", '"exception_info": "late"'),
        ("context", "wrapper", "\n}"),
        END,
    ]
    assert trace.turns[0].exit_code == 1
    cut = '{"returncode": 0, "output_head": "x", "output_tail": "y", "elided_chars": 3, "warning": "Output too long."}'
    assert [text for role, _, text in after(run(shown(cut)), tmp_path) if role == "env_output"] == ["x", "y"]


def test_a_command_that_timed_out_shows_its_output(tmp_path: Path) -> None:
    content = (
        "The last command <command>top</command> timed out and has been killed.\nThe output of the command was:\n"
        " <output>\nPID\n</output>\nPlease try another command."
    )
    parts = after(run(shown(content)), tmp_path)
    assert [(role, text) for role, _, text in parts if role == "env_output"] == [("env_output", "PID")]
    assert {role for role, channel, text in parts if "timed out" in text or "Please" in text} == {"warning"}


@pytest.mark.parametrize(
    ("message", "part"),
    [
        (shown("No tool call.", interrupt_type="FormatError"), ("warning", "notice", "No tool call.")),
        (
            shown("Please always provide EXACTLY ONE action in triple backticks, found 2 actions."),
            ("warning", "notice", "Please always provide EXACTLY ONE action in triple backticks, found 2 actions."),
        ),
        (shown("Stop that.", interrupt_type="UserInterruption"), ("context", "user", "Stop that.\n")),
        (shown("Observation: a"), ("context", "wrapper", "Observation: ")),
    ],
)
def test_a_message_of_the_harness_or_of_a_person_is_no_output(
    message: dict[str, Any], part: Part, tmp_path: Path
) -> None:
    assert after(run(message), tmp_path)[0] == part


def test_the_message_that_ends_a_run_is_a_warning(tmp_path: Path) -> None:
    seen = shown("<returncode>0</returncode>\n<output>\n</output>")
    last = {"role": "exit", "content": "diff", "extra": {"exit_status": "Submitted"}}
    trace = the_trace("mini-swe-agent", run(seen, last, info={"exit_status": "Submitted"}), tmp_path)
    assert parts_of(trace)[-1] == ("warning", "exit", "diff")
    assert trace.meta == {"exit_status": "Submitted"}
    former = run(seen, {"role": "user", "content": "diff"}, info={"exit_status": "Submitted", "submission": "diff"})
    former["trajectory_format"] = "mini-swe-agent-1"
    assert after(former, tmp_path)[-1] == ("warning", "exit", "diff")


def test_a_tool_answer_has_its_frame_inside_the_wrappers(tmp_path: Path) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "bash", "arguments": '{"command": "ls"}'}}
    seen = {"role": "tool", "tool_call_id": "c1", "content": "<returncode>0</returncode>\n<output>\na\n</output>"}
    record = run({"role": "assistant", "content": None, "tool_calls": [call]}, {**seen, "extra": {"returncode": 0}})
    trace = the_trace("mini-swe-agent", record, tmp_path)
    assert parts_of(trace)[3:] == [OPEN, FRAME, ("env_output", "tool_result", "a\n"), AFTER, CLOSE]
    assert call_text("bash", '{"command": "ls"}') in parts_of(trace)[2][2]
    assert trace.turns[0].exit_code == 0


def test_items_of_the_responses_api_are_messages(tmp_path: Path) -> None:
    call = {"type": "function_call", "call_id": "c1", "name": "bash", "arguments": "{}"}
    said = {"object": "response", "output": [{"type": "reasoning", "summary": []}, call], "extra": {}}
    seen: dict[str, Any] = {"type": "function_call_output", "call_id": "c1", "extra": {"returncode": 2}}
    told: dict[str, Any] = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "No call."}]}
    record = run(
        told | {"extra": {"interrupt_type": "FormatError"}}, said, seen | {"output": f"{FRAME[2]}a\n{AFTER[2]}"}
    )
    trace = the_trace("mini-swe-agent", record, tmp_path)
    assert parts_of(trace)[3:] == [
        ("warning", "notice", "No call."),
        END,
        ("action", None, call_text("bash", "{}")),
        *(OPEN, FRAME, ("env_output", "tool_result", "a\n"), AFTER, CLOSE),
    ]
    assert [turn.exit_code for turn in trace.turns] == [None, 2]


def test_messages_alone_are_recognised_by_their_frames(tmp_path: Path) -> None:
    record = run(shown("<returncode>0</returncode>\n<output>\na\n</output>"), shown("Observation: b"))
    trace = the_trace("mini-swe-agent", {"messages": record["messages"], "instance_id": "i"}, tmp_path)
    assert [segment.text for segment in trace.segments if segment.role.name == "ENV_OUTPUT"] == ["a\n"]
    assert parts_of(trace)[-1] == ("context", "user", "Observation: b\n")


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(SPOKEN, TEXTS, st.integers(-1, 255), st.sampled_from(["text", "json", "tool"])), max_size=4))
def test_every_byte_is_in_one_segment(
    tmp_path_factory: pytest.TempPathFactory, turns: list[tuple[str, str, int, str]]
) -> None:
    messages: list[dict[str, Any]] = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "Hi."}]
    expected: list[Part] = [("context", "user", "q\n"), ("action", None, "Hi.\n")]
    for number, (words, output, code, kind) in enumerate([("A.", "", 0, "text"), *turns]):
        frame, told, end = f"<returncode>{code}</returncode>\n<output>\n", output, "</output>"
        if kind == "json":
            told = json.dumps(output, ensure_ascii=False)[1:-1]
            frame, end = f'{{\n  "returncode": {code},\n  "output": "', '"\n}'
        seen = {"content": f"{frame}{told}{end}", "extra": {"raw_output": output, "returncode": code}}
        inside: list[Part] = [("context", "wrapper", frame)]
        inside += [("env_output", "tool_result", told)] if told else []
        inside += [("context", "wrapper", end)]
        if not told:
            inside = [("context", "wrapper", frame), ("context", "wrapper", end)]
        calls = [{"id": f"c{number}", "function": {"name": "bash", "arguments": "{}"}}] if kind == "tool" else []
        messages += [{"role": "user", "content": words}, {"role": "assistant", "content": words, "tool_calls": calls}]
        messages += [{"role": "tool", "tool_call_id": f"c{number}", **seen} if calls else {"role": "user", **seen}]
        block = call_text("bash", "{}") if calls else ""
        expected += [("context", "user", f"{words}\n"), ("action", None, f"{words}\n{block}")]
        expected += [OPEN, *inside, CLOSE] if calls else [*inside, END]
    record = {"messages": messages, "trajectory_format": "mini-swe-agent-1.1"}
    trace = the_trace("mini-swe-agent", record, tmp_path_factory.mktemp("a"))
    assert parts_of(trace) == expected
    assert [turn.exit_code for turn in trace.turns[1:]] == [0, *(code for _, _, code, _ in turns)]
    assert "left_out" not in trace.meta
