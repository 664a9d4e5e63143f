"""OpenTelemetry's GenAI spans and LangSmith's runs: of calls that continue each other, the last is the conversation."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from sampled_chats import Turn, expected, left_out, reasoning_bytes, recorded, turns

from echo_cli.errors import EchoError
from echo_cli.trace import Trace
from echo_cli.traces.builder import ImportOptions, Refusal
from echo_cli.traces.conversation import openai_record
from echo_cli.traces.importing import import_traces
from echo_cli.traces.recognition import format_named, recognise
from echo_cli.trajectory import Role

Message = dict[str, Any]
CALL = {"id": "c1", "name": "add", "arguments": {"x": 1}}
CHAT: list[Message] = [
    {"role": "system", "text": "Be brief."},
    {"role": "user", "text": "1 + 2?"},
    {"role": "assistant", "text": "I add.", "reasoning": "Hm.", "calls": [CALL]},
    {"role": "tool", "answers": {"c1": "3\r\n"}},
    {"role": "assistant", "text": "It is 3.", "reasoning": ""},
]
OPEN, CLOSE = ("context", "wrapper", "<tool_response>\n"), ("context", "wrapper", "\n</tool_response>\n")
EPISODE = [
    ("context", "system", "Be brief.\n"),
    ("context", "tools", '<tools>\n{"name": "add"}\n</tools>\n'),
    ("context", "user", "1 + 2?\n"),
    ("action", None, 'I add.\n<tool_call>\n{"arguments": {"x": 1}, "name": "add"}\n</tool_call>\n'),
    *(OPEN, ("env_output", "tool_result", "3\r\n"), CLOSE),
    ("action", None, "It is 3.\n"),
]


def steps(chat: list[Message]) -> list[tuple[list[Message], Message]]:
    """Return the history and the reply of each call of a model in a conversation."""
    return [(chat[:number], each) for number, each in enumerate(chat) if each["role"] == "assistant"]


def parts(message: Message) -> Message:
    """Return a message as OpenTelemetry's GenAI conventions write it."""
    found = [{"type": "reasoning", "content": message["reasoning"]}] if message.get("reasoning") else []
    found += [{"type": "text", "content": message["text"]}] if message.get("text") else []
    found += [{"type": "tool_call", **call} for call in message.get("calls", [])]
    answers = message.get("answers", {}).items()
    found += [{"type": "tool_call_response", "id": name, "response": text} for name, text in answers]
    return {"role": message["role"], "parts": found}


def openai(message: Message) -> list[Message]:
    """Return a message as the chat completions API writes it."""
    answers = message.get("answers", {}).items()
    if answers:
        return [{"role": "tool", "tool_call_id": name, "id": name, "content": text} for name, text in answers]
    calls = [
        {
            "id": call["id"],
            "type": "function",
            "function": {"name": call["name"], "arguments": json.dumps(call["arguments"])},
        }
        for call in message.get("calls", [])
    ]
    return [{"role": message["role"], "content": message["text"], **({"tool_calls": calls} if calls else {})}]


def value(of: Any) -> Message:
    """Return an OTLP AnyValue."""
    if isinstance(of, dict):
        return {"kvlistValue": {"values": [{"key": name, "value": value(each)} for name, each in of.items()]}}
    if isinstance(of, list):
        return {"arrayValue": {"values": [value(each) for each in of]}}
    return {"stringValue": of} if isinstance(of, str) else {"intValue": str(of)}


def span(number: int, attributes: Message, trace: str = "t1", **more: Any) -> Message:
    told = [
        {"key": name, "value": each if isinstance(each, dict) else value(each)} for name, each in attributes.items()
    ]
    return {"traceId": trace, "spanId": f"s{number}", "startTimeUnixNano": str(99 + number), "attributes": told, **more}


def otlp(spans: list[Message]) -> Message:
    return {"resourceSpans": [{"resource": {}, "scopeSpans": [{"scope": {}, "spans": spans}]}]}


