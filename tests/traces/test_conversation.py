"""Recorded conversations in a policy's tokens: those of the model's own chat template for the same messages."""

from __future__ import annotations

import json
import re
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from chat_models import SMOLLM2_TEMPLATE, make_llama3
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from echo_cli.config.model import ConversationConfig, ModelConfig
from echo_cli.errors import EchoError
from echo_cli.models.chat_renderer import ChatRenderer
from echo_cli.models.hf.chat_template import _edges
from echo_cli.models.hf.random_qwen3 import make_random_qwen3
from echo_cli.models.hf.renderer import load_hf_renderer
from echo_cli.trace import Trace, parse_trace, trace_line
from echo_cli.traces.builder import ImportOptions
from echo_cli.traces.recognition import format_named
from echo_cli.traces.retokenize import render_trace
from echo_cli.trajectory import SCAFFOLD, Role, Trajectory

Chat = list[dict[str, Any]]
FAMILIES = ("qwen3", "llama3", "smollm2")
THOUGHT = "<think>\nplan\n</think>\n\n"

WORDS = st.lists(st.sampled_from(["a", "ls -la", "日本", " ", "\n", "  b", "{", '"x"', "é", "\r\n", "\t"]), max_size=4)
TEXT = WORDS.map("".join)
SPOKEN = TEXT.filter(str.strip)
ARGUMENTS = st.sampled_from(['{"b":  1.50, "a": "é\\n"}', "{}", '{"a": 1, "a": [2]}', '{\n "x": "<b> "}'])
TOOLS = st.lists(
    st.sampled_from([{"type": "function", "function": {"name": n, "z": 1, "a": "é"}} for n in "fg"]), max_size=2
)


class Model:
    """A tokenizer with a chat template, its renderers, and what transformers makes of messages."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.theirs = AutoTokenizer.from_pretrained(folder)
        self.renderers: dict[str, ChatRenderer] = {}

    def renderer(self, **conversation: Any) -> ChatRenderer:
        key = json.dumps(conversation)
        if key not in self.renderers:
            model = ModelConfig(kind="hf", path=str(self.folder))
            found = load_hf_renderer(self.folder, model, ConversationConfig(**conversation))
            assert isinstance(found, ChatRenderer)
            self.renderers[key] = found
        return self.renderers[key]

    def text(self, messages: Chat, tools: Any = None, **options: Any) -> str:
        text: str = self.theirs.apply_chat_template(
            messages, tools=tools or None, tokenize=False, date_string="26 Jul 2024", **options
        )
        return text

    def ids(self, text: str) -> list[int]:
        ids: list[int] = self.theirs(text, add_special_tokens=False)["input_ids"]
        return ids


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    folders = {name: tmp_path_factory.mktemp(name) for name in FAMILIES}
    make_random_qwen3(folders["qwen3"], 0)
    make_llama3(folders["llama3"])
    make_random_qwen3(folders["smollm2"], 0)
    (folders["smollm2"] / "chat_template.jinja").write_text(SMOLLM2_TEMPLATE)
    return {name: Model(folder) for name, folder in folders.items()}


def imported(record: Any, folder: Path, name: str = "openai") -> Trace:
    path = folder / "a.json"
    path.write_text(json.dumps(record))
    (found,) = format_named(name).read(path, ImportOptions())
    assert isinstance(found, Trace), found
    assert parse_trace(trace_line(found)) == found
    return found


def call(number: int, arguments: str = "{}") -> dict[str, Any]:
    return {"id": f"c{number}", "type": "function", "function": {"name": "f", "arguments": arguments}}


@st.composite
def chats(draw: st.DrawFn, calls: int = 2, thoughts: bool = True) -> Chat:
    """Draw messages in any order: several users, neighbours of one role, parallel calls with some of their answers."""
    chat: Chat = [{"role": "system", "content": draw(TEXT)}] if draw(st.booleans()) else []
    chat.append({"role": "user", "content": draw(TEXT)})
    number = 0
    for role in draw(st.lists(st.sampled_from(["user", "assistant", "assistant"]), min_size=1, max_size=5)):
        if role == "user":
            chat.append({"role": "user", "content": draw(TEXT)})
            continue
        made = [call(number + place, draw(ARGUMENTS)) for place in range(draw(st.integers(0, calls)))]
        number += len(made)
        words = (THOUGHT if thoughts and draw(st.booleans()) else "") + draw(SPOKEN if not made else TEXT)
        chat.append({"role": "assistant", "content": words, **({"tool_calls": made} if made else {})})
        answered = draw(st.permutations(made))[: draw(st.integers(0, len(made)))]
        chat += [{"role": "tool", "tool_call_id": of["id"], "content": draw(TEXT)} for of in answered]
    spoken = any(message["role"] == "assistant" for message in chat)
    return chat if spoken else [*chat, {"role": "assistant", "content": "x"}]


def turns(chat: Chat) -> Chat:
    """Return the messages with neighbouring messages of the assistant as one."""
    joined: Chat = []
    for role, run in groupby(chat, key=lambda message: message["role"]):
        if role != "assistant":
            joined += run
            continue
        messages = list(run)
        made = [of for message in messages for of in message.get("tool_calls", [])]
        words = "\n".join(message["content"] for message in messages if message["content"])
        joined.append({"role": "assistant", "content": words, **({"tool_calls": made} if made else {})})
    return joined


def check(model: Model, made: Trajectory, text: str) -> None:
    """Check that a trajectory has the template's tokens, and that its targets are the environment's and the agent's."""
    assert "".join(segment.text for segment in made.segments) == text
    assert made.token_ids == model.ids(text)
    ends = model.renderer().stop_ids
    assert len(made.turns) == sum(segment.role is Role.ACTION for segment in made.segments)
    assert all(segment.token_ids[-1] in ends for segment in made.segments if segment.role is Role.ACTION)
    assert made.segments[0].role is Role.CONTEXT


