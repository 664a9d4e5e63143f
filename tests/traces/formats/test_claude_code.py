"""Session logs of Claude Code."""

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
from echo_cli.traces.conversation import conversation_of
from echo_cli.traces.importing import import_traces
from echo_cli.traces.json_records import OPEN_SESSIONS, sessions_of


class Log:
    """Writer of a session's lines, which have what every line of the tool has."""

    def __init__(self, session: str = "s", **fields: Any) -> None:
        self.lines: list[dict[str, Any]] = []
        self.fields = {"sessionId": session, "version": "2.1.0", "cwd": "/w", "isSidechain": False, **fields}

    def add(self, kind: str, **fields: Any) -> None:
        uuid = f"u{len(self.lines)}-{self.fields.get('agentId', '')}{self.fields['sessionId']}"
        parent = self.lines[-1]["uuid"] if self.lines else None
        self.lines.append({"parentUuid": parent, **self.fields, "type": kind, "uuid": uuid, **fields})

    def user(self, content: Any, **fields: Any) -> None:
        self.add("user", message={"role": "user", "content": content}, **fields)

    def reply(self, name: str, *blocks: dict[str, Any], **fields: Any) -> None:
        """Write a line per block, as the tool does."""
        for block in blocks:
            message = {"id": name, "type": "message", "role": "assistant", "model": "claude", "content": [block]}
            self.add("assistant", message=message, requestId="r", **fields)


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def use(call_id: str, name: str = "Bash", **arguments: Any) -> dict[str, Any]:
    return {"type": "tool_use", "id": call_id, "name": name, "input": arguments}


def result(call_id: str, content: Any, **fields: Any) -> list[dict[str, Any]]:
    return [{"type": "tool_result", "tool_use_id": call_id, "content": content, **fields}]


def call(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"arguments": {arguments}, "name": "{name}"}}\n</tool_call>\n'


def one(tmp_path: Path, log: Log, options: ImportOptions | None = None) -> Trace:
    (trace,) = traces_of("claude-code", write_lines(tmp_path / "s.jsonl", log.lines), options)
    return trace


def outcome(tmp_path: Path, content: Any, name: str = "Bash", **fields: Any) -> Trace:
    """Return the trace of a session with one tool result."""
    log = Log()
    log.user("go")
    log.reply("m1", use("t1", name))
    log.user(result("t1", content, **fields))
    return one(tmp_path, log)


def test_a_reply_in_several_lines_is_one_action_before_its_results(tmp_path: Path) -> None:
    log = Log()
    log.add("file-history-snapshot", snapshot={})
    log.user("go")
    log.reply("m1", {"type": "thinking", "thinking": "Hmm", "signature": "x"}, text("Look."), use("t1", command="ls"))
    log.user(result("t1", "a\n"), toolUseResult={"stdout": "a\n"})
    log.reply("m1", use("t2", command="pwd"))  # the tool began to run while the reply was still arriving
    log.user(result("t2", [text("/"), text("w")]))
    log.reply("m2", text("Done."))
    trace = one(tmp_path, log)
    calls = call("Bash", '{"command": "ls"}') + call("Bash", '{"command": "pwd"}')
    assert roles(trace) == [
        ("context", "user", "go\n"),
        ("action", None, f"Look.\n{calls}"),
        ("env_output", "tool_result", "a\n"),
        ("env_output", "tool_result", "/w"),
        ("action", None, "Done.\n"),
    ]
    assert trace.task_id == "s" and trace.meta["tool_responses"] == ["t1", "t2"]
    assert left_out(trace) == {"lines without a message": (1, 0), "reasoning": (1, 3)}
    assert [message.role for message in conversation_of(trace).messages] == "user assistant tool tool assistant".split()


def test_subagents_are_traces_of_their_own(tmp_path: Path) -> None:
    log, named = Log(), Log(isSidechain=True, agentId="a1")
    log.user("go")
    log.reply("m1", use("t1", "Task", prompt="look"))
    named.user("look")
    named.reply("n1", text("Seen."))
    for number, parent in enumerate((None, "side0", "side1")):  # without agentId: the first line has no parent
        kind = "assistant" if number == 1 else "user"
        message = {"role": kind, "content": [text(f"side {number}")]}
        log.lines.append(
            {**log.fields, "type": kind, "isSidechain": True, "uuid": f"side{number}", "parentUuid": parent}
            | {"message": message}
        )
    lines = [*log.lines, *named.lines]
    log.user(result("t1", "Seen."))
    found = traces_of("claude-code", write_lines(tmp_path / "s.jsonl", [*lines, log.lines[-1]]))
    assert [trace.task_id for trace in found] == ["s", "s/sidechain-side0", "s/agent-a1"]
    assert roles(found[0])[-1] == ("env_output", "subagent", "Seen.")
    assert [each[2] for each in roles(found[1])] == ["side 0\n", "side 1\n", "side 2\n"]
    assert [each[2] for each in roles(found[2])] == ["look\n", "Seen.\n"]


