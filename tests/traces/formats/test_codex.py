"""Rollouts of Codex."""

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


def line(kind: str, payload: Any) -> dict[str, Any]:
    return {"timestamp": "2026-04-20T16:44:37.772Z", "type": kind, "payload": payload}


def meta(session: str, **fields: Any) -> dict[str, Any]:
    return line("session_meta", {"id": session, "cwd": "/w", "base_instructions": {"text": "You code."}, **fields})


def said(role: str, text: str) -> dict[str, Any]:
    kind = "output_text" if role == "assistant" else "input_text"
    return line("response_item", {"type": "message", "role": role, "content": [{"type": kind, "text": text}]})


def call(call_id: str, name: str = "shell", arguments: str = "{}") -> dict[str, Any]:
    return line("response_item", {"type": "function_call", "name": name, "arguments": arguments, "call_id": call_id})


def output(call_id: str, text: Any) -> dict[str, Any]:
    return line("response_item", {"type": "function_call_output", "call_id": call_id, "output": text})


def one(tmp_path: Path, *lines: dict[str, Any]) -> Trace:
    (trace,) = traces_of("codex", write_lines(tmp_path / "rollout.jsonl", lines))
    return trace


SESSION = [
    meta("s1"),
    said("developer", "<permissions>"),
    said("user", "<environment_context>"),
    line("turn_context", {"model": "m"}),
    said("user", "go"),
    line("event_msg", {"type": "user_message", "message": "go"}),
    line("response_item", {"type": "reasoning", "summary": [], "content": None, "encrypted_content": "x"}),
    said("assistant", "Look."),
    call("c1", "exec_command", '{"cmd":"ls"}'),
    line("event_msg", {"type": "exec_command_end", "aggregated_output": "a\n", "exit_code": 0}),
    output("c1", "Chunk ID: 1\nWall time: 0.1 seconds\nProcess exited with code 0\nOutput:\na\n"),
    said("assistant", "Done."),
]


def test_a_rollout_is_a_conversation(tmp_path: Path) -> None:
    trace = one(tmp_path, *SESSION)
    assert roles(trace) == [
        ("context", "system", "You code.\n"),
        ("context", "developer", "<permissions>\n"),
        ("context", "user", "<environment_context>\n"),
        ("context", "user", "go\n"),
        ("action", None, 'Look.\n<tool_call>\n{"arguments": {"cmd":"ls"}, "name": "exec_command"}\n</tool_call>\n'),
        ("context", "wrapper", "Chunk ID: 1\nWall time: 0.1 seconds\nProcess exited with code 0\nOutput:\n"),
        ("env_output", "tool_result", "a\n"),
        ("action", None, "Done.\n"),
    ]
    assert trace.task_id == "s1" and trace.turns[0].exit_code == 0
    assert left_out(trace) == {
        "lines of the type turn_context": (1, 0),
        "lines of the type event_msg": (2, 0),
        "reasoning": (1, 0),
    }


def test_rollouts_of_2025_have_no_payload(tmp_path: Path) -> None:
    head = {"id": "s0", "timestamp": "2025-08-20T13:20:47.060Z", "instructions": "Be brief.", "git": {}}
    items = [each["payload"] for each in (said("user", "go"), call("c1"), output("c1", "a"))]
    trace = one(tmp_path, head, {"record_type": "state"}, *items)
    assert [text for _, _, text in roles(trace)][:2] == ["Be brief.\n", "go\n"]
    assert by_role(trace)["env_output"] == "a" and trace.task_id == "s0"


def test_a_fork_is_one_session_and_files_can_hold_several(tmp_path: Path) -> None:
    fork = [meta("s2", forked_from_id="s1"), *SESSION, said("user", "more"), said("assistant", "Yes.")]
    empty = [meta("s3"), said("user", "go")]
    resumed = [meta("s4"), said("assistant", "Hi."), meta("s4"), said("assistant", "Again.")]
    resumed[2:2] = [meta("s5"), said("assistant", "Ho.")]  # another session ran in between
    found = traces_of("codex", write_lines(tmp_path / "all.jsonl", [*fork, *empty, *resumed]))
    assert [trace.task_id for trace in found] == ["s2", "s5", "s4"]
    found.pop(1)
    assert roles(found[1])[1:] == [("action", None, "Hi.\nAgain.\n")]


def test_a_compaction_is_context_and_prompts_wait_for_answers(tmp_path: Path) -> None:
    history = {"message": "In short.", "replacement_history": [said("user", "In short.")["payload"]]}
    trace = one(tmp_path, *SESSION[:1], call("c1"), said("user", "and?"), output("c1", "a"), line("compacted", history))
    assert [text for _, _, text in roles(trace)][2:] == ["a", "and?\n", "In short.\n"]
    assert roles(trace)[-1][:2] == ("context", "user")


JSON_OUTPUT = '{"output":"a\\n\\"b\\"","metadata":{"exit_code":2,"duration_seconds":0.1}}'