def otel_spans(chat: list[Message], trace: str = "t1", **attributes: str) -> list[Message]:
    """Write the calls of a conversation as spans whose messages are JSON text, as most instrumentations do."""
    found = []
    for number, (history, reply) in enumerate(steps(chat)):
        system = [part for each in history if each["role"] == "system" for part in parts(each)["parts"]]
        told = {
            "gen_ai.operation.name": "chat",
            "gen_ai.system_instructions": json.dumps(system),
            "gen_ai.tool.definitions": json.dumps([{"name": "add"}]),
            "gen_ai.input.messages": json.dumps([parts(each) for each in history if each["role"] != "system"]),
            "gen_ai.output.messages": json.dumps([{**parts(reply), "finish_reason": "stop"}]),
            **attributes,
        }
        found.append(span(number, told, trace))
    return found


def langchain(message: Message) -> list[Message]:
    """Return a message as LangChain serialises it."""
    name = {"system": "System", "user": "Human", "assistant": "AI", "tool": "Tool"}[message["role"]]
    if message["role"] == "tool":
        told = [
            {"tool_call_id": call, "content": text, "status": "success"} for call, text in message["answers"].items()
        ]
    else:
        calls = [{"id": of["id"], "name": of["name"], "args": of["arguments"]} for of in message.get("calls", [])]
        thought = [{"type": "thinking", "thinking": message["reasoning"]}] if message.get("reasoning") else []
        used = [
            {"type": "tool_use", "id": of["id"], "name": of["name"], "input": {}} for of in message.get("calls", [])
        ]
        content = [*thought, {"type": "text", "text": message["text"]}, *used] if thought or used else message["text"]
        told = [{"content": content, "tool_calls": calls}]
    return [{"lc": 1, "type": "constructor", "id": ["langchain", f"{name}Message"], "kwargs": of} for of in told]


def runs(chat: list[Message], trace: str = "t1", **metadata: str) -> list[Message]:
    """Write the calls of a conversation as LangSmith's runs, below a root."""
    found: list[Message] = [
        {"id": trace, "trace_id": trace, "run_type": "chain", "inputs": {"input": "x"}, "outputs": {}}
    ]
    for number, (history, reply) in enumerate(steps(chat)):
        generation = {"text": reply["text"], "message": langchain(reply)[0]}
        found.append(
            {
                "id": f"{trace}-{number}",
                "trace_id": trace,
                "parent_run_id": trace,
                "run_type": "llm",
                "start_time": f"2026-01-01T00:00:0{number}",
                "inputs": {"messages": [[of for each in history for of in langchain(each)]]},
                "outputs": {"generations": [[generation]], "type": "LLMResult"},
                "extra": {"metadata": metadata, "invocation_params": {"tools": [{"name": "add"}]}},
            }
        )
    return found


def found(name: str, path: Path) -> list[Trace | Refusal]:
    return list(format_named(name).read(path, ImportOptions()))


def only(name: str, tmp_path: Path, record: Any) -> Trace:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(record, indent=1))
    (trace,) = found(name, path)
    assert isinstance(trace, Trace), trace
    return trace


def roles(trace: Trace) -> list[tuple[str, str | None, str]]:
    return [(s.role.name.lower(), s.channel, s.text) for s in trace.segments]


def test_the_last_span_of_a_conversation_is_its_trace(tmp_path: Path) -> None:
    trace = only("otel", tmp_path, otlp(otel_spans(CHAT)[::-1]))
    assert roles(trace) == EPISODE
    assert (trace.task_id, left_out(trace)) == ("t1", {"reasoning": 3})
    assert recognise(tmp_path / "a.json").name == "otel"
    assert [each["role"] for each in openai_record(trace)["messages"]][2:4] == ["assistant", "tool"]


def test_structured_attributes_and_lines_are_read_alike(tmp_path: Path) -> None:
    spans = otel_spans(CHAT)
    for each in spans:
        for attribute in each["attributes"][1:]:
            attribute["value"] = value(json.loads(attribute["value"]["stringValue"]))
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(otlp([each])) + "\n" for each in spans))
    (trace,) = found("otel", path)
    assert isinstance(trace, Trace) and roles(trace)[2:] == EPISODE[2:]