def test_compaction_is_context_and_repeated_lines_are_read_once(tmp_path: Path) -> None:
    log = Log()
    log.user("go")
    log.reply("m1", text("One."))
    log.lines += log.lines[:2]  # a compaction can write earlier lines again
    log.add("system", subtype="compact_boundary", content="Conversation compacted", compactMetadata={"trigger": "auto"})
    log.user("In short: one.", isCompactSummary=True, isVisibleInTranscriptOnly=True)
    log.reply("m2", text("Two."))
    assert roles(one(tmp_path, log)) == [
        ("context", "user", "go\n"),
        ("action", None, "One.\n"),
        ("context", "compaction", "Conversation compacted\n"),
        ("context", "user", "In short: one.\n"),
        ("action", None, "Two.\n"),
    ]


def test_prompts_and_hooks_during_a_call_follow_its_result(tmp_path: Path) -> None:
    log = Log()
    log.user("go")
    log.reply("m1", use("t1"), use("t2"))
    log.add("attachment", attachment={"type": "hook_additional_context", "content": ["Mind", "the gap."]})
    log.user(result("t1", "a"))
    log.add("attachment", attachment={"type": "queued_command", "prompt": "and b?", "commandMode": "prompt"})
    log.user(result("t2", "b"))
    log.add("attachment", attachment={"type": "skill_listing", "content": "many"})
    log.reply("m2", text("Done."))
    trace = one(tmp_path, log)
    assert [each[2] for each in roles(trace)[2:]] == ["a", "b", "Mind\nthe gap.\n", "and b?\n", "Done.\n"]
    assert [each[:2] for each in roles(trace)[4:6]] == [("warning", "hook"), ("context", "user")]
    assert left_out(trace) == {"attachments": (1, 4)}


@pytest.mark.parametrize(
    ("content", "fields", "found", "exit_code"),
    [
        ("Exit code 2\nno such", {"is_error": True}, [("context", "Exit code 2\n"), ("env_output", "no such")], 2),
        ("Error: Exit code 1", {"is_error": True}, [("context", "Error: Exit code 1")], 1),
        ("Exit code 2\nno such", {}, [("env_output", "Exit code 2\nno such")], None),
        (
            "<tool_use_error>Read it first.</tool_use_error>",
            {"is_error": True},
            [("context", "<tool_use_error>"), ("env_output", "Read it first."), ("context", "</tool_use_error>")],
            None,
        ),
        (
            "1\ta\n\n<system-reminder>\nBeware.\n</system-reminder>\n",
            {},
            [("env_output", "1\ta"), ("warning", "\n\n<system-reminder>\nBeware.\n</system-reminder>\n")],
            None,
        ),
        (
            "1\t<system-reminder>a</system-reminder>",
            {},
            [("env_output", "1\t<system-reminder>a</system-reminder>")],
            None,
        ),
        ("a\n<system-reminder>", {}, [("env_output", "a\n<system-reminder>")], None),
        (
            "<persisted-output>\nOutput too large (9KB). Full output saved to: /f\n\nPreview (first 2KB):\na\nb\n...\n"
            "</persisted-output>",
            {},
            [
                (
                    "context",
                    "<persisted-output>\nOutput too large (9KB). Full output saved to: /f\n\nPreview (first 2KB):\n",
                ),
                ("env_output", "a\nb"),
                ("context", "\n...\n</persisted-output>"),
            ],
            None,
        ),
        (
            "The user doesn't want to proceed with this tool use. Why: no",
            {"is_error": True},
            [("warning", "The user doesn't want to proceed with this tool use. Why: no")],
            None,
        ),
        (
            "Claude requested permissions to use Bash, but you haven't granted it yet.",
            {"is_error": True},
            [("warning", "Claude requested permissions to use Bash, but you haven't granted it yet.")],
            None,
        ),
        ("Permission to use x", {}, [("env_output", "Permission to use x")], None),
        ("Command timed out after 2m 0.0s", {"is_error": True}, [("warning", "Command timed out after 2m 0.0s")], None),
        ("Command timed out after 1h 0m 30.5s", {}, [("warning", "Command timed out after 1h 0m 30.5s")], None),
        (
            "Exit code 143\nCommand timed out after 2m 0s",
            {"is_error": True},
            [("context", "Exit code 143\n"), ("warning", "Command timed out after 2m 0s")],
            143,
        ),
        (
            "Exit code 143\nCommand timed out after 10s\nCollected 3 items\n",
            {"is_error": True},
            [
                ("context", "Exit code 143\n"),
                ("warning", "Command timed out after 10s\n"),
                ("env_output", "Collected 3 items\n"),
            ],
            143,
        ),
        (
            "Command timed out after 2m 0.0s    Compiling a v0.1.0",
            {"is_error": True},
            [("warning", "Command timed out after 2m 0.0s "), ("env_output", "   Compiling a v0.1.0")],
            None,
        ),
        (
            "Exit code 255\nCommand timed out after 60s\n\nCommand timed out after 60s",
            {"is_error": True},
            [("context", "Exit code 255\n"), ("warning", "Command timed out after 60s\n\nCommand timed out after 60s")],
            255,
        ),
        (
            "Command timed out after 5s of waiting",
            {},
            [("env_output", "Command timed out after 5s of waiting")],
            None,
        ),
        (
            "Command did not complete within its 120s timeout and was moved to the background (ID: b1). Output: /t/b1",
            {},
            [
                (
                    "warning",
                    "Command did not complete within its 120s timeout and was moved to the background (ID: b1). "
                    "Output: /t/b1",
                )
            ],
            None,
        ),
        (
            "Command running in background with ID: b1. Output is being written to: /t/b1",
            {},
            [("warning", "Command running in background with ID: b1. Output is being written to: /t/b1")],
            None,
        ),
        (
            [text("a"), {"type": "image", "source": {}}],
            {},
            [("env_output", "a"), ("warning", "[left out: a part that is not text: 'image']\n")],
            None,
        ),
        (None, {}, [], None),
    ],
)
def test_what_the_tool_adds_to_a_result_is_no_observation(
    content: Any, fields: dict[str, Any], found: list[tuple[str, str]], exit_code: int | None, tmp_path: Path
) -> None:
    trace = outcome(tmp_path, content, **fields)
    assert [(role, words) for role, _, words in roles(trace)[2:]] == found
    assert trace.turns[0].exit_code == exit_code
    channel = "tool_error" if "is_error" in fields else "tool_result"
    assert all(each[1] == channel for each in roles(trace) if each[0] == "env_output")


