"""Sessions of Gemini CLI, and contents of the Gemini API."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from session_logs import (
    CONVERSATIONS,
    Call,
    Reply,
    by_role,
    expected,
    imported,
    left_out,
    roles,
    traces_of,
    write_lines,
)

from echo_cli.errors import EchoError
from echo_cli.trace import Trace
from echo_cli.traces.builder import ImportOptions, Refusal
from echo_cli.traces.importing import import_traces

OPEN, CLOSE = "<untrusted_context>\n", "\n</untrusted_context>"
TAIL = "\nError: (none)\nExit Code: 0\nSignal: (none)\nBackground PIDs: (none)\nProcess Group PGID: 9"
HEAD = {"sessionId": "s", "projectHash": "h", "startTime": "2026-01-01", "kind": "main"}


def said(kind: str, content: Any, name: str, **fields: Any) -> dict[str, Any]:
    return {"id": name, "timestamp": "2026-01-01", "type": kind, "content": content, **fields}


def response(call_id: str, name: str, of: dict[str, Any]) -> dict[str, Any]:
    return {"functionResponse": {"id": call_id, "name": name, "response": of}}


def ran(call_id: str, result: Any, name: str = "look", **fields: Any) -> dict[str, Any]:
    return {"id": call_id, "name": name, "args": {}, "status": "success", "result": result, **fields}


def document(*messages: dict[str, Any]) -> dict[str, Any]:
    return {**HEAD, "messages": list(messages)}


def one(tmp_path: Path, *records: Any) -> Trace:
    (trace,) = traces_of("gemini", write_lines(tmp_path / "session.jsonl", records))
    return trace


def made(name: str) -> str:
    return f'<tool_call>\n{{"arguments": {{}}, "name": "{name}"}}\n</tool_call>\n'


def test_a_session_is_a_document_or_lines(tmp_path: Path) -> None:
    thoughts = [{"subject": "Hm", "description": "mm"}]
    asked = said("gemini", "Look.", "2", thoughts=thoughts)
    answered = {**asked, "toolCalls": [ran("r1", [response("r1", "look", {"output": "a"})])]}
    messages = [said("info", "Hi", "0"), said("user", [{"text": "g"}, {"text": "o"}], "1"), answered]
    last = said("gemini", [{"text": "Done.", "thought": False}, {"text": "hm", "thought": True}], "3")
    trace = one(tmp_path, document(*messages, last))
    assert roles(trace) == [
        ("context", "user", "go\n"),
        ("action", None, f"Look.\n{made('look')}"),
        ("env_output", "tool_result", "a"),
        ("action", None, "Done.\n"),
    ]
    assert trace.task_id == "s"
    assert left_out(trace) == {"messages of the type info": (1, 2), "reasoning": (2, 6)}
    hidden = {**answered, "toolCalls": [ran("r1", [response("r1", "look", {"output": "hidden"})])]}
    summary = said("user", "In short.", "9")
    lines = [HEAD, *messages[:2], asked, {"$set": {"lastUpdated": "now"}}, answered, last]
    lines += [{"$rewindTo": "3"}, {"$set": {"messages": [summary, hidden]}}, said("gemini", "Again.", "4")]
    assert roles(one(tmp_path, *lines)) == [
        *roles(trace),
        ("context", "user", "In short.\n"),
        ("action", None, "Again.\n"),
    ]


def test_contents_of_the_api_have_calls_in_their_parts(tmp_path: Path) -> None:
    contents = [
        {"role": "user", "parts": [{"text": "go"}]},
        {"role": "model", "parts": [{"text": "Look."}, {"functionCall": {"name": "look", "args": {}}}]},
        {"role": "user", "parts": [{"functionResponse": {"name": "look", "response": {"output": "a"}}}]},
    ]
    for record in (contents, {"history": contents}, {"contents": contents}):
        found = traces_of("gemini", write_lines(tmp_path / "chats.jsonl", [record, record]))
        assert len(found) == 2 and all(roles(trace) == roles(found[0]) for trace in found)
        assert [role for role, _, _ in roles(found[0])] == ["context", "action", "env_output"]


@pytest.mark.parametrize("instruction", [{"parts": [{"text": "Be kind."}]}, {"text": "Be kind."}, "Be kind."])
@pytest.mark.parametrize("field", ["systemInstruction", "system_instruction"])
def test_the_instruction_beside_contents_is_context(field: str, instruction: Any, tmp_path: Path) -> None:
    record = {"contents": [{"role": "model", "parts": [{"text": "a"}]}], field: instruction}
    assert roles(one(tmp_path, record)) == [("context", "system", "Be kind.\n"), ("action", None, "a\n")]


def test_a_call_in_the_content_and_among_the_calls_is_one(tmp_path: Path) -> None:
    part, answer = {"functionCall": {"id": "r1", "name": "look", "args": {}}}, response("r1", "look", {"output": "a"})
    messages = [said("gemini", [part], "1", toolCalls=[ran("r1", [answer])]), said("user", [answer], "2")]
    trace = one(tmp_path, document(*messages))
    assert [text for _, _, text in roles(trace)] == [made("look"), "a"]
    assert left_out(trace) == {"repeated results": (1, 0)}


@pytest.mark.parametrize(
    ("result", "fields", "found", "exit_code"),
    [
        ("a", {}, [("env_output", "a")], None),
        ({"text": "a"}, {}, [("env_output", "a")], None),
        (
            [response("r", "x", {"output": f"{OPEN}Output: a\nExit Code: 2\nProcess Group PGID: 9{CLOSE}"})],
            {"name": "run_shell_command"},
            [
                ("context", OPEN),
                ("context", "Output: "),
                ("env_output", "a"),
                ("context", "\nExit Code: 2\nProcess Group PGID: 9"),
                ("context", CLOSE),
            ],
            2,
        ),
        (
            [response("r", "x", {"output": f"Command: a\nDirectory: (root)\nOutput: (empty){TAIL}"})],
            {"name": "run_shell_command"},
            [
                ("context", "Command: a\nDirectory: (root)\nOutput: (empty)"),
                ("context", TAIL),
            ],
            0,
        ),
        ([response("r", "x", {"output": "Output: a"})], {}, [("env_output", "Output: a")], None),
        ([response("r", "x", {"error": "no"})], {"status": "error"}, [("env_output", "no")], None),
        (
            [response("r", "x", {"output": "a", "error": "stop"})],
            {"status": "cancelled"},
            [("env_output", "a"), ("warning", "stop")],
            None,
        ),
        ([response("r", "x", {"b": [1], "a": "é"})], {}, [("env_output", '{"b": [1], "a": "é"}')], None),
        (
            [response("r", "x", {"output": "a"}), {"inlineData": {}}],
            {},
            [("env_output", "a"), ("warning", "[left out: a part that is not text: 'inlineData']\n")],
            None,
        ),
    ],
)
def test_what_gemini_cli_adds_to_an_output_is_no_observation(
    result: Any, fields: dict[str, Any], found: list[tuple[str, str]], exit_code: int | None, tmp_path: Path
) -> None:
    trace = one(tmp_path, document(said("gemini", "", "1", toolCalls=[ran("r1", result, **fields)])))
    assert [(role, words) for role, _, words in roles(trace)[1:]] == found
    assert trace.turns[0].exit_code == exit_code


def test_unknown_parts_are_left_out_or_refused(tmp_path: Path) -> None:
    messages = [
        said("user", [{"text": "go"}, {"fileData": {}}], "1"),
        said("gemini", [{"text": "Hi."}, {"executableCode": {}}], "2"),
        said("odd", "x", "3"),
        said("user", [response("r9", "look", {"output": "lost"})], "4"),
    ]
    assert left_out(one(tmp_path, document(*messages))) == {
        "a part that is not text: 'fileData'": (1, 0),
        "a part that is not text: 'executableCode'": (1, 0),
        "a message of another type: 'odd'": (1, 1),
        "a result whose call is not in the session": (1, 4),
    }
    (refused,) = imported("gemini", tmp_path / "session.jsonl", ImportOptions(strict=True))
    assert isinstance(refused, Refusal) and refused.where.endswith("session.jsonl:1: line 1.messages[0]")


def test_a_log_that_was_cut_is_an_error_whose_tip_reads_the_rest(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "session.jsonl", [HEAD, said("gemini", "One.", "1"), said("gemini", "Two.", "2")])
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(EchoError, match=r"session\.jsonl:3: not JSON") as error:
        import_traces("auto", [path], tmp_path / "out.jsonl", ImportOptions(redact=False))
    assert "--skip-bad" in str(error.value.tip)
    assert import_traces("auto", [path], tmp_path / "out.jsonl", ImportOptions(redact=False), skip_bad=True).traces == 1
    (tmp_path / "session.json").write_text(json.dumps(document(said("gemini", "One.", "1")), indent=1)[:-9])
    with pytest.raises(EchoError, match=r"session\.json:\d+: not JSON"):
        import_traces("gemini", [tmp_path / "session.json"], tmp_path / "other.jsonl", ImportOptions(redact=False))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(CONVERSATIONS)
def test_every_byte_of_a_session_is_placed_or_counted(tmp_path: Path, conversation: list[Reply]) -> None:
    def around(call: Call) -> tuple[str, str]:
        if call.name == "look":
            return "<untrusted_context>\n", "\n</untrusted_context>"
        return (
            "<untrusted_context>\nOutput: ",
            f"\nExit Code: {call.exit_code}\nProcess Group PGID: 7\n</untrusted_context>",
        )

    named = [
        Reply(
            r.prompt,
            r.reasoning,
            r.words,
            tuple(
                Call("run_shell_command" if c.name == "shell" else c.name, c.arguments, c.output, c.exit_code)
                for c in r.calls
            ),
        )
        for r in conversation
    ]
    lines = [HEAD]
    for number, reply in enumerate(named):
        calls = [
            ran(
                f"r{number}-{place}",
                [response("r", call.name, {"output": call.output.join(around(call))})],
                call.name,
                args=call.arguments,
            )
            for place, call in enumerate(reply.calls)
        ]
        lines.append(said("user", reply.prompt if number % 2 else [{"text": reply.prompt}], f"u{number}"))
        thoughts = [{"subject": "", "description": reply.reasoning}]
        lines.append(said("gemini", reply.words, f"g{number}", toolCalls=calls, thoughts=thoughts))
    trace = one(tmp_path, *lines)
    assert by_role(trace) == expected(named, around)
    assert left_out(trace) == {"reasoning": (len(named), sum(len(r.reasoning.encode()) for r in named))}
