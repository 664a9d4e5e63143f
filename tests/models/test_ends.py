"""The tokens that end an output: in plain transcripts, in chat templates, and in recorded conversations."""

from __future__ import annotations

import pytest
from chat_models import CHATML_TEMPLATE, Canned, make_llama3
from hf_models import RENDERER, TOKENIZER

from echo_cli.concurrency import EventLoop
from echo_cli.config.model import ConversationConfig, ModelConfig
from echo_cli.environments.protocol import StepResult, TextPiece
from echo_cli.environments.tasks import Task
from echo_cli.models.hf.random_qwen3 import make_random_qwen3
from echo_cli.models.hf.renderer import load_hf_renderer
from echo_cli.models.renderer import Renderer, mark_ends
from echo_cli.rollouts.episode import Episode
from echo_cli.rollouts.limits import EpisodeLimits
from echo_cli.trace import Trace, TraceSegment
from echo_cli.traces.builder import wrapped
from echo_cli.traces.retokenize import render_trace
from echo_cli.trajectory import SCAFFOLD, VOLATILE, Role, Segment, Trajectory, Turn

C, A, E, W, END = Role.CONTEXT, Role.ACTION, Role.ENV_OUTPUT, Role.WARNING, Role.END
HF = ModelConfig(kind="hf", path="here")
TOOL_CALLS = 2 * '<tool_call>\n{"name": "run", "arguments": {}}\n</tool_call>\n'
WIDE = EpisodeLimits(action_tokens=200, output_tokens=1000, episode_tokens=10_000)


def plain(*parts: tuple[Role, str] | tuple[Role, str, str]) -> Trajectory:
    """Return an episode that begins with a prompt; a part is a role, a text and perhaps a channel."""
    channels = [part[2] if len(part) == 3 else None for part in parts]
    segments = [
        Segment(part[0], part[1], tuple(TOKENIZER.encode(part[1])), channel=channel)
        for part, channel in zip(parts, channels, strict=True)
    ]
    opening = Segment(C, "task\n$ ", (TOKENIZER.start_id, *TOKENIZER.encode("task\n$ ")))
    return Trajectory("task", "g", (opening, *segments), (), None, "answered", "explorer", world_model_only=True)


def ends_of(trajectory: Trajectory, renderer: Renderer = RENDERER) -> list[tuple[str, str]]:
    """Return each end with the text after the last action before it; nothing but roles may change."""
    marked = mark_ends(trajectory, renderer.tokenizer)
    assert marked.token_ids == trajectory.token_ids
    assert [s.text for s in marked.segments if s.role is E] == [s.text for s in trajectory.segments if s.role is E]
    assert "".join(s.text for s in marked.segments) == "".join(s.text for s in trajectory.segments)
    assert [r if r is not END else C for r in marked.roles] == trajectory.roles
    assert mark_ends(marked, renderer.tokenizer) == marked
    found: list[tuple[str, str]] = []
    said, before = "", C
    for segment in marked.segments:
        if segment.role is END:
            assert renderer.tokenizer.decode(list(segment.token_ids)) == segment.text
            found += [] if before is END else [(said, "")]
            found[-1] = (found[-1][0], found[-1][1] + segment.text)
        said = "" if segment.role is A else said + segment.text
        before = segment.role
    return found


def test_the_first_token_of_the_prompt_after_an_output_is_its_end() -> None:
    assert [TOKENIZER.decode([token]) for token in TOKENIZER.encode("$ ")] == ["$", " "]
    played = plain((A, "ls\n"), (E, "a\n"), (C, "$ "), (A, "cat b\n"), (E, "x\n"), (C, "$ "))
    assert ends_of(played) == [("a\n", "$"), ("x\n", "$")]
    # An episode that is over has no token after its last output.
    assert ends_of(plain((A, "ls\n"), (E, "a\n"), (C, "$ "), (A, "ls\n"), (E, "b\n"))) == [("a\n", "$")]
    assert ends_of(plain((A, "ls\n"), (E, "a\n"), (A, "ls\n"))) == []  # without a prompt


def test_an_output_ends_after_its_warnings_and_its_volatile_text() -> None:
    stated = plain((A, "ls\n"), (E, "no file\n"), (W, "[exit 1]\n"), (C, "$ "))
    assert ends_of(stated) == [("no file\n[exit 1]\n", "$")]
    times = ((E, "at "), (C, "10:42", VOLATILE), (E, " ok "), (C, "3 s\n", VOLATILE))
    assert ends_of(plain((A, "date\n"), *times, (C, "$ "))) == [("at 10:42 ok 3 s\n", "$")]
    two = plain((A, "ls\n"), (E, "a\n", "stdout"), (E, "b\n", "stderr"), (C, "$ "))
    assert ends_of(two) == [("a\nb\n", "$")]