def test_how_to_resume_a_subagent_is_no_part_of_its_answer(tmp_path: Path) -> None:
    told = "agentId: a1f (for resuming to continue this agent's work if needed)\n<usage>total_tokens: 9</usage>"
    assert roles(outcome(tmp_path, [text("Found."), text(told)], "Task"))[2:] == [
        ("env_output", "subagent", "Found."),
        ("warning", "harness", told),
    ]
    assert roles(outcome(tmp_path, told))[2:] == [("env_output", "tool_result", told)]


def test_what_claude_code_wrote_itself_is_omitted_and_unknown_parts_are_left_out(tmp_path: Path) -> None:
    log = Log()
    log.user([text("go"), {"type": "document"}])
    log.add("assistant", isApiErrorMessage=True, message={"role": "assistant", "id": "x", "content": [text("API")]})
    log.reply("m1", use("t1"), {"type": "server_tool_use", "id": "w", "name": "web_search"}, use("t1"))
    log.user([*result("t0", "lost"), *result("t1", "a")])
    log.user("Fine.", isMeta=True)
    log.add("assistant", message={"role": "tool", "content": "odd"})
    trace = one(tmp_path, log)
    assert left_out(trace) == {
        "a block that is neither text nor a tool_result: 'document'": (1, 0),
        "replies that Claude Code wrote itself": (1, 3),
        "a block that is neither text nor a tool_use: 'server_tool_use'": (1, 0),
        "repeated tool calls": (1, 0),
        "a tool result whose call is not in the log": (1, 4),
        "a message of unknown role: 'tool'": (1, 3),
    }
    (refused,) = imported("claude-code", tmp_path / "s.jsonl", ImportOptions(strict=True))
    assert isinstance(refused, Refusal)
    assert refused.where == f"{tmp_path}/s.jsonl:1: line 1" and "'document'" in refused.reason