BUDGET = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


@BUDGET
@given(chats(), TOOLS)
def test_qwen3_sees_a_recorded_chat_as_its_template_writes_it(
    models: dict[str, Model], tmp_path: Path, chat: Chat, tools: Chat
) -> None:
    model = models["qwen3"]
    made = render_trace(imported({"messages": chat, "tools": tools}, tmp_path), model.renderer())
    check(model, made, model.text(turns(chat), tools))


@BUDGET
@given(chats(calls=1), TOOLS)
def test_llama3_sees_a_recorded_chat_as_its_template_writes_it(
    models: dict[str, Model], tmp_path: Path, chat: Chat, tools: Chat
) -> None:
    model, expected = models["llama3"], turns(chat)
    made = render_trace(imported({"messages": chat, "tools": tools}, tmp_path), model.renderer())
    called = [message for message in expected if "tool_calls" in message]
    if all(len(message["tool_calls"]) == 1 for message in called):
        for message in called:  # the template takes arguments as an object
            (of,) = message["tool_calls"]
            message["tool_calls"] = [{"function": {"name": "f", "arguments": json.loads(of["function"]["arguments"])}}]
    else:  # it refuses several calls at once, so calls are text
        expected = [as_words(message) for message in expected]
    check(model, made, model.text(expected, tools))


@BUDGET
@given(chats(), TOOLS)
def test_smollm2_sees_a_recorded_chat_as_its_template_writes_it(
    models: dict[str, Model], tmp_path: Path, chat: Chat, tools: Chat
) -> None:
    model = models["smollm2"]
    made = render_trace(imported({"messages": chat, "tools": tools}, tmp_path), model.renderer())
    check(model, made, model.text([as_words(message) for message in turns(chat)], tools))