def test_a_conversation_of_several_traces_is_one_and_subagents_are_their_own(tmp_path: Path) -> None:
    more = [*CHAT, {"role": "user", "text": "And 2 + 2?"}, {"role": "assistant", "text": "4."}]
    named = {"gen_ai.conversation.id": "talk"}
    inner = [{"role": "user", "text": "Sub."}, {"role": "assistant", "text": "Done."}]
    whole = {"gen_ai.operation.name": "invoke_agent", "gen_ai.output.messages": json.dumps([parts(CHAT[-1])])}
    sub_span = {**otel_spans(inner, "t1", **named)[0], "spanId": "sub"}
    spans = [*otel_spans(CHAT, "t1", **named), *otel_spans(more, "t2", **named)[2:], sub_span]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(otlp([*spans, span(9, {**whole, **named})])))
    talk, sub = found("otel", path)
    assert isinstance(talk, Trace) and isinstance(sub, Trace)
    assert [s.text for s in talk.segments if s.role is Role.ACTION][-1] == "4.\n"
    assert [turn.output for turn in talk.turns] == ["3\r\n", "", ""]
    assert [s.text for s in sub.segments if s.channel != "tools"] == ["Sub.\n", "Done.\n"]


def events(chat: list[Message], make: Callable[[str, Message], Message]) -> list[Message]:
    told = [(f"gen_ai.{of['role']}.message", of) for each in chat[:-1] for of in openai(each)]
    return [make(*of) for of in (*told, ("gen_ai.choice", {"index": 0, "message": openai(chat[-1])[0]}))]


def attributes_of(name: str, body: Message) -> Message:
    flat = {key: each if isinstance(each, str) else json.dumps(each) for key, each in body.items()}
    return {"name": name, "attributes": [{"key": key, "value": {"stringValue": each}} for key, each in flat.items()]}


def content_of(name: str, body: Message) -> Message:
    content = {"key": "gen_ai.event.content", "value": {"stringValue": json.dumps(body)}}
    return {"name": name, "attributes": [content]}


def log_of(name: str, body: Message) -> Message:
    named = {"key": "event.name", "value": {"stringValue": name}}
    return {"traceId": "t1", "spanId": "s1", "attributes": [named], "body": value(body)}


@pytest.mark.parametrize("make", [attributes_of, content_of])
def test_events_of_earlier_versions_are_messages(tmp_path: Path, make: Callable[[str, Message], Message]) -> None:
    trace = only("otel", tmp_path, otlp([span(1, {"gen_ai.system": "x"}, events=events(CHAT, make))]))
    assert roles(trace) == [*EPISODE[:1], *EPISODE[2:]]


def test_events_of_logs_are_messages(tmp_path: Path) -> None:
    logs = {"resourceLogs": [{"scopeLogs": [{"logRecords": events(CHAT, log_of)}]}]}
    assert roles(only("otel", tmp_path, logs)) == [*EPISODE[:1], *EPISODE[2:]]


def test_a_reply_that_was_sampled_again_is_counted(tmp_path: Path) -> None:
    retried = otel_spans([*CHAT[:2], {"role": "assistant", "text": "Oops."}])
    trace = only("otel", tmp_path, otlp([*retried, *otel_spans(CHAT)[1:]]))
    assert roles(trace) == EPISODE
    assert left_out(trace) == {"reasoning": 3, "replies that the conversation does not continue": 5}


def test_spans_without_messages_are_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(otlp([span(1, {"gen_ai.operation.name": "chat"})])))
    (refusal,) = found("otel", tmp_path / "a.json")
    assert isinstance(refusal, Refusal) and "capture message content" in refusal.reason
    (tmp_path / "a.json").write_text(json.dumps({"runs": [{"run_type": "tool", "inputs": {}}]}))
    (refusal,) = found("langsmith", tmp_path / "a.json")
    assert isinstance(refusal, Refusal) and refusal.reason == "no messages in 1 runs"


def test_parts_that_cannot_be_placed_are_left_out(tmp_path: Path) -> None:
    odd = [
        {"role": "user", "parts": [{"type": "text", "content": "Hi."}, {"type": "blob", "modality": "image"}]},
        {"role": "critic", "parts": [{"type": "text", "content": "Bad."}]},
        {"role": "tool", "parts": [{"type": "tool_call_response", "id": "c9", "response": {"a": 1}}]},
        {"role": "assistant", "parts": [{"type": "server_tool_call", "name": "x"}, {"type": "text", "content": "Ok."}]},
    ]
    told = {"gen_ai.input.messages": json.dumps(odd[:3]), "gen_ai.output.messages": json.dumps(odd[3:])}
    assert left_out(only("otel", tmp_path, otlp([span(1, told)]))) == {
        "a part that is not text: 'blob'": 0,
        "a message of unknown role: 'critic'": 4,
        "a tool's answer without its call": len('{"a": 1}'),
        "a part that is not text: 'server_tool_call'": 0,
    }


