"""Redaction: no planted secret survives in any text of a trace, and nothing else changes."""

from __future__ import annotations

import json
import random
import re
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up_secrets import MAKERS
from session_logs import HOSTILE, write_lines
from tiny_run import error_of

from echo_cli.cli.main import main
from echo_cli.trace import Trace, TraceSegment, parse_trace, read_traces, trace_line
from echo_cli.traces.builder import tool_call
from echo_cli.traces.conversation import conversation_of
from echo_cli.traces.redaction.patterns import detectors, find_secrets
from echo_cli.traces.redaction.redactor import REDACTED, Redactor
from echo_cli.trajectory import Role, Turn, text_of

KNOWN = detectors()


def redacted(text: str) -> str:
    return Redactor(KNOWN).redact(Trace(text, (TraceSegment(Role.CONTEXT, "a"),), ())).task_id


def trace_with(*texts: str, **meta: Any) -> Trace:
    """Return a trace whose prompt, action and output have the texts."""
    prompt, action, output = texts
    segments = (
        TraceSegment(Role.CONTEXT, prompt, "user", token_ids=(1, 2)),
        TraceSegment(Role.ACTION, f"{action}\n", token_ids=(1, 2), logprobs=(-1.0, -1.0), transient=1),
        TraceSegment(Role.ENV_OUTPUT, output, "stdout"),
    )
    return Trace("t", segments, (Turn(action, output, 0, valid_action=True, clean_parse=True),), meta=meta)


@pytest.mark.parametrize("kind", MAKERS)
def test_a_secret_is_found_whole_and_the_text_around_it_stays(kind: str) -> None:
    for seed in range(20):
        text, secret = MAKERS[kind](random.Random(seed))
        for before, after in (
            ("", ""),
            ("see ", " there"),
            ('{"command": "echo ', '"}'),
            ("a\\n", "\\nb"),
            ("a\n", "\nb"),
        ):
            left = redacted(f"{before}{text}{after}")
            assert secret not in left and "[redacted: " in left, (kind, text, left)
            assert left.startswith(before) and left.endswith(after), (kind, text, left)


@pytest.mark.parametrize(
    "text",
    [
        "token = self.tokenizer.encode(text)",
        "secret = client.V1Secret, password = base64.b64encode(a), token = v1_tokens[0], https://me:${PASSWORD}@a.org",
        "def login(password: str, api_key: Optional[str] = None) -> Token:",
        'api_key = os.environ["SERVICE_API_KEY"]; password=${PASSWORD}; secret: <your secret>; pwd=********',
        '"max_tokens": 4096, "token_count": 12345678, "key": "value"',
        "git@github.com:a/b.git, @app.route, icon@2x.png, lodash@4.17.21, me@example.com, @types/node",
        "src/home/index.tsx https://a.org/home/page.html /home/user/x /Users/runner/work https://b.org:80/Users/list",
        "commit 3f786850e387550fdab836ed7e6dc881de23001b\nsha512-Zm9vYmFyYmF6Zm9vYmFyYmF6Zm9vYmFyYmF6Zm9vYmFyYmF6",
        "127.0.0.1:8080 550e8400-e29b-41d4-a716-446655440000 task-queue-of-many-words risk-of-9-lives",
        "grep 'BEGIN RSA PRIVATE' -r . && cat ~/.ssh/config",
    ],
)
def test_text_without_a_secret_stays(text: str) -> None:
    assert redacted(text) == text


def test_a_secret_in_an_observation_becomes_a_warning() -> None:
    text, _ = MAKERS["github"](random.Random(1))
    redactor = Redactor(KNOWN)
    trace = redactor.redact(trace_with("go", f"echo {text}", f"out {text}\nend\n", note=[{text: 1}]))
    name = "[redacted: GitHub Token]"
    assert [(each.role, each.channel, each.text) for each in trace.segments] == [
        (Role.CONTEXT, "user", "go"),
        (Role.ACTION, None, f"echo {name}\n"),
        (Role.ENV_OUTPUT, "stdout", "out "),
        (Role.WARNING, REDACTED, name),
        (Role.ENV_OUTPUT, "stdout", "\nend\n"),
    ]
    assert [each.token_ids for each in trace.segments] == [(1, 2), None, None, None, None]
    assert trace.turns == (Turn(f"echo {name}", "out \nend\n", 0, valid_action=True, clean_parse=True),)
    assert trace.meta == {"note": [{name: 1}]} and redactor.counts == {"GitHub Token": 3}
    assert parse_trace(trace_line(trace)) == trace


def test_a_secret_that_is_found_once_is_replaced_everywhere() -> None:
    value = "q8-" + "vY3" * 5
    trace = Redactor(KNOWN).redact(trace_with("go", f"API_KEY={value} ./run", f"started with {value} at 9\n"))
    assert value not in json.dumps(trace.to_json())
    assert text_of(trace.segments, Role.ENV_OUTPUT) == "started with  at 9\n"


