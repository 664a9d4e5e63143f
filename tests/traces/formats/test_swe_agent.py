"""Runs of SWE-agent: histories with steps, trajectories, data sets of messages, and the frames of observations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from imported_chats import CLOSE, END, OPEN, SPOKEN, TEXTS, Part, answered, call_text, parts_of, the_trace

from echo_cli.traces.conversation import conversation_of

STATE = "\n(Open file: n/a)\n(Current directory: /r)\nbash-$"


def item(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, "agent": "main", **more}


def said(words: str, action: str, **more: Any) -> dict[str, Any]:
    return item("assistant", words, thought=words, action=action, message_type="action", **more)


def step(words: str, action: str, observation: str) -> dict[str, Any]:
    return {"response": words, "thought": words, "action": action, "observation": observation, "state": {}}


def history(*items: dict[str, Any], steps: Any = (), **more: Any) -> dict[str, Any]:
    before = [item("system", "s", message_type="system_prompt"), item("user", f"q{STATE}", message_type="observation")]
    return {"environment": "main", "trajectory": list(steps), "history": [*before, *items], "info": {}, **more}


def after(record: dict[str, Any], folder: Path) -> list[Part]:
    """Return the segments after the task."""
    parts = parts_of(the_trace("swe-agent", record, folder))
    assert parts[:2] == [("context", "system", "s\n"), ("context", "user", f"q{STATE}\n")]
    return parts[2:]


def test_the_steps_say_what_the_environment_wrote(tmp_path: Path) -> None:
    items = [said("I look.", "ls"), item("user", "Diff: none\nSeen: a\nb"), said("Again.", "ls"), item("user", "None.")]
    steps = [step("I look", "", "ERROR"), step("I look.", "ls", "a\nb"), step("Again.", "ls", " \n")]
    assert after(history(*items, steps=steps), tmp_path) == [
        ("action", None, "I look.\n"),
        ("context", "wrapper", "Diff: none\nSeen: "),
        ("env_output", "tool_result", "a\nb"),
        END,
        ("action", None, "Again.\n"),
        ("context", "wrapper", "None."),
        END,
    ]


@pytest.mark.parametrize(
    ("text", "output", "notice"),
    [
        (f"a\n{STATE}", "a\n", ""),
        (f"a\n(Open file: x)\n(Interactive session: n/a){STATE}", "a\n(Open file: x)\n(Interactive session: n/a)", ""),
        ("OBSERVATION:\na\n", "a\n", ""),
        ("Observation: a", "a", ""),
        ("Observation: a<response clipped><NOTE>Long.</NOTE>", "a", "<response clipped><NOTE>Long.</NOTE>"),
        ("<observation>\na\n</observation>", "a", ""),
        (
            f"Your command ran successfully and did not produce any output.{STATE}",
            "",
            "Your command ran successfully and did not produce any output.",
        ),
        ("no frame", "no frame", ""),
        (
            "The command 'top' was cancelled because it took more than 30 seconds. Please wait.",
            "",
            "The command 'top' was cancelled because it took more than 30 seconds. Please wait.",
        ),
    ],
)
def test_the_frames_of_observations_are_known(text: str, output: str, notice: str, tmp_path: Path) -> None:
    parts = after(history(said("L.", "ls"), item("user", text)), tmp_path)[1:]
    assert "".join(part[2] for part in parts) == f"{text}\n"
    assert "".join(part[2] for part in parts if part[0] == "env_output") == output
    assert "".join(part[2] for part in parts if part[0] == "warning") == notice


def test_a_call_is_answered_by_the_next_message(tmp_path: Path) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "bash", "arguments": '{"command":"ls"}'}}
    items = [said("L.", "ls", tool_calls=[call], thinking_blocks=[{"type": "thinking", "thinking": "Hm."}])]
    answer = item("tool", f"a{STATE}", tool_call_ids=["c9"], message_type="observation")
    trace = the_trace("swe-agent", history(*items, answer), tmp_path)
    assert parts_of(trace)[2:] == [
        ("action", None, f"L.\n{call_text('bash', json.dumps(dict(command='ls'), separators=(',', ':')))}"),
        OPEN,
        ("env_output", "tool_result", "a"),
        ("context", "wrapper", STATE),
        CLOSE,
    ]
    assert trace.meta["left_out"] == {"reasoning": {"parts": 1, "bytes": 3}}
    assert conversation_of(trace).messages[-1].text == f"a{STATE}"


def test_a_demonstration_is_context(tmp_path: Path) -> None:
    demo = [item("user", "D", is_demo=True), said("x", "ls", is_demo=True), item("user", f"a{STATE}", is_demo=True)]
    parts = after(history(*demo, said("L.", "ls")), tmp_path)
    assert parts == [
        ("context", "user", "D\n"),
        ("context", "copied", "x\n"),
        ("context", "user", f"a{STATE}\n"),
        ("action", None, "L.\n"),
    ]


def test_steps_alone_are_a_run(tmp_path: Path) -> None:
    query = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]
    steps = [{**step("L.", "ls", "a\n"), "query": query}, step("D.", "submit", "")]
    trace = the_trace("swe-agent", {"trajectory": steps, "instance_id": "i"}, tmp_path)
    assert parts_of(trace) == [
        ("context", "system", "s\n"),
        ("context", "user", "q\n"),
        ("action", None, "L.\n"),
        ("env_output", "tool_result", "a\n"),
        END,
        ("action", None, "D.\n"),
        END,
    ]
    assert trace.task_id == "i"


def test_rows_with_role_and_text_are_a_run(tmp_path: Path) -> None:
    rows = [("system", None), ("user", "q"), ("ai", "L."), ("user", f"a{STATE}")]
    items = [{"role": role, "text": text, "system_prompt": None, "mask": role == "ai"} for role, text in rows]
    items[0]["system_prompt"] = "s"
    record = {"instance_id": "i", "target": True, "trajectory": items, "exit_status": "submitted"}
    trace = the_trace("swe-agent", record, tmp_path)
    assert parts_of(trace) == [
        ("context", "system", "s\n"),
        ("context", "user", "q\n"),
        ("action", None, "L.\n"),
        ("env_output", "tool_result", "a"),
        ("context", "wrapper", STATE),
        END,
    ]
    assert (trace.reward, trace.meta) == (1.0, {"exit_status": "submitted"})


def test_messages_alone_are_observations_only_in_a_known_frame(tmp_path: Path) -> None:
    rows = [("user", "q"), ("assistant", "<function=bash>"), ("user", "OBSERVATION:\na"), ("user", "Thanks.")]
    record = {"messages": [{"role": role, "content": text} for role, text in rows], "resolved": False}
    trace = the_trace("swe-agent", record, tmp_path)
    assert parts_of(trace)[2:] == [
        ("context", "wrapper", "OBSERVATION:\n"),
        ("env_output", "tool_result", "a"),
        END,
        ("context", "user", "Thanks.\n"),
    ]
    assert trace.reward == 0.0
    as_text = {**record, "messages": json.dumps(record["messages"])}
    assert the_trace("swe-agent", as_text, tmp_path).segments == trace.segments


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(SPOKEN, TEXTS, st.booleans()), min_size=1, max_size=4))
def test_every_byte_is_in_one_segment(
    tmp_path_factory: pytest.TempPathFactory, turns: list[tuple[str, str, bool]]
) -> None:
    items, steps, expected = [], [], list[Part]()
    for words, output, tool in turns:
        calls = [{"function": {"name": "bash", "arguments": "{}"}}] if tool else None
        items += [said(words, "ls", tool_calls=calls), item("tool" if tool else "user", f"Seen now: {output}{STATE}")]
        steps.append(step(words, "ls", output))
        expected.append(("action", None, f"{words}\n{call_text('bash', '{}') if tool else ''}"))
        seen: list[Part] = [("context", "wrapper", "Seen now: "), ("env_output", "tool_result", output)]
        whole = f"Seen now: {output}{STATE}"
        if not output.strip():
            seen = [("context", "wrapper", whole)]
        elif whole.count(output) > 1:  # the step does not say which of them, but the end of the frame is known
            seen = [("env_output", "tool_result", whole.removesuffix(STATE)), ("context", "wrapper", STATE)]
        else:
            seen.append(("context", "wrapper", STATE))
        expected += [*answered("")[:1], *seen, *answered("")[1:]] if tool else [*seen, END]
    assert after(history(*items, steps=steps), tmp_path_factory.mktemp("a")) == expected