@pytest.mark.parametrize(
    ("text", "found", "exit_code"),
    [
        ("a\n", [("env_output", "a\n")], None),
        (
            "Exit code: 1\nWall time: 0.2 seconds\nTotal output lines: 9\nOutput:\na",
            [
                ("context", "Exit code: 1\nWall time: 0.2 seconds\nTotal output lines: 9\nOutput:\n"),
                ("env_output", "a"),
            ],
            1,
        ),
        (
            "Command: bash -lc 'a\nb'\nChunk ID: f\nWall time: 0.0000 seconds\nProcess running with session ID 7\n"
            "Original token count: 9\nOutput:\n",
            [
                (
                    "context",
                    "Command: bash -lc 'a\nb'\nChunk ID: f\nWall time: 0.0000 seconds\n"
                    "Process running with session ID 7\nOriginal token count: 9\nOutput:\n",
                )
            ],
            None,
        ),
        (
            JSON_OUTPUT,
            [
                ("context", '{"output":"'),
                ("env_output", 'a\n"b"'),
                ("context", '","metadata":{"exit_code":2,"duration_seconds":0.1}}'),
            ],
            2,
        ),
        ('{"output":"a","metadata":{}}', [("env_output", '{"output":"a","metadata":{}}')], None),
        ('{"output":"a"', [("env_output", '{"output":"a"')], None),
        ("aborted by user after 3.2s", [("warning", "aborted by user after 3.2s")], None),
        ("Wall time: 1.0 seconds\naborted by user", [("warning", "Wall time: 1.0 seconds\naborted by user")], None),
        ("exec command rejected by user", [("warning", "exec command rejected by user")], None),
        ("aborted by user\nb", [("env_output", "aborted by user\nb")], None),
        (
            "Total output lines: 9\n\ncommand timed out after 10 milliseconds\na…12 tokens truncated…b",
            [
                ("warning", "Total output lines: 9\n\ncommand timed out after 10 milliseconds\n"),
                ("env_output", "a"),
                ("warning", "…12 tokens truncated…"),
                ("env_output", "b"),
            ],
            None,
        ),
        ({"content": "no", "success": False}, [("env_output", "no")], None),
    ],
)
def test_what_codex_adds_to_an_output_is_no_observation(
    text: Any, found: list[tuple[str, str]], exit_code: int | None, tmp_path: Path
) -> None:
    trace = one(tmp_path, meta("s"), call("c1"), output("c1", text))
    assert [(role, words) for role, _, words in roles(trace)[2:]] == found
    assert trace.turns[0].exit_code == exit_code


def test_unknown_items_are_left_out_or_refused(tmp_path: Path) -> None:
    lines = [*SESSION, output("c9", "lost"), line("response_item", {"type": "image_generation_call", "id": "i"})]
    found = left_out(one(tmp_path, *lines))
    assert found["an output whose call is not in the record"] == (1, 4)
    assert found["an item of another type: 'image_generation_call'"] == (1, 0)
    (refused,) = imported("codex", tmp_path / "rollout.jsonl", ImportOptions(strict=True))
    assert isinstance(refused, Refusal) and refused.where.endswith("rollout.jsonl:1: line 13")


def test_a_log_that_was_cut_is_an_error_whose_tip_reads_the_rest(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "rollout.jsonl", SESSION)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(EchoError, match=r"rollout\.jsonl:12: not JSON") as error:
        import_traces("auto", [path], tmp_path / "out.jsonl", ImportOptions(redact=False))
    assert "--skip-bad" in str(error.value.tip)
    assert import_traces("auto", [path], tmp_path / "out.jsonl", ImportOptions(redact=False), skip_bad=True).traces == 1


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(CONVERSATIONS)
def test_every_byte_of_a_rollout_is_placed_or_counted(tmp_path: Path, conversation: list[Reply]) -> None:
    def around(made: Call) -> tuple[str, str]:
        if made.name == "shell":
            return f"Exit code: {made.exit_code}\nWall time: 0.1 seconds\nOutput:\n", ""
        return '{"output":"', f'","metadata":{{"exit_code":{made.exit_code},"duration_seconds":0.1}}}}'

    lines = [line("session_meta", {"id": "s"})]
    for number, reply in enumerate(conversation):
        reasoning = {"type": "reasoning", "summary": [{"type": "summary_text", "text": reply.reasoning}]}
        lines += [said("user", reply.prompt), line("response_item", reasoning), said("assistant", reply.words)]
        ids = [f"c{number}-{place}" for place in range(len(reply.calls))]
        for call_id, made in zip(ids, reply.calls, strict=True):
            lines.append(call(call_id, made.name, json.dumps(made.arguments, ensure_ascii=False)))
        for call_id, made in zip(ids, reply.calls, strict=True):
            before, after = around(made)
            written = made.output if made.name == "shell" else json.dumps(made.output)[1:-1]
            lines.append(output(call_id, f"{before}{written}{after}"))
    trace = one(tmp_path, *lines)
    assert by_role(trace) == expected(conversation, around)
    assert left_out(trace) == {"reasoning": (len(conversation), sum(len(r.reasoning.encode()) for r in conversation))}