def test_a_file_can_hold_several_sessions_and_those_without_a_reply_are_none(tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = [{"type": "summary", "summary": "About", "leafUuid": "x"}]
    for name in ("s1", "s2", "s3"):
        log = Log(name)
        log.user("go")
        if name != "s2":
            log.reply("m1", text(name))
        lines += log.lines
    found = traces_of("claude-code", write_lines(tmp_path / "all.jsonl", lines))
    assert [trace.task_id for trace in found] == ["s1", "s3"]
    (tmp_path / "all.json").write_text(json.dumps(lines))  # as a list, which some exports are
    assert [trace.task_id for trace in traces_of("claude-code", tmp_path / "all.json")] == ["s1", "s3"]


def test_the_lines_of_sessions_that_ran_at_the_same_time_may_alternate(tmp_path: Path) -> None:
    first, second = Log("s1"), Log("s2")
    for log in (first, second):
        log.user("go")
        log.reply("m1", use("t1"))
        log.user(result("t1", log.fields["sessionId"]))
        log.lines.append({"type": "summary", "uuid": "x"})  # names no session: that of the line before it
        log.reply("m2", text("Done."))
    lines = [each for pair in zip(first.lines[:3], second.lines[:3], strict=True) for each in pair]
    lines += [*second.lines[3:], *first.lines[3:]]
    found = traces_of("claude-code", write_lines(tmp_path / "both.jsonl", lines))
    assert [trace.task_id for trace in found] == ["s2", "s1"]  # in the order of their last lines
    for trace in found:
        apart = write_lines(tmp_path / f"{trace.task_id}.jsonl", (first if trace.task_id == "s1" else second).lines)
        assert [trace.segments] == [each.segments for each in traces_of("claude-code", apart)]
        assert roles(trace)[2] == ("env_output", "tool_result", trace.task_id)


def test_memory_holds_a_bounded_number_of_sessions() -> None:
    entries = iter([(f"all.jsonl:{number}", number) for number in range(2 * OPEN_SESSIONS)])
    sessions = sessions_of(entries, lambda number, ids: (str(number),))
    assert next(sessions) == ("all.jsonl:0", [("line 0", 0)])
    assert next(entries) == (f"all.jsonl:{OPEN_SESSIONS + 1}", OPEN_SESSIONS + 1)  # nothing further was read
    assert len(list(sessions)) == 2 * OPEN_SESSIONS - 2


def test_the_output_of_print_mode_is_a_session(tmp_path: Path) -> None:
    def line(kind: str, content: Any, caller: str | None = None) -> dict[str, Any]:
        message = {"role": kind, "content": content}
        return {"type": kind, "message": message, "session_id": "s", "parent_tool_use_id": caller}

    lines = [
        {"type": "system", "subtype": "init", "session_id": "s", "tools": ["Task"]},
        line("assistant", [use("t1", "Task")]),
        line("user", [text("look")], "t1"),
        line("assistant", [text("Seen.")], "t1"),
        line("user", result("t1", "Seen.")),
        {"type": "result", "subtype": "success", "result": "Done.", "session_id": "s"},
    ]
    main_thread, subagent = traces_of("claude-code", write_lines(tmp_path / "out.jsonl", lines))
    assert [each[0] for each in roles(main_thread)] == ["action", "env_output"] and main_thread.task_id == "s"
    assert [each[0] for each in roles(subagent)] == ["context", "action"] and subagent.task_id == "s/t1"


def test_lines_without_ids_are_a_session_of_the_file(tmp_path: Path) -> None:
    lines = [
        {"type": "user", "uuid": "1", "message": {"role": "user", "content": "q"}},
        {"type": "assistant", "uuid": "2", "message": {"id": "m", "role": "assistant", "content": [use("t")]}},
        {"type": "user", "uuid": "3", "message": {"role": "user", "content": result("t", "a")}},
    ]
    (trace,) = traces_of("claude-code", write_lines(tmp_path / "c.jsonl", lines))
    assert [each[0] for each in roles(trace)] == ["context", "action", "env_output"] and trace.task_id == "c.jsonl:1"


def test_a_log_that_was_cut_is_an_error_whose_tip_reads_the_rest(tmp_path: Path) -> None:
    log = Log()
    log.user("go")
    log.reply("m1", text("One."), text("Two."))
    path = write_lines(tmp_path / "s.jsonl", log.lines)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(EchoError, match=r"s\.jsonl:3: not JSON") as error:
        import_traces("auto", [path], tmp_path / "out.jsonl", ImportOptions(redact=False))
    assert "--skip-bad" in str(error.value.tip) and not (tmp_path / "out.jsonl").exists()
    assert import_traces("auto", [path], tmp_path / "out.jsonl", ImportOptions(redact=False), skip_bad=True).traces == 1
    assert "One." in (tmp_path / "out.jsonl").read_text()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(CONVERSATIONS)
def test_every_byte_of_a_session_is_placed_or_counted(tmp_path: Path, conversation: list[Reply]) -> None:
    log = Log()
    for number, reply in enumerate(conversation):
        log.user(reply.prompt if number % 2 else [text(reply.prompt)])
        name = f"m{number}"
        log.reply(name, {"type": "thinking", "thinking": reply.reasoning}, text(reply.words))
        for place, made in enumerate(reply.calls):
            log.reply(name, use(f"t{number}-{place}", made.name, **made.arguments))
            output = f"Exit code {made.exit_code}\n{made.output}"
            log.user(result(f"t{number}-{place}", output, is_error=True))
    trace = one(tmp_path, log)
    assert by_role(trace) == expected(conversation, lambda made: (f"Exit code {made.exit_code}\n", ""))
    assert left_out(trace)["reasoning"] == (
        len(conversation),
        sum(len(reply.reasoning.encode()) for reply in conversation),
    )
