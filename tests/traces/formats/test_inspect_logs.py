"""Logs of Inspect AI: archives and documents, a trace per sample and epoch, rewards of the first scorer."""

from __future__ import annotations

import copy
import json
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from sampled_chats import Turn, expected, left_out, reasoning_bytes, recorded, turns

from echo_cli.errors import EchoError
from echo_cli.trace import Trace
from echo_cli.traces.builder import ImportOptions, Refusal
from echo_cli.traces.conversation import openai_record
from echo_cli.traces.formats.harnesses.inspect import read
from echo_cli.traces.importing import import_traces
from echo_cli.traces.recognition import recognise
from echo_cli.trajectory import Role

EVALUATION = {"task": "sums", "task_id": "t1", "model": "mockllm/model", "dataset": {"samples": 1}}
CALL = {"id": "c1", "type": "function", "function": "add", "arguments": {"x": 1, "y": 2}}
SAMPLE: dict[str, Any] = {
    "id": "first",
    "epoch": 1,
    "input": "1 + 2?",
    "target": "3",
    "messages": [
        {"id": "m1", "role": "system", "content": "Be brief."},
        {"id": "m2", "role": "user", "source": "input", "content": "1 + 2?"},
        {"id": "m3", "role": "assistant", "source": "generate", "content": "I add.", "tool_calls": [CALL]},
        {"id": "m4", "role": "tool", "tool_call_id": "c1", "function": "add", "content": "3\r\n"},
        {
            "id": "m5",
            "role": "assistant",
            "content": [{"type": "reasoning", "reasoning": "Hm."}, {"type": "text", "text": "It is 3."}],
        },
    ],
    "scores": {"includes": {"value": "C", "answer": "3"}, "match": {"value": "I"}},
    "events": [{"event": "sample_init"}, {"event": "model", "tools": [{"name": "add"}]}],
    "attachments": {},
}


def log(*samples: Any) -> dict[str, Any]:
    return {"version": 2, "status": "success", "eval": EVALUATION, "plan": {}, "samples": list(samples)}


def changed(*path: Any, value: Any) -> dict[str, Any]:
    sample = copy.deepcopy(SAMPLE)
    place: Any = sample
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return sample


def archive(path: Path, *samples: Any, header: str = "header.json") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("_journal/summaries/1.json", "[]")
        for number, sample in enumerate(samples):
            file.writestr(f"samples/{number}_epoch_1.json", json.dumps(sample))
        file.writestr(header, json.dumps({"version": 2, "status": "started", "eval": EVALUATION}))
    return path


def found(path: Path, *, strict: bool = False) -> list[Trace | Refusal]:
    return list(read(path, ImportOptions(strict=strict)))


def only(tmp_path: Path, sample: Any) -> Trace:
    path = tmp_path / "log.json"
    path.write_text(json.dumps(log(sample), indent=1))
    (trace,) = found(path)
    assert isinstance(trace, Trace), trace
    return trace


def test_a_sample_becomes_a_trace(tmp_path: Path) -> None:
    trace = only(tmp_path, SAMPLE)
    assert [(s.role.name.lower(), s.channel, s.text) for s in trace.segments] == [
        ("context", "system", "Be brief.\n"),
        ("context", "tools", '<tools>\n{"name": "add"}\n</tools>\n'),
        ("context", "user", "1 + 2?\n"),
        (
            "action",
            None,
            'I add.\n<tool_call>\n{"arguments": {"x": 1, "y": 2}, "name": "add"}\n</tool_call>\n',
        ),
        ("context", "wrapper", "<tool_response>\n"),
        ("env_output", "tool_result", "3\r\n"),
        ("context", "wrapper", "\n</tool_response>\n"),
        ("action", None, "It is 3.\n"),
    ]
    assert (trace.task_id, trace.reward) == ("sums:first", 1.0)
    assert (trace.meta["epoch"], trace.meta["model"], left_out(trace)) == (1, "mockllm/model", {"reasoning": 3})
    messages = openai_record(trace)["messages"]
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "tool", "assistant"]


@pytest.mark.parametrize(
    ("value", "reward"),
    [("C", 1.0), ("I", 0.0), ("P", 0.5), ("N", 0.0), (0.25, 0.25), (True, 1.0), ("good", None), ({"a": 1}, None)],
)
def test_the_reward_is_the_first_scorers_value(tmp_path: Path, value: Any, reward: float | None) -> None:
    assert only(tmp_path, changed("scores", "includes", "value", value=value)).reward == reward


def test_an_archive_has_a_trace_for_every_sample_and_epoch(tmp_path: Path) -> None:
    second = changed("epoch", value=2)
    path = archive(tmp_path / "a.eval", SAMPLE, second, {"id": "dead", "messages": []})
    assert recognise(path).name == "inspect"
    first, again, refusal = found(path)
    assert isinstance(first, Trace) and isinstance(again, Trace)
    assert (first.meta["epoch"], again.meta["epoch"], first.segments == again.segments) == (1, 2, True)
    assert refusal == Refusal(f"{path}: samples/2_epoch_1.json", "a sample without messages")
    unfinished = archive(tmp_path / "b.eval", SAMPLE, header="_journal/start.json")
    assert recognise(unfinished).name == "inspect"
    assert found(unfinished) == [first]


def test_a_document_is_recognised_and_another_archive_is_not(tmp_path: Path) -> None:
    (tmp_path / "log.json").write_text(json.dumps(log(SAMPLE), indent=1))
    assert recognise(tmp_path / "log.json").name == "inspect"
    other = archive(tmp_path / "other.zip", SAMPLE, header="notes.json")
    with pytest.raises(EchoError, match="zip"):
        recognise(other)
    assert "header.json" in str(found(other))