def as_words(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message whose tool calls are part of its content, in this project's form."""
    blocks = [
        f'<tool_call>\n{{"arguments": {of["function"]["arguments"]}, "name": "f"}}\n</tool_call>\n'
        for of in message.get("tool_calls", [])
    ]
    if not blocks:
        return message
    words = f"{message['content']}\n" if message["content"] else ""
    return {"role": "assistant", "content": (words + "".join(blocks)).removesuffix("\n")}


# --- Thinking --------------------------------------------------------------------------------------------------------

INLINE: Chat = [
    {"role": "user", "content": "Run the job."},
    {"role": "assistant", "content": "<think>\nplan one\n</think>\n\nls"},
    {"role": "user", "content": "Format error, retry."},
    {"role": "assistant", "content": "<think>\nplan two\n</think>\n\npwd"},
]


def without_thoughts(chat: Chat) -> Chat:
    return [{**message, "content": message["content"].split("</think>\n\n")[-1]} for message in chat]


def test_thinking_is_kept_as_the_template_keeps_it(models: dict[str, Model], tmp_path: Path) -> None:
    made = render_trace(imported(INLINE, tmp_path), models["qwen3"].renderer(thinking="keep"))
    check(models["qwen3"], made, models["qwen3"].text(INLINE))
    written = [segment.text for segment in made.segments if segment.role is Role.ACTION]
    assert written == ["ls<|im_end|>", "<think>\nplan two\n</think>\n\npwd<|im_end|>"]
    assert [turn.command for turn in made.turns] == ["ls", "pwd"]  # as in a rollout


def test_dropped_thinking_is_seen_by_no_turn(models: dict[str, Model], tmp_path: Path) -> None:
    made = render_trace(imported(INLINE, tmp_path), models["qwen3"].renderer(thinking="drop"))
    check(models["qwen3"], made, models["qwen3"].text(without_thoughts(INLINE)))
    assert "plan" not in "".join(segment.text for segment in made.segments)


def test_forbidden_thinking_is_one_empty_block_before_each_action(models: dict[str, Model], tmp_path: Path) -> None:
    model = models["qwen3"]
    made = render_trace(imported(INLINE, tmp_path), model.renderer(thinking="forbid"))
    header = "<|im_start|>assistant\n"
    expected = model.text(without_thoughts(INLINE), enable_thinking=False).replace(
        f"{header}ls", f"{header}<think>\n\n</think>\n\nls"
    )
    check(model, made, expected)
    assert expected.count("<think>") == 2
    written = [segment.text for segment in made.segments if segment.role is Role.ACTION]
    assert written == ["ls<|im_end|>", "pwd<|im_end|>"]


# --- Roles -----------------------------------------------------------------------------------------------------------


def test_a_token_of_the_output_and_the_template_is_no_target(models: dict[str, Model], tmp_path: Path) -> None:
    model = models["qwen3"]
    chat = [
        {"role": "user", "content": "go"},
        {"role": "assistant", "content": None, "tool_calls": [call(0), call(1)]},
        {"role": "tool", "tool_call_id": "c0", "content": "one\n"},
        {"role": "tool", "tool_call_id": "c1", "content": "<|im_end|> [cut] two"},
    ]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(chat))
    (trace,) = format_named("openai").read(path, ImportOptions(warning=r"\[cut\]"))
    assert isinstance(trace, Trace)
    made = render_trace(trace, model.renderer())
    end_of_turn = model.renderer().stop_ids[0]
    told = [(segment.role, segment.text) for segment in made.segments if segment.channel == "tool_result"]
    newline = "\n" if len(model.ids("\n\n")) > 1 else ""  # else the newline is a token with the template's own
    assert told == [
        (Role.ENV_OUTPUT, f"one{newline}"),
        (Role.ENV_OUTPUT, "<|im_end|> "),
        (Role.WARNING, "[cut]"),
        (Role.ENV_OUTPUT, " two"),
    ]
    # Three turns end: the user's, the action and the answers. What an answer spells ends none.
    assert made.token_ids.count(end_of_turn) == 3
    scaffold = [segment for segment in made.segments if segment.channel == SCAFFOLD]
    assert all(segment.role is Role.CONTEXT for segment in scaffold)


@given(st.lists(st.sampled_from(["<tool_response>", "</tool_response>", " ", "\n", "\u3000", "a", "<"]), max_size=7))
def test_a_placeholder_keeps_the_edges_for_which_templates_test(parts: list[str]) -> None:
    text = "".join(parts)
    edges = _edges(text)
    pattern = r"(\s*(?:<tool_response>\s*)?)(.*?)((?:\s*</tool_response>)?\s*)"
    match = re.fullmatch(pattern, text, re.DOTALL)
    assert match is not None and edges == match.groups()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_message_of_marks_and_spaces_alone_is_as_the_template_writes_it(
    models: dict[str, Model], tmp_path: Path, family: str
) -> None:
    model, opening, closing = models[family], "<tool_response>", "</tool_response>"
    marks = (opening, closing, f"{opening}{closing}", f"{opening} \n{closing}", f"{opening}{opening}", " ", "\n\n\n")
    for text in (f"{before}{core}{after}" for core in marks for before in ("", "\n ") for after in ("", " ", "\n")):
        for answered in ([], [{"role": "assistant", "content": "x"}]):
            chat = [{"role": "user", "content": "go"}, {"role": "assistant", "content": "a"}]
            chat += [{"role": "user", "content": text}, *answered]
            made = render_trace(imported(chat, tmp_path), model.renderer())
            # The marks are the user's text, so they are not the tokens of these names.
            assert "".join(segment.text for segment in made.segments) == model.text(chat)
            assert {model.theirs.convert_tokens_to_ids(mark) for mark in (opening, closing)}.isdisjoint(made.token_ids)


