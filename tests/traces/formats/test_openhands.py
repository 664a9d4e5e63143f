"""Events of OpenHands: version 0's actions and observations, and the kinds of the software agent SDK."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from sampled_chats import Turn, expected, left_out, reasoning_bytes, recorded, turns

from echo_cli.errors import EchoError
from echo_cli.trace import Trace
from echo_cli.traces.builder import ImportOptions, Refusal
from echo_cli.traces.conversation import openai_record
from echo_cli.traces.formats.harnesses.openhands import read
from echo_cli.traces.importing import import_traces
from echo_cli.traces.recognition import recognise
from echo_cli.trajectory import Role

METADATA = {"exit_code": 0, "pid": -1, "working_dir": "/w", "prefix": "", "suffix": "\n[It ended.]"}


def response(*calls: tuple[str, str, dict[str, Any]], words: str | None = None) -> dict[str, Any]:
    """Return a model's response of version 0 with calls (id, name, arguments)."""
    made = [
        {
            "id": call_id,
            "type": "function",
            "function": {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)},
        }
        for call_id, name, arguments in calls
    ]
    ids = "-".join(call[0] for call in calls)
    return {"id": f"r-{ids}", "choices": [{"message": {"role": "assistant", "content": words, "tool_calls": made}}]}


def made_by(call_id: str, name: str, of: dict[str, Any]) -> dict[str, Any]:
    return {"tool_call_id": call_id, "function_name": name, "model_response": of, "total_calls_in_response": 1}


def actions() -> list[dict[str, Any]]:
    """Return a conversation of version 0: two calls of one response, then a message."""
    both = response(("c1", "execute_bash", {"command": "ls"}), ("c2", "think", {"thought": "Hm."}), words="I look.")
    first, second = made_by("c1", "execute_bash", both), made_by("c2", "think", both)
    run = {"command": "ls", "thought": "I look.", "is_input": False, "blocking": False, "hidden": False}
    return [
        {"id": 0, "source": "agent", "action": "system", "args": {"content": "Be brief.", "tools": [{"name": "ls"}]}},
        {"id": 1, "source": "user", "action": "message", "args": {"content": "Look.", "image_urls": ["x"]}},
        {"id": 2, "source": "user", "cause": 1, "action": "recall", "args": {"query": "Look."}},
        {"id": 3, "source": "agent", "action": "run", "args": run, "tool_call_metadata": first},
        {
            "id": 4,
            "source": "agent",
            "cause": 3,
            "observation": "run",
            "content": "a.txt\r\n",
            "extras": {"command": "ls", "metadata": METADATA, "hidden": False},
            "tool_call_metadata": first,
        },
        {"id": 5, "source": "agent", "action": "think", "args": {"thought": "Hm."}, "tool_call_metadata": second},
        {
            "id": 6,
            "source": "agent",
            "cause": 5,
            "observation": "think",
            "content": "Your thought has been logged.",
            "extras": {},
            "tool_call_metadata": second,
        },
        {"id": 7, "source": "environment", "observation": "agent_state_changed", "content": "", "extras": {}},
        {"id": 8, "source": "agent", "action": "message", "args": {"content": "One file."}},
    ]


def text(of: str) -> dict[str, Any]:
    return {"cache_prompt": False, "type": "text", "text": of}


def action(call_id: str, name: str, arguments: Any, thought: str = "", **more: Any) -> dict[str, Any]:
    call = {"id": call_id, "name": name, "arguments": json.dumps(arguments, ensure_ascii=False), "origin": "completion"}
    told = {"thought": [text(thought)] if thought else [], "tool_name": name, "tool_call_id": call_id}
    return {"source": "agent", **told, "tool_call": call, "kind": "ActionEvent", **more}


def observation(call_id: str, of: str, **more: Any) -> dict[str, Any]:
    seen = {"content": [text(of)], "is_error": False, "kind": "TerminalObservation", **more}
    return {"source": "environment", "tool_call_id": call_id, "observation": seen, "kind": "ObservationEvent"}


def message(role: str, of: str, **more: Any) -> dict[str, Any]:
    source = "agent" if role == "assistant" else "user"
    return {"source": source, "llm_message": {"role": role, "content": [text(of)]}, "kind": "MessageEvent", **more}


def kinds() -> list[dict[str, Any]]:
    """Return the same conversation as events of the SDK, with a skill and an error of the tool."""
    return [
        {
            "source": "agent",
            "system_prompt": text("Be brief."),
            "tools": [{"name": "ls"}],
            "kind": "SystemPromptEvent",
        },
        message("user", "Look.", extended_content=[text("A skill.")]),
        action("c1", "terminal", {"command": "ls"}, "I look.", reasoning_content="Hmm."),
        observation("c1", "no\n", is_error=True, exit_code=2, metadata={**METADATA, "exit_code": 2}),
        {"source": "environment", "key": "x", "kind": "ConversationStateUpdateEvent"},
        message("assistant", "No file."),
    ]


def found(path: Path, **options: Any) -> list[Trace | Refusal]:
    return list(read(path, ImportOptions(**options)))


