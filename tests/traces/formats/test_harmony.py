"""OpenAI's Harmony format: its text and its library's messages give the same roles."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from sampled_chats import Turn, expected, left_out, reasoning_bytes, recorded, turns

from echo_cli.errors import EchoError
from echo_cli.trace import Trace, without_thinking
from echo_cli.traces.builder import ImportOptions, Refusal
from echo_cli.traces.conversation import openai_record
from echo_cli.traces.formats.chats.harmony import read
from echo_cli.traces.importing import import_traces
from echo_cli.traces.recognition import recognise
from echo_cli.trajectory import Role

SYSTEM = "Reasoning: high\n\n# Valid channels: analysis, commentary, final."
PROMPT = (
    f"<|start|>system<|message|>{SYSTEM}<|end|><|start|>developer<|message|># Instructions\n\nBe brief.<|end|>\n"
    "<|start|>user<|message|>The price?<|end|><|start|>assistant"
)
COMPLETION = (
    "<|channel|>analysis<|message|>Hmm.<|end|><|start|>assistant<|channel|>commentary<|message|>I look.<|end|>"
    '<|start|>assistant<|channel|>commentary to=functions.price <|constrain|>json<|message|>{"of":  "X"}<|call|>'
    "<|start|>functions.price to=assistant<|channel|>commentary<|message|>185\r\n<|end|>"
    "<|start|>assistant to=python<|channel|>analysis code<|message|>print(1)<|call|>"
    "<|start|>python to=assistant<|channel|>analysis<|message|>1<|end|>"
    "<|start|>assistant<|channel|>final<|message|>It is 185.<|return|>"
)
OPEN, CLOSE = ("context", "wrapper", "<tool_response>\n"), ("context", "wrapper", "\n</tool_response>\n")
EPISODE = [
    ("context", "system", f"{SYSTEM}\n"),
    ("context", "developer", "# Instructions\n\nBe brief.\n"),
    ("context", "user", "The price?\n"),
    ("action", None, 'I look.\n<tool_call>\n{"arguments": {"of":  "X"}, "name": "price"}\n</tool_call>\n'),
    *(OPEN, ("env_output", "tool_result", "185\r\n"), CLOSE),
    ("action", None, '<tool_call>\n{"arguments": "print(1)", "name": "python"}\n</tool_call>\n'),
    *(OPEN, ("env_output", "tool_result", "1"), CLOSE),
    ("action", None, "It is 185.\n"),
]


def text_part(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def message(role: str, text: str, name: str | None = None, **more: Any) -> dict[str, Any]:
    return {"role": role, "name": name, "content": [text_part(text)], **more}


def found(path: Path, *, strict: bool = False) -> list[Trace | Refusal]:
    return list(read(path, ImportOptions(strict=strict)))


def only(tmp_path: Path, record: Any, *, strict: bool = False) -> Trace:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(record, indent=1))
    (trace,) = found(path, strict=strict)
    assert isinstance(trace, Trace), trace
    return trace


def roles(trace: Trace) -> list[tuple[str, str | None, str]]:
    return [(s.role.name.lower(), s.channel, s.text) for s in trace.segments]


@pytest.mark.parametrize(
    "record",
    [
        {"text": PROMPT + COMPLETION},
        {"prompt": PROMPT, "completion": COMPLETION},
        {"prompt": PROMPT, "response": COMPLETION},
        {"text": f"{PROMPT}{COMPLETION}<|start|>assistant"},
        {"text": f"{PROMPT}{COMPLETION}<|start|>assistant<|channel|>final"},
    ],
)
def test_a_text_has_the_roles_of_its_headers(tmp_path: Path, record: dict[str, Any]) -> None:
    trace = only(tmp_path, {"id": 7, "reward": 1, **record}, strict=True)
    assert roles(trace) == EPISODE
    assert (trace.task_id, trace.reward, left_out(trace)) == ("7", 1.0, {"reasoning": 4})
    assert recognise(tmp_path / "a.json").name == "harmony"
    answers = [each["content"] for each in openai_record(trace)["messages"] if each["role"] == "tool"]
    assert answers == ["185\r\n", "1"]


def test_a_file_of_text_is_one_conversation(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes((PROMPT + COMPLETION).encode())
    assert recognise(path).name == "harmony"
    (trace,) = found(path, strict=True)
    assert isinstance(trace, Trace) and roles(trace) == EPISODE
    path.write_bytes(b"<|start|>user<|message|>\xff")
    assert found(path) == [Refusal(str(path), "not UTF-8")]


def test_a_completion_alone_is_the_assistants(tmp_path: Path) -> None:
    assert roles(only(tmp_path, {"completion": COMPLETION})) == EPISODE[3:]


def test_the_librarys_messages_have_the_same_roles(tmp_path: Path) -> None:
    functions = {"name": "functions", "tools": [{"name": "price", "description": "Looks."}]}
    developer = {"type": "developer_content", "instructions": "Be brief.", "tools": {"functions": functions}}
    chat = [
        {"role": "system", "content": [{"type": "system_content", "reasoning_effort": "High"}]},
        {"role": "developer", "content": [developer]},
        message("user", "The price?"),
        message("assistant", "Hmm.", channel="analysis"),
        message("assistant", "I look.", channel="commentary"),
        message("assistant", '{"of":  "X"}', channel="commentary", recipient="functions.price", content_type="json"),
        message("tool", "185\r\n", "functions.price", channel="commentary", recipient="assistant"),
        message("assistant", "print(1)", channel="analysis", recipient="python", content_type="code"),
        message("tool", "1", "python"),
        message("assistant", "It is 185.", channel="final"),
    ]
    trace = only(tmp_path, {"messages": chat}, strict=True)
    assert roles(trace) == [
        ("context", "system", '{"reasoning_effort": "High"}\n'),
        ("context", "developer", "Be brief.\n"),
        ("context", "tools", '<tools>\n{"name": "price", "description": "Looks."}\n</tools>\n'),
        *EPISODE[2:],
    ]
    assert recognise(tmp_path / "a.json").name == "harmony"


@pytest.mark.parametrize(
    ("tail", "reason"),
    [
        ("<|start|>user<|message|>a<|end|>oops", "text outside of messages"),
        ("<|start|>functions.other<|message|>a<|end|>", "belongs to no open call"),
        ("<|start|>assistant to=functions.f<|message|>{<|call|>", "the arguments of a tool call are not JSON"),
        ("<|start|><|message|>a<|end|>", "a message without an author"),
    ],
)
def test_what_has_no_place_is_refused_when_strict(tmp_path: Path, tail: str, reason: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"text": PROMPT + COMPLETION + tail}))
    (refusal,) = found(path, strict=True)
    assert isinstance(refusal, Refusal)
    assert reason in refusal.reason


def test_other_text_is_left_out_with_its_bytes(tmp_path: Path) -> None:
    trace = only(tmp_path, {"text": f"oops é{PROMPT}{COMPLETION}"})
    assert left_out(trace) == {"text outside of messages": 7, "reasoning": 4}
    assert [s.text for s in trace.segments if s.role is Role.ENV_OUTPUT] == ["185\r\n", "1"]


def test_a_cut_file_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text((json.dumps({"text": PROMPT + COMPLETION}) + "\n") * 2)
    path.write_text(path.read_text()[:-20])
    with pytest.raises(EchoError, match="not JSON"):
        import_traces("auto", [path], tmp_path / "out.jsonl", ImportOptions())
    assert not (tmp_path / "out.jsonl").exists()


def written(chat: list[Turn]) -> tuple[str, list[dict[str, Any]]]:
    """Write a conversation as Harmony text, and as the library's messages."""
    messages = []
    for turn in chat:
        messages += [message("user", turn.user), message("assistant", turn.reasoning, channel="analysis")]
        messages += [message("assistant", turn.words, channel="commentary")]
        for call in turn.calls:
            arguments = json.dumps(call.arguments, ensure_ascii=False)
            messages += [message("assistant", arguments, channel="commentary", recipient=f"functions.{call.name}")]
        messages += [message("tool", call.output, f"functions.{call.name}") for call in turn.calls]
    text = ""
    for each in messages:
        recipient = f" to={each['recipient']}" if "recipient" in each else ""
        channel = f"<|channel|>{each['channel']}" if "channel" in each else ""
        end = "<|call|>" if recipient else "<|end|>"
        author = each["name"] or each["role"]
        text += f"<|start|>{author}{channel}{recipient}<|message|>{each['content'][0]['text']}{end}"
    return text, messages


def spoken(turn: Turn) -> bool:
    """Return whether the words of a turn, a message of their own, are an action."""
    return bool(without_thinking(turn.words).strip())


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chat=turns())
def test_every_byte_of_a_conversation_is_in_one_segment_or_left_out(tmp_path: Path, chat: list[Turn]) -> None:
    text, messages = written(chat)
    for record in ({"text": text}, {"messages": messages}):
        trace = only(tmp_path, record)
        assert recorded(trace) == expected([replace(turn, words=turn.words if spoken(turn) else "") for turn in chat])
        blank = {"an assistant's message without words": sum(len(of.words.encode()) for of in chat if not spoken(of))}
        assert left_out(trace) == {"reasoning": reasoning_bytes(chat), **(blank if any(blank.values()) else {})}