def test_a_long_run_of_spaces_in_an_answer_takes_linear_time(models: dict[str, Model], tmp_path: Path) -> None:
    chat = [
        {"role": "user", "content": "go"},
        {"role": "assistant", "content": "Now.", "tool_calls": [call(0)]},
        {"role": "tool", "tool_call_id": "c0", "content": f"x{' ' * 200_000}y"},  # half an hour in quadratic time
    ]
    made = render_trace(imported(chat, tmp_path), models["qwen3"].renderer())
    check(models["qwen3"], made, models["qwen3"].text(chat))


def test_neighbours_of_one_role_are_one_turn_and_thinking_alone_is_no_action(
    models: dict[str, Model], tmp_path: Path
) -> None:
    used = {"type": "tool_use", "id": "t1", "name": "Bash", "input": {"command": "ls"}}
    blocks = [
        *({"type": "thinking", "thinking": "h", "signature": "x"}, {"type": "text", "text": "Looking."}, used),
    ]
    result = {"type": "tool_result", "tool_use_id": "t1", "content": "a"}
    record = [
        {"role": "user", "content": "q"},
        *({"role": "assistant", "content": [block]} for block in blocks),
        {"role": "user", "content": [result]},
        {"role": "assistant", "content": "One file."},
        {"role": "user", "content": "Thanks."},
        {"role": "assistant", "content": [blocks[0]]},
    ]
    trace = imported({"messages": record}, tmp_path, "anthropic")
    call_text = '<tool_call>\n{"arguments": {"command": "ls"}, "name": "Bash"}\n</tool_call>'
    assert [turn.command for turn in trace.turns] == [f"Looking.\n{call_text}", "One file."]
    made = render_trace(trace, models["qwen3"].renderer())
    of = {"type": "function", "function": {"name": "Bash", "arguments": {"command": "ls"}}}
    expected = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "Looking.", "tool_calls": [of]},
        {"role": "tool", "content": "a"},
        {"role": "assistant", "content": "One file."},
        {"role": "user", "content": "Thanks."},
    ]
    check(models["qwen3"], made, models["qwen3"].text(expected))
    inline = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": THOUGHT},
        {"role": "assistant", "content": "a"},
    ]
    assert [turn.command for turn in imported(inline, tmp_path).turns] == ["a"]


def test_a_template_that_cannot_write_a_chat_is_named_with_the_task(models: dict[str, Model], tmp_path: Path) -> None:
    source = models["smollm2"].theirs.chat_template.replace(
        "{% for", "{% if messages | length > 9 %}{{ raise_exception('too long') }}{% endif %}{% for", 1
    )
    template = tmp_path / "short.jinja"
    template.write_text(source)
    config = ModelConfig(kind="hf", path="here", chat_template=str(template))
    renderer = load_hf_renderer(models["smollm2"].folder, config, ConversationConfig())
    record = {"task_id": "long", "messages": [*INLINE, *INLINE, *INLINE]}
    with pytest.raises(EchoError, match=r"the trace of task long: the chat template fails .*: too long") as refused:
        render_trace(imported(record, tmp_path), renderer)
    assert refused.value.tip


def test_a_configured_system_message_and_reply_role_apply_to_a_chat_without_its_own(
    models: dict[str, Model], tmp_path: Path
) -> None:
    model = models["smollm2"]
    chat = [
        {"role": "user", "content": "go"},
        {"role": "assistant", "content": "Now.", "tool_calls": [call(0)]},
        {"role": "tool", "tool_call_id": "c0", "content": "one"},
    ]
    made = render_trace(imported(chat, tmp_path), model.renderer(system="Mine.", reply_as="user"))
    said, answer = as_words(chat[1]), {"role": "user", "content": "one"}
    check(model, made, model.text([{"role": "system", "content": "Mine."}, chat[0], said, answer]))
    own = [{"role": "system", "content": "Own."}, *chat]
    made = render_trace(imported(own, tmp_path), model.renderer(system="Mine."))
    check(model, made, model.text([*own[:2], said, {"role": "tool", "content": "one"}]))