def only(tmp_path: Path, events: Any) -> Trace:
    path = tmp_path / "trajectory.json"
    path.write_text(json.dumps(events, indent=1))
    (trace,) = found(path)
    assert isinstance(trace, Trace), trace
    return trace


def roles(trace: Trace) -> list[tuple[str, str | None, str]]:
    return [(s.role.name.lower(), s.channel, s.text) for s in trace.segments]


OPEN, CLOSE = ("context", "wrapper", "<tool_response>\n"), ("context", "wrapper", "\n</tool_response>\n")


def test_actions_of_one_response_are_one_action(tmp_path: Path) -> None:
    trace = only(tmp_path, actions())
    assert roles(trace) == [
        ("context", "system", "Be brief.\n"),
        ("context", "tools", '<tools>\n{"name": "ls"}\n</tools>\n'),
        ("context", "user", "Look.\n"),
        ("warning", "left_out", "[left out: an image]\n"),
        (
            "action",
            None,
            'I look.\n<tool_call>\n{"arguments": {"command": "ls"}, "name": "execute_bash"}\n</tool_call>\n'
            '<tool_call>\n{"arguments": {"thought": "Hm."}, "name": "think"}\n</tool_call>\n',
        ),
        OPEN,
        ("env_output", "tool_result", "a.txt\r\n"),
        ("warning", "notice", "\n[It ended.]"),
        *(CLOSE, OPEN),
        ("warning", "notice", "Your thought has been logged."),
        CLOSE,
        ("action", None, "One file.\n"),
    ]
    assert [(turn.output, turn.exit_code) for turn in trace.turns] == [("a.txt\r\n", 0), ("", None)]
    record = openai_record(trace)
    assert [each["role"] for each in record["messages"]] == ["system", "user", "assistant", "tool", "tool", "assistant"]


def test_actions_without_the_models_response_are_their_name_and_args(tmp_path: Path) -> None:
    events = actions()
    for event in events:
        event.pop("tool_call_metadata", None)
    trace = only(tmp_path, events)
    assert [turn.command for turn in trace.turns] == [
        'I look.\n<tool_call>\n{"arguments": {"command": "ls", "is_input": false}, "name": "run"}\n</tool_call>',
        '<tool_call>\n{"arguments": {"thought": "Hm."}, "name": "think"}\n</tool_call>',
        "One file.",
    ]
    assert trace.turns[0].output == "a.txt\r\n"


def test_events_of_the_sdk_have_their_roles(tmp_path: Path) -> None:
    trace = only(tmp_path, kinds())
    assert roles(trace) == [
        ("context", "system", "Be brief.\n"),
        ("context", "tools", '<tools>\n{"name": "ls"}\n</tools>\n'),
        ("context", "user", "Look.\n"),
        ("context", "extension", "A skill.\n"),
        ("action", None, 'I look.\n<tool_call>\n{"arguments": {"command": "ls"}, "name": "terminal"}\n</tool_call>\n'),
        OPEN,
        ("env_output", "tool_error", "no\n"),
        ("warning", "notice", "\n[It ended.]"),
        CLOSE,
        ("action", None, "No file.\n"),
    ]
    assert trace.turns[0].exit_code == 2
    assert left_out(trace) == {"reasoning": 4, "events that the model is not shown": 0}


def test_what_openhands_itself_answers_is_warning(tmp_path: Path) -> None:
    own = {"source": "agent", "tool_name": "terminal", "tool_call_id": "c1", "error": "bad call"}
    for event, told in (
        ({**own, "kind": "AgentErrorEvent"}, "bad call"),
        ({**own, "rejection_reason": "no!", "kind": "UserRejectObservation"}, "no!"),
        (observation("c1", "Done.", kind="FinishObservation"), "Done."),
    ):
        trace = only(tmp_path, [*kinds()[:3], event])
        assert roles(trace)[5:] == [OPEN, ("warning", "notice", told), CLOSE]
    cut = "\n[... Observation truncated due to length ...]\n"
    events = actions()
    events[4]["content"] = f"a{cut}b"
    segments = [(s.role, s.text) for s in only(tmp_path, events).segments if s.text in ("a", cut, "b")]
    assert segments == [(Role.ENV_OUTPUT, "a"), (Role.WARNING, cut), (Role.ENV_OUTPUT, "b")]


def test_a_condensation_is_context_and_unknown_events_are_left_out(tmp_path: Path) -> None:
    events = [*kinds()[:4], {"source": "environment", "summary": "So far.", "kind": "Condensation"}]
    trace = only(tmp_path, [*events, {"source": "agent", "x": 1, "kind": "NovelEvent"}, message("assistant", "End.")])
    assert ("context", "summary", "So far.\n") in roles(trace)
    assert ("warning", "left_out", "[left out: an event of unknown kind: 'NovelEvent']\n") in roles(trace)
    odd = {"id": 9, "source": "agent", "cause": 99, "observation": "smell", "content": "roses", "extras": {}}
    lost = {**odd, "observation": "read"}
    assert left_out(only(tmp_path, [*kinds(), observation("c9", "lost")]))["an observation of no action"] == 4
    assert left_out(only(tmp_path, [*actions(), odd, lost])) == {
        "an image": 0,
        "events that the model is not shown": 0,
        "an observation of unknown kind: 'smell'": 5,
        "an observation of no action": 5,
    }