def test_a_reply_without_output_has_no_end() -> None:
    assert ends_of(plain((A, "x\n"), (W, "[no such command]\n"), (C, "$ "))) == []
    assert ends_of(plain((A, "true\n"), (E, ""), (C, "$ "))) == []
    after = plain((A, "ls\n"), (E, "a\n"), (C, "$ "), (A, "x\n"), (W, "[refused]\n"), (C, "$ "))
    assert ends_of(after) == [("a\n", "$")]


def test_context_within_a_reply_ends_the_output_before_it() -> None:
    board = ((E, "a\n"), (C, "3 turns left\n", "turns"), (E, "b\n"))
    assert ends_of(plain((A, "ls\n"), *board, (C, "$ "))) == [("a\n", "3"), ("a\n3 turns left\nb\n", "$")]


def test_white_space_before_the_end_is_ambiguous_and_belongs_to_it() -> None:
    assert ends_of(plain((A, "ls\n"), (E, "a"), (C, "\n$ "))) == [("a", "\n$")]
    assert ends_of(plain((A, "ls\n"), (E, "a"), (C, "\n \n"))) == [("a", "\n \n")]


# --- Chat templates --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Renderer]:
    folder = tmp_path_factory.mktemp("chat")
    qwen3, template = folder / "qwen3", folder / "chatml.jinja"
    qwen3.mkdir()
    make_random_qwen3(qwen3, 0)
    template.write_text(CHATML_TEMPLATE)
    bare = ModelConfig(kind="hf", path="here", chat_template=str(template))
    return {
        "tool": load_hf_renderer(qwen3, HF, ConversationConfig()),
        "user": load_hf_renderer(qwen3, bare, ConversationConfig(reply_as="user")),
        "llama3": load_hf_renderer(make_llama3(folder), HF, ConversationConfig()),
    }


def played_in(renderer: Renderer, *replies: tuple[TextPiece, ...]) -> Trajectory:
    episode = Episode(
        renderer, Canned("task", *(StepResult(pieces) for pieces in replies)), Task("t", "train", "f", {}), "g", WIDE
    )
    with EventLoop() as loop:
        loop.run(episode.reset())
        for _ in replies:
            loop.run(episode.act(renderer.script("ls"), None))
        return loop.run(episode.finish("explorer", verify=False, world_model_only=True))


@pytest.mark.parametrize(
    ("family", "end"), [("tool", "\n</tool_response>"), ("user", "<|im_end|>"), ("llama3", "<|eot_id|>")]
)
def test_scaffold_ends_an_output_up_to_its_first_token_that_no_text_contains(
    chat: dict[str, Renderer], family: str, end: str
) -> None:
    renderer = chat[family]
    a, b, refused = TextPiece(E, "a\n</tool_response>\n"), TextPiece(E, "b"), TextPiece(W, "[no]\n")
    found = ends_of(played_in(renderer, (a,), (refused,), (b,)), renderer)
    # The turn after the last output was not played, so nothing of it is in the transcript.
    assert [text for _, text in found] == [end]
    prompted = ends_of(played_in(renderer, (a, TextPiece(C, "$ ")), (b,)), renderer)
    assert [text for _, text in prompted] == ["$", end]  # the rest of the prompt is not learned


def test_every_result_of_a_recorded_conversation_ends(chat: dict[str, Renderer]) -> None:
    calls = (TraceSegment(A, TOOL_CALLS), *wrapped([TraceSegment(E, "a\n", "tool_result")]))
    more = wrapped([TraceSegment(E, "b", "tool_result")])
    turn = Turn("{}", "a\nb", None, True, True)
    segments = (TraceSegment(C, "task\n"), *calls, *more, TraceSegment(A, "done"))
    trace = Trace("t", segments, (turn, Turn("done", "", None, True, True)))
    # The template's newline and the output's are one token, which belongs to the end.
    ends = [end for _, end in ends_of(render_trace(trace, chat["tool"]), chat["tool"])]
    assert ends == ["\n\n</tool_response>", "\n</tool_response>"]
    assert [end for _, end in ends_of(render_trace(trace, RENDERER))] == ["\n<"] * 2


def test_a_scaffold_without_such_a_token_ends_as_a_prompt() -> None:
    scaffold = Segment(C, "\n# next\n", tuple(TOKENIZER.encode("\n# next\n")), channel=SCAFFOLD)
    played = plain((A, "ls\n"), (E, "a"))
    played = Trajectory("t", "g", (*played.segments, scaffold), (), None, "unknown", "trace")
    assert ends_of(played) == [("a", "\n#")]