def zstandard_archive(path: Path) -> Path:
    """Write an archive whose members are compressed with zstd, which zipfile cannot write."""
    zstandard = pytest.importorskip("zstandard")
    whole = {name: json.dumps(of).encode() for name, of in (("samples/a.json", SAMPLE), ("header.json", log()))}
    with zipfile.ZipFile(path, "w") as file:
        for name, text in whole.items():
            file.writestr(name, zstandard.compress(text))
    data = bytearray(path.read_bytes())
    for name, text in whole.items():
        central = data.rindex(name.encode()) - 46
        local = struct.unpack_from("<L", data, central + 42)[0]
        for method, crc, size in ((local + 8, local + 14, local + 22), (central + 10, central + 16, central + 24)):
            struct.pack_into("<H", data, method, 93)
            struct.pack_into("<L", data, crc, zlib.crc32(text))
            struct.pack_into("<L", data, size, len(text))
    path.write_bytes(data)
    return path


def test_archives_with_zstd_are_read(tmp_path: Path) -> None:
    assert found(zstandard_archive(tmp_path / "a.eval")) == [only(tmp_path, SAMPLE)]


def test_a_damaged_archive_is_one_line_and_writes_nothing(tmp_path: Path) -> None:
    path = zstandard_archive(tmp_path / "a.eval")
    whole = path.read_bytes()
    path.write_bytes(whole.replace(whole[60:70], b"\0" * 10))
    for cut in (path, tmp_path / "b.eval"):
        if cut != path:
            cut.write_bytes(whole[:200])
        with pytest.raises(EchoError, match="zip data is damaged"):
            import_traces("auto", [cut], tmp_path / "out.jsonl", ImportOptions())
        assert not (tmp_path / "out.jsonl").exists()


def test_a_document_cut_in_the_middle_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "log.json"
    text = json.dumps(log(SAMPLE), indent=1)
    path.write_text(text[: len(text) // 2])
    (refusal,) = found(path)
    assert isinstance(refusal, Refusal) and "not JSON" in refusal.reason


def test_a_failed_call_is_its_error_and_what_inspect_wrote_is_warning(tmp_path: Path) -> None:
    def answer(**more: Any) -> list[tuple[Role, str | None, str]]:
        trace = only(tmp_path, changed("messages", 3, value={**SAMPLE["messages"][3], **more}))
        return [(s.role, s.channel, s.text) for s in trace.segments[5:-2]]

    tool = answer(content="partial", error={"type": "unknown", "message": "no such file"})
    assert tool == [(Role.ENV_OUTPUT, "tool_error", "no such file")]
    assert answer(error={"type": "timeout", "message": "too slow"}) == [(Role.WARNING, "tool_error", "too slow")]
    head = "\nThe output of your call to add was too long to be displayed.\nHere is a truncated version:\n"
    head, tail = f"{head}<START_TOOL_OUTPUT>\n", "\n<END_TOOL_OUTPUT>\n"
    assert answer(content=f"{head}1\n2{tail}") == [
        (Role.WARNING, "truncation", head),
        (Role.ENV_OUTPUT, "tool_result", "1\n2"),
        (Role.WARNING, "truncation", tail),
    ]


def test_attachments_are_put_back_and_a_lost_one_is_left_out(tmp_path: Path) -> None:
    key = "0123456789abcdef" * 2
    sample = changed("messages", 3, "content", value=f"attachment://{key}")
    sample["attachments"] = {key: "a long text"}
    assert only(tmp_path, sample).turns[0].output == "a long text"
    sample["attachments"] = {}
    assert left_out(only(tmp_path, sample)) == {"a part that is not text: 'attachment'": 0, "reasoning": 3}


@pytest.mark.parametrize(
    ("sample", "reason"),
    [
        (changed("messages", 3, "tool_call_id", value="c9"), "a tool answer without an open tool call"),
        (changed("messages", 2, "tool_calls", 0, "id", value=None), "a tool call without an id or a function"),
        (changed("messages", value=None), "a sample without messages"),
        (changed("messages", 1, "role", value="judge"), "a message of unknown role: 'judge'"),
        (changed("messages", 1, "content", value=[{"type": "image"}]), "a part that is not text: 'image'"),
    ],
)
def test_what_has_no_place_is_refused_when_strict(tmp_path: Path, sample: Any, reason: str) -> None:
    path = tmp_path / "log.json"
    path.write_text(json.dumps(log(sample), indent=1))
    (refusal,) = found(path, strict=True)
    assert isinstance(refusal, Refusal)
    assert reason in refusal.reason


def messages_of(chat: list[Turn]) -> list[dict[str, Any]]:
    """Write a conversation as Inspect does."""
    messages: list[dict[str, Any]] = []
    for turn in chat:
        calls = [
            {"id": call.call_id, "type": "function", "function": call.name, "arguments": call.arguments}
            for call in turn.calls
        ]
        content = [{"type": "reasoning", "reasoning": turn.reasoning}, {"type": "text", "text": turn.words}]
        messages += [{"role": "user", "content": turn.user}]
        messages += [{"role": "assistant", "content": content, **({"tool_calls": calls} if calls else {})}]
        messages += [
            {"role": "tool", "tool_call_id": call.call_id, "function": call.name, "content": call.output}
            for call in turn.calls
        ]
    return messages


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chat=turns())
def test_every_byte_of_a_sample_is_in_one_segment_or_left_out(tmp_path: Path, chat: list[Turn]) -> None:
    trace = only(tmp_path, {**SAMPLE, "messages": messages_of(chat)})
    assert recorded(trace) == expected(chat)
    assert left_out(trace) == {"reasoning": reasoning_bytes(chat)}