def test_records_of_an_evaluation_are_a_trace_each(tmp_path: Path) -> None:
    path = tmp_path / "output.jsonl"
    pairs = [[event] for event in actions()[:3]] + [actions()[3:5], actions()[5:7]]
    rows = [
        {"instance_id": "i-1", "history": kinds(), "test_result": {"git_patch": "", "report": {"resolved": True}}},
        {"instance_id": "i-2", "history": pairs, "report": {"resolved": False}},
        {"instance_id": "i-3", "history": []},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert recognise(path).name == "openhands"
    first, second, refusal = found(path)
    assert isinstance(first, Trace) and isinstance(second, Trace)
    assert (first.task_id, first.reward, second.task_id, second.reward) == ("i-1", 1.0, "i-2", 0.0)
    assert refusal == Refusal(f"{path}:3", "a record without events")


def test_a_conversation_of_the_sdk_is_named_by_its_state(tmp_path: Path) -> None:
    (tmp_path / "events").mkdir()
    for number, event in enumerate(kinds()):
        (tmp_path / "events" / f"event-{number:05}-x.json").write_text(json.dumps(event))
    (tmp_path / "base_state.json").write_text(json.dumps({"id": "conversation-1", "agent": {}}))
    assert recognise(tmp_path / "base_state.json").name == "openhands"
    (trace,) = found(tmp_path / "base_state.json")
    assert isinstance(trace, Trace)
    assert trace.task_id == "conversation-1"
    assert trace.segments == only(tmp_path, kinds()).segments
    (refusal,) = found(tmp_path / "events" / "event-00002-x.json")
    assert isinstance(refusal, Refusal) and "base_state.json" in refusal.reason


@pytest.mark.parametrize("events", [actions(), kinds()])
def test_a_list_and_lines_are_recognised_and_a_cut_file_writes_nothing(tmp_path: Path, events: Any) -> None:
    only(tmp_path, events)
    assert recognise(tmp_path / "trajectory.json").name == "openhands"
    path, lines = tmp_path / "events.jsonl", "".join(json.dumps(event) + "\n" for event in events)
    path.write_text(lines)
    assert recognise(path).name == "openhands"
    for cut in (lines[:-20], json.dumps(events, indent=1)[:-40]):
        path.write_text(cut)
        with pytest.raises(EchoError, match="not JSON"):
            import_traces("openhands", [path], tmp_path / "out.jsonl", ImportOptions())
        assert not (tmp_path / "out.jsonl").exists()


def sdk_events(chat: list[Turn]) -> list[dict[str, Any]]:
    """Write a conversation as the SDK does."""
    events = [{"source": "agent", "system_prompt": text("Go."), "tools": [], "kind": "SystemPromptEvent"}]
    for turn in chat:
        events += [message("user", turn.user)]
        for number, call in enumerate(turn.calls):
            thought = {} if number else {"thought": turn.words, "reasoning_content": turn.reasoning}
            events += [action(call.call_id, call.name, call.arguments, **thought)]
        events += [observation(call.call_id, call.output) for call in turn.calls]
        if not turn.calls:
            spoken = message("assistant", turn.words)
            spoken["llm_message"]["reasoning_content"] = turn.reasoning
            events += [spoken]
    return events


def action_events(chat: list[Turn]) -> list[dict[str, Any]]:
    """Write a conversation as version 0 does."""
    events: list[dict[str, Any]] = []
    for turn in chat:
        events += [{"source": "user", "action": "message", "args": {"content": turn.user}}]
        whole = response(*((call.call_id, call.name, call.arguments) for call in turn.calls), words=turn.words)
        whole["choices"][0]["message"]["reasoning_content"] = turn.reasoning
        for call in turn.calls:
            made = made_by(call.call_id, call.name, whole)
            events += [{"source": "agent", "action": "run", "args": {"command": "x"}, "tool_call_metadata": made}]
            seen = {"source": "agent", "observation": "read", "content": call.output, "extras": {}}
            events += [{**seen, "tool_call_metadata": made}]
        if not turn.calls:
            events += [{"source": "agent", "action": "message", "args": {"content": turn.words}}]
    return events


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chat=turns())
def test_every_byte_of_a_conversation_is_in_one_segment_or_left_out(tmp_path: Path, chat: list[Turn]) -> None:
    trace = only(tmp_path, sdk_events(chat))
    assert recorded(trace)[1:] == expected(chat)
    assert left_out(trace) == {"reasoning": reasoning_bytes(chat)}
    trace = only(tmp_path, action_events(chat))
    assert recorded(trace) == expected(chat)
    called = [turn for turn in chat if turn.calls]
    assert left_out(trace) == ({"reasoning": reasoning_bytes(called)} if called else {})
