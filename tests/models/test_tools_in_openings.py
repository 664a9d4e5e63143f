"""Tools in the opening of an episode: in the template's own form, or as text where the format has none."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from chat_models import CHATML_TEMPLATE, Canned, make_llama3

from echo_cli.config.model import ConversationConfig, ModelConfig
from echo_cli.environments.tasks import Task
from echo_cli.environments.tool_text import tools_text
from echo_cli.errors import EchoError
from echo_cli.models.architecture import model_folder
from echo_cli.models.hf.random_qwen3 import make_random_qwen3
from echo_cli.models.hf.renderer import load_hf_renderer
from echo_cli.models.renderer import PlainRenderer, Renderer, tools_tokens
from echo_cli.models.tokenizer import TOKENIZER_FILE, Tokenizer
from echo_cli.rollouts.episode import Episode
from echo_cli.rollouts.limits import EpisodeLimits
from echo_cli.trajectory import Role, Segment

TASK = Task("t", "train", "family", {})
QUESTION = "Count them."
LIMITS = EpisodeLimits(action_tokens=200, output_tokens=1000, episode_tokens=10_000)
PLAIN = PlainRenderer(Tokenizer.load(model_folder("tiny-base") / TOKENIZER_FILE))


def tool(name: str, description: str, **properties: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": list(properties)[:1]}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


# The description has what JSON escapes.
READ = tool("read_query", 'Run a "SELECT".\nNothing else.', query={"type": "string"}, rows={"type": "integer"})


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    qwen3 = tmp_path_factory.mktemp("qwen3")
    make_random_qwen3(qwen3, 0)
    return {"qwen3": qwen3, "llama3": make_llama3(tmp_path_factory.mktemp("llama3"))}


def load(folder: Path, template: Path | None = None) -> Renderer:
    chosen = {} if template is None else {"chat_template": str(template)}
    return load_hf_renderer(folder, ModelConfig(kind="hf", path="here", **chosen), ConversationConfig())


def opened(renderer: Renderer, tools: Sequence[Any]) -> tuple[list[int], list[Segment]]:
    """Return the tokens and the segments of an episode's opening."""
    episode = Episode(renderer, Canned(QUESTION), TASK, "g", LIMITS, tools)
    return asyncio.run(episode.reset()).token_ids, episode.segments


@pytest.mark.parametrize("family", ["qwen3", "llama3"])
def test_a_template_writes_the_tools_in_its_own_form(family: str, folders: dict[str, Path]) -> None:
    from transformers import AutoTokenizer

    def template_ids(**options: Any) -> list[int]:
        tokenizer = AutoTokenizer.from_pretrained(folders[family])
        ids: list[int] = tokenizer.apply_chat_template(
            [{"role": "user", "content": QUESTION}],
            **{"tokenize": True, "return_dict": False, "add_generation_prompt": True, "date_string": "26 Jul 2024"},
            **options,
        )
        return ids

    renderer = load(folders[family])
    sequence, segments = opened(renderer, (READ,))
    assert sequence == template_ids(tools=[READ])
    assert {segment.role for segment in segments} == {Role.CONTEXT}
    assert opened(renderer, ())[0] == template_ids()
    assert tools_tokens(renderer, (READ,)) == len(sequence) - len(template_ids())


@pytest.mark.parametrize("fails", ["", "{% if tools %}{{ raise_exception('no tools') }}{% endif %}"])
def test_tools_are_text_where_a_template_has_no_form_for_them(
    fails: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    file = tmp_path / "chatml.jinja"
    file.write_text(CHATML_TEMPLATE + fails)
    renderer = load(folders["qwen3"], file)
    header, listed = renderer.opening((READ,)).before
    assert (header,) == renderer.opening().before
    assert (listed.role, listed.channel, listed.text) == (Role.CONTEXT, "tools", tools_text((READ,)))
    assert renderer.opening((READ,)).after == renderer.opening().after


def test_a_plain_opening_begins_with_bos_and_the_tools() -> None:
    sequence, (tools, question) = opened(PLAIN, (READ,))
    assert sequence[0] == PLAIN.start_ids[0] and sequence.count(PLAIN.start_ids[0]) == 1
    assert (tools.channel, tools.role, question.text) == ("tools", Role.CONTEXT, QUESTION)
    assert opened(PLAIN, ())[0] == [PLAIN.start_ids[0], *question.token_ids]


def test_the_text_of_tools_has_a_line_each_with_the_types_of_the_arguments() -> None:
    sort = tool("sort", "x" * 100 + ". " + "y" * 100 + ". Z.", by={"enum": ["name", "size"]}, of={"type": "array"})
    assert tools_text((READ, sort, tool("now", ""))).splitlines() == [
        "tools:",
        'read_query(query: string, rows?: integer): Run a "SELECT". Nothing else.',
        f'sort(by: "name" | "size", of?: list of anything): {"x" * 100}.',
        "now()",
        'call one with <tool_call>{"name": NAME, "arguments": {ARGUMENT: VALUE}}</tool_call>',
    ]
    assert tools_text(()) == ""


def test_tools_that_leave_no_room_are_refused_and_others_lower_the_caps() -> None:
    limits = EpisodeLimits(action_tokens=20, output_tokens=50, episode_tokens=400)
    tokens = tools_tokens(PLAIN, (READ,))
    assert limits.within(2000, PLAIN.overhead, tokens) == limits
    with pytest.raises(EchoError, match="the list of tools takes 390 tokens: an episode needs") as error:
        limits.within(2000, PLAIN.overhead, 390)
    assert error.value.tip and "environment.mcp.allow" in error.value.tip
    longest = limits.longest(PLAIN.overhead, 300)
    lowered = limits.within(longest - 10, PLAIN.overhead, 300)
    assert lowered.longest(PLAIN.overhead, 300) <= longest - 10 and lowered != limits
    with pytest.raises(EchoError, match=r"does not fit in the model's context of 300 tokens: .* for the list of tools"):
        limits.within(300, PLAIN.overhead, 250)
