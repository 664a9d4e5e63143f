"""Export of traces: messages that survive import and export unchanged, and masks that are right token by token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import echo_cli
from echo_cli.models.renderer import PlainRenderer
from echo_cli.models.tokenizer import Tokenizer
from echo_cli.trace import Trace, TraceSegment
from echo_cli.traces.builder import ImportOptions, json_text, said, tool_call
from echo_cli.traces.conversation import calls_of, openai_record
from echo_cli.traces.exporting import MASKS, made_masks, own_masks
from echo_cli.traces.recognition import format_named
from echo_cli.trajectory import SCAFFOLD, Role, Turn

RENDERER = PlainRenderer(Tokenizer.load(Path(echo_cli.__file__).parent / "models" / "tiny_base" / "tokenizer.json"))

TEXT = st.text(max_size=20) | st.sampled_from(["<tool_response>\n", "a\r\n", "\n", "\0", "🦊", "<tool_call>\n{}\n"])
# Content that ends in a canonical tool call would be exported as that call.
WORDS = TEXT.filter(lambda text: not calls_of(f"{text}\n")[1])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner, max_size=2),
    max_leaves=4,
)
ARGUMENTS = st.dictionaries(TEXT, VALUES, max_size=3)
JSON = ARGUMENTS.map(json_text) | ARGUMENTS.map(lambda of: json.dumps(of, indent=1)) | st.just('{"a": 1, "a":2.50}')


def trace(*segments: TraceSegment, meta: dict[str, Any] | None = None) -> Trace:
    actions = [segment for segment in segments if segment.role is Role.ACTION]
    turns = tuple(Turn(s.text.removesuffix("\n"), "", None, valid_action=True, clean_parse=True) for s in actions)
    return Trace("t", segments, turns, meta=meta or {})


def said_by(role: Role, text: str, channel: str | None = None) -> TraceSegment:
    return TraceSegment(role, text, channel)


@st.composite
def conversations(draw: st.DrawFn) -> dict[str, Any]:
    """Draw a canonical conversation whose tools answer in any order, or not at all."""
    messages: list[dict[str, Any]] = [
        {"role": role, "content": draw(TEXT)}
        for role in draw(st.lists(st.sampled_from(["system", "user"]), max_size=2))
    ]
    number = 0
    for _ in range(draw(st.integers(1, 3))):
        ids = [f"id {number + extra}" for extra in range(draw(st.integers(0, 3)))]
        number += len(ids)
        calls = [
            {
                "id": call,
                "type": "function",
                "function": {"name": draw(TEXT), "arguments": draw(JSON)},
            }
            for call in ids
        ]
        words = draw(WORDS if calls else WORDS.filter(str.strip))
        message = {"role": "assistant", "content": words}
        messages.append({**message, "content": words or None, "tool_calls": calls} if calls else message)
        for call in draw(st.permutations(ids))[: draw(st.integers(0, 3))]:
            messages.append({"role": "tool", "tool_call_id": call, "content": draw(TEXT)})
        # Neighbouring assistant messages would come back as one.
        silent = messages[-1]["role"] == "assistant"
        messages += [{"role": "user", "content": draw(TEXT)}] * draw(st.integers(int(silent), 1))
    tools = draw(st.lists(ARGUMENTS, max_size=2))
    reward = draw(st.none() | st.floats(allow_nan=False, allow_infinity=False))
    record = {"messages": messages, "tools": tools, "reward": reward}
    return {name: value for name, value in record.items() if value not in (None, [])}


@settings(deadline=None)
@given(conversations())
def test_a_canonical_conversation_comes_back_as_it_went_in(
    tmp_path_factory: pytest.TempPathFactory, record: dict[str, Any]
) -> None:
    path = tmp_path_factory.mktemp("a") / "a.jsonl"
    path.write_text(json.dumps(record) + "\n")
    (found,) = format_named("openai").read(path, ImportOptions())
    assert isinstance(found, Trace), found
    assert openai_record(found) == record


@settings(deadline=None)
@given(WORDS, st.lists(st.tuples(TEXT, JSON), max_size=3))
def test_calls_are_read_from_an_action_as_they_were_written(words: str, calls: list[tuple[str, str]]) -> None:
    left, found = calls_of(said(words, [tool_call(name, of) for name, of in calls]))
    assert (left, [(call.name, call.arguments) for call in found]) == (words, calls)


def test_a_call_of_an_earlier_version_is_read() -> None:
    block = '<tool_call>\n{"arguments": {"b": "\\u00e9"}, "name": "\\u00e9"}\n</tool_call>\n'
    (call,) = calls_of(block)[1]
    assert (call.name, call.arguments, call.text) == ("é", '{"b": "\\u00e9"}', block)


@pytest.mark.parametrize(
    "action",
    [
        '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>\n',  # keys in another order
        '<tool_call>\n{"arguments": {}, "name": 3}\n</tool_call>\n',
        "<tool_call>\nls\n</tool_call>\n",
        "<tool_call>\n[]\n</tool_call>\n",
        'x<tool_call>\n{"arguments": {}, "name": "f"}\n</tool_call>\n',
        '<tool_call>\n{"arguments": {}, "name": "f"}\n</tool_call>\nbye\n',
        "</tool_call>\n\n</tool_call>\n",
    ],
)
def test_a_call_that_is_not_canonical_stays_text(action: str) -> None:
    assert calls_of(action) == (action.removesuffix("\n"), [])


def test_a_transcript_of_a_terminal_is_of_a_user_and_an_assistant() -> None:
    made = trace(
        said_by(Role.CONTEXT, "<|im_start|>", SCAFFOLD),
        said_by(Role.CONTEXT, "task: count\n$ "),
        said_by(Role.ACTION, "wc -l a\n"),
        said_by(Role.ENV_OUTPUT, "3\n", "stdout"),
        said_by(Role.WARNING, "[exit 0]\n"),
        said_by(Role.CONTEXT, "$ "),
        said_by(Role.ACTION, "answer: 3"),
        said_by(Role.ENV_OUTPUT, "bye\n"),
    )
    assert openai_record(made) == {
        "messages": [
            {"role": "user", "content": "task: count\n$ "},
            {"role": "assistant", "content": "wc -l a"},
            {"role": "user", "content": "3\n[exit 0]\n$ "},
            {"role": "assistant", "content": "answer: 3"},
            {"role": "user", "content": "bye\n"},
        ]
    }


def test_an_answer_to_what_is_no_call_is_the_users_and_ids_that_do_not_fit_are_not_taken() -> None:
    opened, closed = (said_by(Role.CONTEXT, tag, "wrapper") for tag in ("<tool_response>\n", "\n</tool_response>\n"))
    answer = (opened, said_by(Role.ENV_OUTPUT, "x", "tool_result"), closed)
    call = said_by(Role.ACTION, tool_call("f", {}))
    made = trace(call, *answer, *answer, opened, meta={"tool_calls": ["a", "b"], "tool_responses": ["a"]})
    calls, tool, *users = openai_record(made)["messages"]
    assert calls["tool_calls"][0]["id"] == tool["tool_call_id"] == "call_0"
    assert users == [
        {"role": "user", "content": "<tool_response>\nx\n</tool_response>\n"},
        {"role": "user", "content": "<tool_response>\n"},
    ]


def test_masks_in_a_traces_own_tokens() -> None:
    made = trace(
        TraceSegment(Role.CONTEXT, "$ ", token_ids=(1, 2)),
        TraceSegment(Role.ENV_OUTPUT, "motd", token_ids=(3,)),
        TraceSegment(Role.ACTION, "ls", token_ids=(4, 5)),
        TraceSegment(Role.ENV_OUTPUT, "a", token_ids=(6,)),
        TraceSegment(Role.WARNING, "!", token_ids=(7,)),
        TraceSegment(Role.CONTEXT, "$ ", token_ids=(2,)),
    )
    assert made.has_token_ids
    assert own_masks(made) == [
        {
            "task_id": "t",
            "reward": None,
            "prompt_token_ids": [1, 2, 3],
            "completion_token_ids": [4, 5, 6, 7, 2],
            "completion_masks": [1, 1, 0, 0, 0],
            "completion_observation_masks": [0, 0, 1, 0, 0],
            "completion_warning_masks": [0, 0, 0, 1, 0],
        }
    ]


def test_thinking_that_was_dropped_has_a_record_of_its_own() -> None:
    made = trace(
        TraceSegment(Role.CONTEXT, "q", token_ids=(1,)),
        TraceSegment(Role.ACTION, "hm a", token_ids=(8, 9, 2), logprobs=(-1.0, -1.0, -1.0), transient=2),
        TraceSegment(Role.ENV_OUTPUT, "x", token_ids=(3,)),
        TraceSegment(Role.ACTION, "b", token_ids=(4,), logprobs=(-1.0,)),
    )
    seen, thought = own_masks(made)
    assert (seen["completion_token_ids"], seen["completion_masks"]) == ([2, 3, 4], [0, 0, 1])
    assert seen["completion_observation_masks"] == [0, 1, 0]
    assert (thought["completion_token_ids"], thought["completion_masks"]) == ([8, 9, 2], [1, 1, 1])
    assert sum(thought["completion_observation_masks"]) == 0


ROLES = st.sampled_from([Role.CONTEXT, Role.ACTION, Role.ENV_OUTPUT, Role.WARNING])


@settings(deadline=None)
@given(st.lists(st.tuples(ROLES, st.text(max_size=8)), min_size=1, max_size=6))
def test_masks_in_a_configs_tokens_cover_each_role_once(parts: list[tuple[Role, str]]) -> None:
    made = trace(*(said_by(role, f"{text}\n") for role, text in parts))
    record, decode = made_masks(made, RENDERER), RENDERER.tokenizer.decode
    completion, masks = record["completion_token_ids"], [record[name] for name in MASKS.values()]
    assert all(sum(flags) <= 1 for flags in zip(*masks, strict=True)) and {len(mask) for mask in masks} == {
        len(completion)
    }
    first = next((number for number, (role, _) in enumerate(parts) if role is Role.ACTION), len(parts))
    assert decode(record["prompt_token_ids"][1:]) == "".join(f"{text}\n" for _, text in parts[:first])
    for (role, _), mask in zip(MASKS.items(), masks, strict=True):
        chosen = [token for token, flag in zip(completion, mask, strict=True) if flag]
        assert decode(chosen) == "".join(f"{text}\n" for of, text in parts[first:] if of is role)