def test_a_call_stays_a_call() -> None:
    key, _ = MAKERS["pkcs8"](random.Random(0))
    action = tool_call("Bash", {"command": f"echo '{key}' > /home/zqalice/k; export TOKEN=\"a8{'b' * 20}\""})
    segments = (TraceSegment(Role.ACTION, action),)
    turn = Turn(action.removesuffix("\n"), "", None, valid_action=True, clean_parse=True)
    trace = Redactor(KNOWN).redact(Trace("t", segments, (turn,)))
    (message,) = conversation_of(trace).messages
    (call,) = message.calls
    assert json.loads(call.arguments)["command"].startswith("echo '[redacted: private key]' > /home/[redacted: home")
    assert trace.turns[0].command == trace.segments[0].text.removesuffix("\n")


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(HOSTILE, st.sampled_from(sorted(MAKERS)), st.integers(0, 99)), min_size=3, max_size=6))
def test_no_planted_secret_survives_and_nothing_else_changes(planted: list[tuple[str, str, int]]) -> None:
    made = [(f"{text}\n ", *MAKERS[kind](random.Random(seed))) for text, kind, seed in planted]
    texts = ["".join(f"{around}{text}\n" for around, text, _ in made[place::3]) for place in range(3)]
    before = trace_with(*texts, note={"of": texts})
    after = Redactor(KNOWN).redact(before)
    written = json.dumps(after.to_json(), ensure_ascii=False)
    assert not [secret for _, _, secret in made if secret in written]
    for place, segment in enumerate(before.segments):
        same = (segment.role, Role.WARNING if segment.role is Role.ENV_OUTPUT else segment.role)
        now = "".join(each.text for each in after.segments if each.role in same)
        kept = re.split(r"\[redacted: [^\]]*\]", now)
        assert re.fullmatch(".*?".join(map(re.escape, kept)), segment.text, re.DOTALL)
        assert len(segment.text) - len("".join(kept)) <= sum(len(text) for _, text, _ in made[place::3])
    assert after.turns[0].output == text_of(after.segments, Role.ENV_OUTPUT)


def claude_log(folder: Path, output: str) -> Path:
    call = {"type": "tool_use", "id": "t", "name": "Bash", "input": {"command": "env"}}
    result = {"type": "tool_result", "tool_use_id": "t", "content": output}
    lines = [
        {"type": "assistant", "sessionId": "s", "message": {"id": "m", "role": "assistant", "content": [call]}},
        {"type": "user", "sessionId": "s", "message": {"role": "user", "content": [result]}},
    ]
    return write_lines(folder / "log.jsonl", lines)


def test_session_logs_are_redacted_by_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    claude_log(tmp_path, "HOME=/home/zqalice\n")
    (tmp_path / "chat.jsonl").write_text('[{"role": "assistant", "content": "/home/zqalice"}]\n')
    assert main(["traces", "import", "log.jsonl", "-o", "out.jsonl", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["redacted"] == {"home folder": 1}
    assert "zqalice" not in Path("out.jsonl").read_text()
    assert main(["traces", "import", "log.jsonl", "-o", "out.jsonl", "--overwrite"]) == 0
    assert "redacted 1: home folder 1\n" in capsys.readouterr().out
    assert main(["traces", "import", "log.jsonl", "-o", "raw.jsonl", "--no-redact", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["redacted"] is None and "zqalice" in Path("raw.jsonl").read_text()
    assert main(["traces", "import", "chat.jsonl", "log.jsonl", "-o", "both.jsonl"]) == 0
    chat, log = read_traces(Path("both.jsonl"))
    assert "zqalice" in chat.segments[0].text and not any("zqalice" in each.text for each in log.segments)
    assert main(["traces", "import", "chat.jsonl", "--redact", "-o", "chat_out.jsonl"]) == 0
    assert "zqalice" not in Path("chat_out.jsonl").read_text()


def test_explain_shows_what_an_import_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = claude_log(tmp_path, "HOME=/home/zqalice\n")
    assert main(["traces", "import", "--explain", "--json", str(log)]) == 0
    shown = json.loads(capsys.readouterr().out)["segments"]
    assert not any("zqalice" in each["text"] for each in shown)
    assert [each["place"] for each in shown if each["channel"] == "redacted"] == ["line 2"]
    assert main(["traces", "import", "--explain", "--no-redact", str(log)]) == 0
    assert "zqalice" in capsys.readouterr().out


def test_without_the_library_the_command_that_installs_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    claude_log(tmp_path, "a")
    for name in [name for name in sys.modules if name.partition(".")[0] == "detect_secrets"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "detect_secrets", None)
    assert main(["traces", "import", "log.jsonl", "-o", "out.jsonl"]) == 2
    message, tip = error_of(capsys.readouterr().err)
    assert message == "--redact needs detect-secrets, which is not installed"
    assert "redact" in tip and tip.endswith("--no-redact keeps the text as it is")
    assert not Path("out.jsonl").exists()
    assert main(["traces", "import", "log.jsonl", "-o", "out.jsonl", "--no-redact"]) == 0


@pytest.mark.parametrize(
    "piece",
    ["eyJ", "://", "a@", "//a/:", "password=", "-----BEGIN PRIVATE KEY", "/home/", "sk-", "k", "A.", "Cookie: "],
)
def test_a_long_text_takes_linear_time(piece: str) -> None:
    def seconds(length: int) -> float:
        start = time.process_time()
        find_secrets(piece * (length // len(piece)), KNOWN)
        return time.process_time() - start

    short, long = seconds(40_000), seconds(160_000)
    assert long < 0.5 or long < 8 * short
