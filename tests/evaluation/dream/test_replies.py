"""Generated replies: where they end, and exact replies from a model that has memorised the episode."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from chat_models import CHATML_TEMPLATE, make_llama3
from hf_models import RENDERER, TOKENIZER
from memory_lm import MemoryModel

from echo_cli.concurrency import EventLoop
from echo_cli.config.environment import ObservationRule
from echo_cli.config.model import ConversationConfig, ModelConfig
from echo_cli.config.schema import Config, OptimConfig
from echo_cli.environments.toy import ToyWorlds, toy_settings
from echo_cli.errors import EchoError
from echo_cli.evaluation.dream.generation import TrueReply, dream, true_replies
from echo_cli.evaluation.dream.replies import ReplyForm, reply_form
from echo_cli.evaluation.dream.scoring import score_reply
from echo_cli.evaluation.dream.session import Answer, DreamPlay, DreamSettings, Notice, Opening
from echo_cli.models.hf.random_qwen3 import make_random_qwen3
from echo_cli.models.hf.renderer import load_hf_renderer
from echo_cli.models.loading import load_policy
from echo_cli.models.policy import TorchPolicy
from echo_cli.models.renderer import Renderer
from echo_cli.rollouts.limits import EpisodeLimits
from echo_cli.rollouts.rollout import play_scripts
from echo_cli.traces.retokenize import retokenize
from echo_cli.trajectory import Trajectory, Turn

ScoredReply = tuple[bool | None, float | None, bool | None, bool | None]
LIMITS = EpisodeLimits(action_tokens=64, output_tokens=400, episode_tokens=1500)
SETTINGS = toy_settings(9)
# Output, no output, stderr with an exit status, exit status only, several lines.
COMMANDS = ("ls /", "cat /none", "grep zzz /etc/passwd", "frob", "ls /srv", "wc -l /srv/registry.csv")


@pytest.fixture(scope="module")
def played() -> list[Trajectory]:
    worlds = ToyWorlds([0], [], 9)
    scripts = [(task, [*COMMANDS[turn:], *COMMANDS[:turn]]) for turn, task in enumerate(worlds.tasks.train[:3])]
    return play_scripts(RENDERER, worlds, scripts, LIMITS, "explorer")


def renderers(folder: Path) -> dict[str, Renderer]:
    """A plain renderer and one per chat family; only `tool` has scaffold text between a reply and its mark."""
    qwen3, llama3 = folder / "qwen3", make_llama3(folder)
    qwen3.mkdir()
    make_random_qwen3(qwen3, 0)
    template = folder / "chatml.jinja"
    template.write_text(CHATML_TEMPLATE)
    model = ModelConfig(kind="hf", path="here")
    bare = ModelConfig(kind="hf", path="here", chat_template=str(template))
    return {
        "plain": RENDERER,
        "tool": load_hf_renderer(qwen3, model, ConversationConfig()),
        "user": load_hf_renderer(qwen3, bare, ConversationConfig(reply_as="user")),
        "llama3": load_hf_renderer(llama3, model, ConversationConfig()),
    }


@pytest.fixture(scope="module")
def all_renderers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Renderer]:
    return renderers(tmp_path_factory.mktemp("renderers"))


@pytest.fixture(params=["plain", "tool", "user", "llama3"])
def renderer(request: pytest.FixtureRequest, all_renderers: dict[str, Renderer]) -> Renderer:
    return all_renderers[request.param]


def memory(renderer: Renderer, sequences: Sequence[Sequence[int]], max_length: int = 4096) -> TorchPolicy:
    vocabulary = renderer.tokenizer.vocab_size
    otherwise = renderer.tokenizer.encode("x")[0]
    model = MemoryModel(sequences, vocabulary, otherwise, max_length)
    return TorchPolicy(model, renderer, OptimConfig(), torch.device("cpu"))


def asked(trajectories: Sequence[Trajectory], renderer: Renderer, form: ReplyForm) -> list[TrueReply]:
    return [reply for trajectory in trajectories for reply in true_replies(trajectory, renderer, form)]


def test_a_policy_that_knows_the_transcripts_by_heart_is_exact(played: list[Trajectory], renderer: Renderer) -> None:
    form = reply_form(renderer, SETTINGS)
    written = [retokenize(trajectory, renderer) for trajectory in played]
    found = asked(written, renderer, form)
    # A transcript ends with its last reply; in a conversation, the end of the turn follows.
    after = [token for segment in renderer.reply(()).after for token in segment.token_ids]
    policy = memory(renderer, [[*trajectory.token_ids, *after] for trajectory in written])
    replies = dream(policy, form, [true.context for true in found], [500] * len(found))
    assert {true.turn.exit_code for true in found} == {0, 1, 2, 127}
    assert [reply.text for reply in replies] == [true.text for true in found]
    for true, reply in zip(found, replies, strict=True):
        score = score_reply(reply, true, form)
        assert (score.exact_match, score.edit_similarity, score.exit_status, score.ended) == (True, 1.0, True, True)
        assert (score.exact_match_at_length, score.edit_similarity_at_length) == (True, 1.0)
        assert score.exit_status_at_length is True


def test_what_a_reply_gets_wrong_is_told_apart(played: list[Trajectory]) -> None:
    form = reply_form(RENDERER, SETTINGS)
    true = next(true for true in asked(played, RENDERER, form) if true.turn.command == "frob")
    assert true.text == "sh: frob: command not found\n[exit 127]\n"

    def scored(text: str, cap: int = 100) -> ScoredReply:
        policy = memory(RENDERER, [[*true.context, *TOKENIZER.encode(text)]])
        (reply,) = dream(policy, form, [true.context], [cap])
        score = score_reply(reply, true, form)
        return score.exact_match, score.edit_similarity, score.exit_status, score.ended

    said = "sh: frob: command not found\n"
    assert scored(f"{said}[exit 127]\n$ ls\n") == (True, 1.0, True, True)
    assert scored(f"{said}[exit 1]\n$ ls\n") == (True, 1.0, False, True)
    assert scored(f"{said}$ ls\n") == (True, 1.0, False, True)  # an unstated exit status is 0
    assert scored("sh: frob: command not fun\n[exit 127]\n$ ") == (False, 1 - 2 / 28, True, True)
    assert scored("$ ") == (False, 0.0, False, True)
    # A `$` within a line, or at the start of a line without a space after it, does not end a reply.
    assert scored("costs 3$ \n$HOME\n[exit 127]\n$ ")[2:] == (True, True)
    endless = scored(f"{said}[exit 127]\n", cap=60)
    assert endless[0] is False and endless[2:] == (True, False)
    assert scored(said, cap=40)[2:] == (False, False)


def test_a_policy_that_learns_ends_ends_a_reply_with_the_token_that_it_learns(
    all_renderers: dict[str, Renderer],
) -> None:
    whole, learned = (reply_form(RENDERER, SETTINGS, learned=learned) for learned in (False, True))
    dollar, space = TOKENIZER.encode("$ ")
    assert dollar in learned.stop_ids and space not in learned.stop_ids and dollar not in whole.stop_ids
    for text, wanted in (("a\n$", "a\n"), ("$", ""), ("costs 3$ \nb\n$", "costs 3$ \nb\n"), ("a\n$HOME", "a\n")):
        found = learned.read(TOKENIZER.encode(text))
        assert (found.text, found.ended) == (wanted, True)
        assert not whole.read(TOKENIZER.encode(text)).ended
    assert not learned.read(TOKENIZER.encode("costs 3$ \nb")).ended
    blank = SETTINGS.model_copy(update={"prompt": "\n> "})  # a blank line alone is ambiguous
    form = reply_form(RENDERER, blank, learned=True)
    assert [form.read(TOKENIZER.encode(text)).ended for text in ("a\n\n", "a\n\n>", "a>")] == [False, True, False]
    for renderer in (all_renderers["tool"], all_renderers["llama3"]):  # the mark of a template is the learned end
        marks = [reply_form(renderer, SETTINGS, learned=known).mark_id for known in (False, True)]
        assert marks[0] is not None and marks[0] == marks[1]
        # The rest of a prompt before a template's scaffold is not learned, so its first token ends a reply too.
        text = renderer.tokenizer.encode("a\n$")
        ended = [reply_form(renderer, SETTINGS, learned=known).read(text).ended for known in (False, True)]
        assert ended == [False, True]


def test_a_policy_that_learns_ends_needs_no_length(played: list[Trajectory]) -> None:
    worlds, task = ToyWorlds([0], [], 9), ToyWorlds([0], [], 9).tasks.train[0]
    form = reply_form(RENDERER, SETTINGS, learned=True)
    true = next(true for true in asked(played[:1], RENDERER, form) if true.turn.command == "ls /")
    longer = "etc\nsrv\nvar\n" + "tmp\n" * 20
    limits = EpisodeLimits(action_tokens=64, output_tokens=60, episode_tokens=1500)

    def predicted(said: str) -> Answer:
        policy = memory(RENDERER, [[*true.context, *TOKENIZER.encode(said)]])
        with EventLoop() as loop:
            play = DreamPlay(policy, worlds, task, limits, form, loop, DreamSettings())
            return next(event for event in play.converse(iter(["ls /"])) if isinstance(event, Answer))

    ended = predicted(f"{longer}$")
    assert (ended.predicted, ended.ended, ended.actual) == (longer, True, true.text)
    endless = predicted(longer)  # goes on with x up to the cap: the output's cap and room for its end
    assert not endless.ended and endless.predicted.startswith(f"{longer}x")
    assert len(TOKENIZER.encode(longer)) + endless.predicted.count("x") == 60 + form.longest_end


def test_at_the_true_length_a_reply_need_not_end(played: list[Trajectory]) -> None:
    form = reply_form(RENDERER, SETTINGS)
    true = next(true for true in asked(played, RENDERER, form) if true.turn.command == "ls /")
    policy = memory(RENDERER, [[*true.context, *TOKENIZER.encode("etc\nsrv\nvar\n")]])
    (reply,) = dream(policy, form, [true.context], [50])
    score = score_reply(reply, true, form)
    assert not reply.ended and not score.exact_match and len(reply.token_ids) == 50
    assert score.exact_match_at_length and score.text_at_length == "etc\nsrv\nvar\n"


def test_a_reply_without_its_last_newline_reads_as_one_with_it() -> None:
    form = reply_form(RENDERER, SETTINGS)
    for ids in ([], [TOKENIZER.encode("x")[0]]):
        text = TOKENIZER.decode(ids)
        assert form.read([*ids, *TOKENIZER.encode("\n$ ")]).text.strip() == text
    assert form.read(TOKENIZER.encode("$ ")).text == ""


def test_without_prompt_and_scaffold_nothing_marks_the_end(all_renderers: dict[str, Renderer]) -> None:
    silent = SETTINGS.model_copy(update={"prompt": ""})
    form = reply_form(RENDERER, silent)
    assert not form.marked
    assert reply_form(all_renderers["tool"], silent).marked
    policy = memory(RENDERER, [[1, *TOKENIZER.encode("etc\n$ ls")]])
    (reply,) = dream(policy, form, [[1]], [7])
    assert (len(reply.token_ids), reply.ended) == (7, False)
    true = TrueReply(Turn("ls", "etc\n", 0, True, True), (1,), "etc\n", 2, "etc\n")
    score = score_reply(reply, true, form)
    assert (score.exact_match, score.edit_similarity, score.exit_status, score.ended) == (None, None, None, None)
    assert score.exact_match_at_length


def test_no_reply_passes_the_context_of_the_model() -> None:
    form = reply_form(RENDERER, SETTINGS)
    policy = memory(RENDERER, [], max_length=12)  # asserts inside
    replies = dream(policy, form, [[1] * 4, [1] * 11, [1] * 9], [100, 100, 2])
    assert [len(reply.token_ids) for reply in replies] == [8, 1, 2]
    with pytest.raises(EchoError, match="no room"):
        dream(policy, form, [[1] * 12], [5])


def test_a_batch_answers_as_each_alone(played: list[Trajectory]) -> None:
    policy = load_policy(Config(), torch.device("cpu"))
    form = reply_form(policy.renderer, SETTINGS)
    found = asked(played, RENDERER, form)[:8]
    caps = [6 + 3 * place for place in range(len(found))]
    together = dream(policy, form, [true.context for true in found], caps)
    alone = [dream(policy, form, [true.context], [cap])[0] for true, cap in zip(found, caps, strict=True)]
    assert together == alone
    assert dream(policy, form, [], []) == []
    seeded = [dream(policy, form, [found[0].context], [20], temperature=1.0, seed=seed) for seed in (1, 1, 2)]
    assert seeded[0] == seeded[1] != seeded[2]


def test_the_exit_status_is_told_by_the_rule_of_the_config() -> None:
    form = reply_form(RENDERER, SETTINGS)
    assert form.exit_status("a\n[exit 2]\n") == ("a\n", 2)
    assert form.exit_status("[exit -9]\n[exit 3]") == ("[exit -9]\n", 3)
    assert form.exit_status("see [exit 2]\n") == ("see [exit 2]\n", 0)
    assert form.exit_status("a\n", ended=False) == ("a\n", None)
    rule = ObservationRule(path="code", on="step", label="code: {text}\n")
    told = SETTINGS.model_copy(update={"exit_code": "code", "observation": (rule,)})
    assert reply_form(RENDERER, told).exit_status("code: 0\n") == ("", 0)
    assert reply_form(RENDERER, told).exit_status("a\n") == ("a\n", None)  # 0 is stated too
    bare = told.model_copy(update={"observation": (rule.model_copy(update={"label": ""}),)})
    assert reply_form(RENDERER, bare).status is None  # any number would match
    assert reply_form(RENDERER, SETTINGS.model_copy(update={"exit_code": None})).status is None


def test_what_is_volatile_counts_as_equal() -> None:
    form = reply_form(RENDERER, SETTINGS.model_copy(update={"volatile": (r"\d\d:\d\d",)}))
    true = TrueReply(Turn("date", "now 10:42\n", 0, True, True), (1,), "now 10:42\n", 5, "now 10:42\n")
    score = score_reply(form.read(TOKENIZER.encode("now 23:59\n$ ")), true, form)
    assert (score.exact_match, score.edit_similarity) == (True, 1.0)


def test_a_transcript_of_its_own_can_fill_the_context() -> None:
    worlds, form = ToyWorlds([0], [], 9), reply_form(RENDERER, SETTINGS)
    policy = memory(RENDERER, [], max_length=200)  # never ends a reply
    limits = EpisodeLimits(16, 20, 400)
    with EventLoop() as loop:
        task = worlds.tasks.heldout[0]
        settings = DreamSettings(max_tokens=150, closed_loop=True)
        play = DreamPlay(policy, worlds, task, limits, form, loop, settings)
        events = list(play.converse(iter(["ls /"] * 4)))
    assert [type(event) for event in events] == [Opening, Answer, Answer, Notice, Opening, Answer]
    assert isinstance(events[3], Notice) and "fills the model's context" in events[3].text


def test_in_an_open_loop_each_reply_follows_the_real_ones(played: list[Trajectory], renderer: Renderer) -> None:
    """A policy that has memorised the episode answers all of it; after a wrong reply, it continues correctly."""
    worlds, form = ToyWorlds([0], [], 9), reply_form(renderer, SETTINGS)
    written = retokenize(played[0], renderer)
    after = [token for segment in renderer.reply(()).after for token in segment.token_ids]
    policy = memory(renderer, [[*written.token_ids, *after]])
    with EventLoop() as loop:
        for closed_loop in (False, True):
            settings = DreamSettings(closed_loop=closed_loop)
            play = DreamPlay(policy, worlds, worlds.tasks.train[0], LIMITS, form, loop, settings)
            answers = [event for event in play.converse(iter(COMMANDS)) if isinstance(event, Answer)]
            exact = [answer.exact_match and answer.ended for answer in answers]
            # In its own replies, stderr and exit status are one text, whose tokens may differ from the real ones.
            assert all(exact) if not closed_loop else exact[0]
            statuses = [(answer.predicted_exit_code, answer.exit_code) for answer in answers]
            assert closed_loop or all(said == true for said, true in statuses)