@pytest.mark.parametrize("shape", ["list", "runs", "lines", "tree"])
def test_the_last_run_of_a_trace_is_its_conversation(tmp_path: Path, shape: str) -> None:
    made = runs(CHAT)
    made[0]["feedback_stats"] = {"correct": {"n": 1, "avg": 1.0}}
    path = tmp_path / "runs.jsonl"
    if shape == "lines":
        path.write_text("".join(json.dumps(run) + "\n" for run in made))
    elif shape == "tree":
        path.write_text(json.dumps({**made[0], "child_runs": made[1:]}))
    else:
        path.write_text(json.dumps(made if shape == "list" else {"runs": made}))
    assert recognise(path).name == "langsmith"
    (trace,) = found("langsmith", path)
    assert isinstance(trace, Trace)
    assert (roles(trace), trace.reward, trace.task_id) == (EPISODE, 1.0, "t1")


def test_runs_of_providers_and_states_of_graphs_are_read(tmp_path: Path) -> None:
    chat = [of for each in CHAT for of in openai(each)]
    run = {"id": "r", "trace_id": "t1", "run_type": "llm", "inputs": {"messages": chat[:-1]}}
    for outputs in ({"choices": [{"message": chat[-1]}]}, chat[-1], {"messages": [chat[-1]]}):
        assert roles(only("langsmith", tmp_path, {**run, "outputs": outputs})) == [*EPISODE[:1], *EPISODE[2:]]
    state = [{"type": kind, "content": "x"} for kind in ("human", "ai", "human", "ai")]
    graph = {**run, "run_type": "chain", "inputs": {"messages": state[:1]}, "outputs": {"messages": state}}
    assert [s.role for s in only("langsmith", tmp_path, graph).segments] == [Role.CONTEXT, Role.ACTION] * 2


def test_threads_join_the_traces_of_langsmith(tmp_path: Path) -> None:
    more = [*CHAT, {"role": "user", "text": "And?"}, {"role": "assistant", "text": "4."}]
    late = runs(more, "t2", thread_id="talk")
    trace = only("langsmith", tmp_path, [*runs(CHAT, "t1", thread_id="talk"), late[0], *late[3:]])
    assert (trace.task_id, len(trace.turns)) == ("talk", 3)


@pytest.mark.parametrize("name", ["otel", "langsmith"])
def test_a_cut_file_writes_nothing(tmp_path: Path, name: str) -> None:
    lines = [otlp([each]) for each in otel_spans(CHAT)] if name == "otel" else runs(CHAT)
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines)[:-20])
    with pytest.raises(EchoError, match="not JSON"):
        import_traces("auto", [path], tmp_path / "out.jsonl", ImportOptions())
    assert not (tmp_path / "out.jsonl").exists()


def messages_of(chat: list[Turn]) -> list[Message]:
    messages: list[Message] = []
    for turn in chat:
        calls = [{"id": call.call_id, "name": call.name, "arguments": call.arguments} for call in turn.calls]
        reply = {"role": "assistant", "text": turn.words, "reasoning": turn.reasoning, "calls": calls}
        messages += [{"role": "user", "text": turn.user}, reply]
        messages += [{"role": "tool", "answers": {call.call_id: call.output}} for call in turn.calls]
    return [*messages, {"role": "user", "text": "End?"}, {"role": "assistant", "text": "End."}]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chat=turns())
def test_every_byte_of_a_conversation_is_in_one_segment_or_left_out(tmp_path: Path, chat: list[Turn]) -> None:
    messages = messages_of(chat)
    for name, record in (("otel", otlp(otel_spans(messages))), ("langsmith", runs(messages))):
        trace = only(name, tmp_path, record)
        assert recorded(trace) == [*expected(chat), (Role.CONTEXT, "End?\n"), (Role.ACTION, "End.\n")]
        assert left_out(trace).get("reasoning", 0) == reasoning_bytes(chat)
        assert set(left_out(trace)) <= {"reasoning"}
