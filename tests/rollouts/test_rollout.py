"""Rollouts: tokens have the role of their text, sampled ids are stored as sampled, and no observation is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from canned_worlds import CannedWorlds
from hypothesis import given, settings
from hypothesis import strategies as st

import echo_cli
from echo_cli.environments.protocol import StepResult, TextPiece
from echo_cli.environments.tasks import Task
from echo_cli.environments.toy import ToyWorlds
from echo_cli.errors import EchoError
from echo_cli.models.renderer import PlainRenderer
from echo_cli.models.tokenizer import Tokenizer
from echo_cli.rollouts.episode import Episode, Following, cut_pieces
from echo_cli.rollouts.limits import EpisodeLimits
from echo_cli.rollouts.rollout import play_policy, play_scripts
from echo_cli.trajectory import CUT_ACTION, CUT_OUTPUT, Role, Trajectory

C, A, E, W = Role.CONTEXT, Role.ACTION, Role.ENV_OUTPUT, Role.WARNING
TOKENIZER = Tokenizer.load(Path(echo_cli.__file__).parent / "models" / "tiny_base" / "tokenizer.json")
PLAIN = PlainRenderer(TOKENIZER)
NEWLINE = TOKENIZER.newline_ids[0]
TASK = Task("t", "train", "family", {})
WIDE = EpisodeLimits(action_tokens=50, output_tokens=1000, episode_tokens=10_000)
PROMPT = TextPiece(C, "$ ")


class Canned:
    """An environment that returns the given replies in order, and records its calls."""

    grader = None

    def __init__(self, *replies: StepResult) -> None:
        self._replies = list(replies)
        self.actions: list[str] = []
        self.verified = 0
        self.closed = 0

    async def reset(self, task: Task) -> tuple[TextPiece, ...]:
        return (TextPiece(C, f"task: {task.task_id}\n$ "),)

    async def step(self, action: str, problem: str | None = None) -> StepResult:
        self.actions.append(action)
        return self._replies[len(self.actions) - 1]

    async def verify(self) -> float:
        self.verified += 1
        return 0.75

    async def close(self) -> None:
        self.closed += 1


class Forced:
    """A sampler that returns given token ids, action by action, from one list of actions per row."""

    def __init__(self, actions: Sequence[Sequence[Sequence[int]]]) -> None:
        self._actions = [list(row) for row in actions]
        self.context: list[list[int]] = [[] for _ in actions]
        self.kept: list[list[int]] = []

    def append(self, token_lists: Sequence[Sequence[int]]) -> None:
        for context, tokens in zip(self.context, token_lists, strict=True):
            context.extend(tokens)

    def sample(self, max_tokens: int, rows: Sequence[int] | None = None) -> list[tuple[list[int], list[float]]]:
        samples = []
        for row in range(len(self._actions)) if rows is None else rows:
            ids = list(self._actions[row].pop(0))
            self.context[row].extend(ids)
            samples.append((ids, [-0.5 - i for i in range(len(ids))]))
        return samples

    def keep(self, rows: Sequence[int]) -> None:
        self.kept.append(list(rows))
        self._actions = [self._actions[row] for row in rows]
        self.context = [self.context[row] for row in rows]

    def add(self, rollouts: Sequence[int]) -> None:
        raise AssertionError("all episodes are seated from the start")


def output(text: str, *, done: bool = False) -> StepResult:
    return StepResult((TextPiece(E, text, "stdout"), *(() if done else (PROMPT,))), done, 0, capped=done)


def typed(text: str) -> list[int]:
    return [*TOKENIZER.encode(text), NEWLINE]


def play(
    environment: Canned,
    actions: Sequence[Sequence[int]],
    limits: EpisodeLimits = WIDE,
    verify: bool = True,
    training: bool = False,
) -> Trajectory:
    sampler = Forced([actions])
    worlds = CannedWorlds(environment)
    (trajectory,) = play_policy(
        lambda _: sampler, PLAIN, worlds, [(TASK, "g")], limits, verify=verify, training=training
    )
    return trajectory


def shown(trajectory: Trajectory) -> list[tuple[Role, str]]:
    return [(segment.role, segment.text) for segment in trajectory.segments]


def text_of(trajectory: Trajectory, role: Role) -> list[str]:
    return [segment.text for segment in trajectory.segments if segment.role is role]


# --- Roles -----------------------------------------------------------------------------------------------------------


def test_each_piece_keeps_its_role_its_text_and_its_channel() -> None:
    reply = StepResult(
        (
            TextPiece(E, "out\n", "stdout"),
            TextPiece(E, "err\n", "stderr"),
            TextPiece(W, "[exit 1]\n", "exit_status"),
            PROMPT,
        ),
        exit_code=1,
    )
    trajectory = play(Canned(reply, StepResult((), done=True)), [typed("ls"), typed("answer: x")])
    assert shown(trajectory) == [
        (C, "task: t\n$ "),
        (A, "ls\n"),
        (E, "out\n"),
        (E, "err\n"),
        (W, "[exit 1]\n"),
        (C, "$ "),
        (A, "answer: x\n"),
    ]
    assert [segment.channel for segment in trajectory.segments][2:5] == ["stdout", "stderr", "exit_status"]
    assert trajectory.token_ids[0] == TOKENIZER.bos_id and TOKENIZER.bos_id not in trajectory.token_ids[1:]
    assert len(trajectory.roles) == len(trajectory.token_ids) == len(trajectory)
    assert [turn.output for turn in trajectory.turns] == ["out\nerr\n", ""]


AWKWARD = [
    *("", " ", "\n", "\n\n leading\n", "a\r\nb\r\n", "no newline at the end"),
    *("emoji \U0001f680\U0001f469\u200d\U0001f467\n", "日本語のログ\n", "e\u0301\u200b\ufeff\x00\x1b[31m", "\ufffd"),
    *("<bos><pad>\n", "$ ", "task: t\n$ ", "[output cut]\n", "[exit 1]\n", "answer: x\n"),
]


@pytest.mark.parametrize("text", AWKWARD)
def test_awkward_output_is_env_output_and_nothing_else(text: str) -> None:
    trajectory = play(Canned(output(text), StepResult((), done=True)), [typed("ls"), typed("answer: x")])
    assert shown(trajectory)[2:4] == [(E, text), (C, "$ ")]
    segment = trajectory.segments[2]
    assert TOKENIZER.decode(list(segment.token_ids)) == text
    assert TOKENIZER.bos_id not in segment.token_ids and TOKENIZER.pad_id not in segment.token_ids


@given(st.lists(st.tuples(st.sampled_from([C, E, W]), st.text(max_size=8)), max_size=5))
@settings(max_examples=60, deadline=None)
def test_no_token_straddles_two_roles(pieces: list[tuple[Role, str]]) -> None:
    reply = StepResult(tuple(TextPiece(role, text) for role, text in pieces), done=True)
    trajectory = play(Canned(reply), [typed("ls")])
    assert shown(trajectory)[2:] == pieces
    for segment in trajectory.segments[1:]:
        assert TOKENIZER.decode(list(segment.token_ids)) == segment.text
    assert trajectory.count(E) == sum(len(TOKENIZER.encode(text)) for role, text in pieces if role is E)


def test_equal_outputs_are_kept_each_time() -> None:
    trajectory = play(Canned(output("same\n"), output("same\n"), output("same\n", done=True)), [typed("ls")] * 3)
    assert text_of(trajectory, E) == ["same\n"] * 3


# --- Actions ---------------------------------------------------------------------------------------------------------


def test_sampled_ids_and_logprobs_are_stored_as_sampled() -> None:
    # "l" and "s" are two tokens here; encoding the text would give one.
    ids = [*TOKENIZER.encode("l"), *TOKENIZER.encode("s"), *TOKENIZER.encode(" "), *TOKENIZER.encode("/"), NEWLINE]
    assert TOKENIZER.encode(TOKENIZER.decode(ids)) != ids
    environment = Canned(output("x\n", done=True))
    trajectory = play(environment, [ids])
    action = trajectory.segments[1]
    assert action.token_ids == tuple(ids)
    assert action.logprobs == tuple(-0.5 - i for i in range(len(ids)))
    assert environment.actions == ["ls /"]


def test_half_a_character_in_an_action_keeps_its_ids() -> None:
    rocket = TOKENIZER.encode("🚀")
    assert len(rocket) > 1
    ids = [*TOKENIZER.encode("cat "), rocket[0], NEWLINE]
    environment = Canned(output("x\n", done=True))
    trajectory = play(environment, [ids])
    assert trajectory.segments[1].token_ids == tuple(ids)
    assert environment.actions == ["cat \ufffd"]


def test_a_sampled_special_token_stays_an_action_token() -> None:
    ids = [TOKENIZER.bos_id, TOKENIZER.pad_id, NEWLINE]
    environment = Canned(output("x\n", done=True))
    trajectory = play(environment, [ids])
    assert trajectory.segments[1].token_ids == tuple(ids)
    assert environment.actions == ["<bos><pad>"]
    assert trajectory.roles[-len(trajectory.segments[2].token_ids) - 3 :][:3] == [A, A, A]


def test_an_empty_line_is_an_action() -> None:
    environment = Canned(StepResult((PROMPT,), exit_code=0), output("x\n", done=True))
    trajectory = play(environment, [[NEWLINE], typed("ls")])
    assert environment.actions == ["", "ls"]
    assert trajectory.count(A) == 1 + len(typed("ls"))


def test_a_cut_action_gets_a_notice_and_never_reaches_the_environment() -> None:
    environment = Canned()
    trajectory = play(environment, [TOKENIZER.encode("cat /etc/x and on and on")])
    assert environment.actions == []
    assert shown(trajectory)[1:] == [(A, "cat /etc/x and on and on"), (W, CUT_ACTION)]
    assert trajectory.stop_reason == "length_cap"
    (turn,) = trajectory.turns
    assert (turn.valid_action, turn.clean_parse, turn.parse, turn.exit_code) == (False, False, "malformed", None)
    assert trajectory.count(E) == 0


# --- Caps and endings ------------------------------------------------------------------------------------------------


def test_a_long_output_is_cut_with_a_visible_notice() -> None:
    text = "0123456789" * 5
    limits = EpisodeLimits(action_tokens=50, output_tokens=20, episode_tokens=10_000)
    trajectory = play(Canned(output(text), output("short\n", done=True)), [typed("cat /f"), typed("ls")], limits)
    assert shown(trajectory)[2:5] == [(E, text[:20]), (W, CUT_OUTPUT), (C, "$ ")]
    assert len(trajectory.segments[2].token_ids) == 20
    assert trajectory.turns[0].output == text[:20]
    assert text_of(trajectory, W) == [CUT_OUTPUT]


def test_an_output_of_exactly_the_cap_is_not_cut() -> None:
    limits = EpisodeLimits(action_tokens=50, output_tokens=20, episode_tokens=10_000)
    trajectory = play(Canned(output("01234567890123456789", done=True)), [typed("cat /f")], limits)
    assert text_of(trajectory, W) == [] and trajectory.count(E) == 20


@pytest.mark.parametrize("missing", [1, 2, 3])
def test_an_output_is_cut_before_a_character_and_never_inside_it(missing: int) -> None:
    ids = TOKENIZER.encode("🚀🚀")
    limits = EpisodeLimits(action_tokens=50, output_tokens=len(ids) - missing, episode_tokens=10_000)
    trajectory = play(Canned(output("🚀🚀", done=True)), [typed("cat /f")], limits)
    assert trajectory.segments[2].text == trajectory.turns[0].output == "🚀"
    assert trajectory.segments[2].token_ids == tuple(TOKENIZER.encode("🚀"))


class Opened(Canned):
    """An environment that opens with the given pieces."""

    def __init__(self, opening: tuple[TextPiece, ...], *replies: StepResult) -> None:
        super().__init__(*replies)
        self._opening = opening

    async def reset(self, task: Task) -> tuple[TextPiece, ...]:
        return self._opening


def test_an_opening_that_begins_with_a_warning_begins_with_bos_alone() -> None:
    environment = Opened((TextPiece(W, "[old server]\n"), PROMPT), output("x\n", done=True))
    trajectory = play(environment, [typed("ls")])
    assert shown(trajectory)[:3] == [(C, ""), (W, "[old server]\n"), (C, "$ ")]
    assert trajectory.segments[0].token_ids == (TOKENIZER.bos_id,)


def test_a_prompt_follows_whatever_was_cut_before_it() -> None:
    limits = EpisodeLimits(action_tokens=10, output_tokens=20, episode_tokens=100)
    long = TextPiece(E, "hello " * 200, "stdout")
    environment = Opened(
        (TextPiece(C, "hello " * 200), PROMPT), StepResult((long, replace(long, channel="stderr"), PROMPT))
    )
    trajectory = play(environment, [typed("ls")], limits)
    roles = [segment.role for segment in trajectory.segments]
    assert roles == [C, W, C, A, E, W, E, W, C] and text_of(trajectory, C)[1:] == ["$ ", "$ "]
    assert sum(len(segment.token_ids) for segment in trajectory.segments[:3]) == 100 - 10
    assert [len(segment.token_ids) for segment in trajectory.segments if segment.role is E] == [20, 20]
    assert cut_pieces([trajectory, trajectory]) == 6


def test_a_reply_of_many_long_pieces_has_the_length_of_two() -> None:
    limits = EpisodeLimits(action_tokens=10, output_tokens=20, episode_tokens=100)
    long, prompt = TextPiece(E, "hello " * 200, "stdout"), replace(PROMPT, channel="prompt")
    trajectory = play(Opened((PROMPT,), StepResult((long, long, long, prompt), done=True)), [typed("ls")], limits)
    assert [len(segment.token_ids) for segment in trajectory.segments if segment.role is E] == [20, 20]
    assert [segment.channel for segment in trajectory.segments if segment.text == "$ "][-1] == "prompt"


PIECES = st.lists(
    st.builds(
        TextPiece,
        st.sampled_from([C, E, W]),
        st.integers(0, 40).flatmap(lambda count: st.sampled_from(["ab ", "\n", "🚀"]).map(lambda text: text * count)),
        cut=st.booleans(),
    ),
    max_size=6,
).map(tuple)


@given(PIECES, PIECES, st.integers(1, 30), st.integers(1, 30), st.integers(1, 90), st.booleans())
@settings(max_examples=150, deadline=None)
def test_no_episode_is_longer_than_its_limits_say(
    opening: tuple[TextPiece, ...], reply: tuple[TextPiece, ...], action: int, out: int, episode: int, cut: bool
) -> None:
    limits = EpisodeLimits(action, out, episode)
    actions = [[NEWLINE] * action if not cut else TOKENIZER.encode("a")[:1] * action] * 200
    trajectory = play(Opened(opening, *[StepResult(reply)] * 199, StepResult((), done=True)), actions, limits)
    assert len(trajectory) <= limits.longest(PLAIN.overhead)


@given(st.integers(1, 60), st.integers(1, 4000), st.integers(1, 4000), st.integers(250, 6000), st.integers(1, 40))
def test_limits_are_brought_down_to_a_context(action: int, out: int, episode: int, context: int, scaffold: int) -> None:
    limits = EpisodeLimits(action, out, episode)
    within = limits.within(context, scaffold)
    assert within.longest(scaffold) <= context
    assert (within == limits) == (limits.longest(scaffold) <= context)
    assert limits.within(limits.longest(scaffold), scaffold) == limits
    assert within.action_tokens == action and 1 <= within.output_tokens <= out and 1 <= within.episode_tokens <= episode
    # A shorter episode is preferred to shorter outputs, while half of the context is left to it.
    assert within.output_tokens == out or within.episode_tokens <= max(context // 2, within._first_action(scaffold)) + 1


def test_a_context_that_not_even_one_turn_fits_is_refused() -> None:
    limits = EpisodeLimits(action_tokens=100, output_tokens=50, episode_tokens=400)
    least = 100 + 2 + 2 * (len(CUT_OUTPUT) + 25 + PLAIN.overhead) + 2 * len(CUT_OUTPUT)
    assert limits.within(least, PLAIN.overhead).output_tokens == 1
    for context, helps in ((least - 1, True), (least - 99, True), (least - 100, False)):
        message = f"one turn does not fit in the model's context of {context} tokens: it needs {least}"
        message += ", 100 of them for the action"
        with pytest.raises(EchoError, match=message) as refused:
            limits.within(context, PLAIN.overhead)
        assert ("max_action_tokens" in str(refused.value.tip)) is helps
        if helps:
            replace(limits, action_tokens=1).within(context, PLAIN.overhead)
    with pytest.raises(EchoError):
        replace(limits, action_tokens=1).within(least - 100, PLAIN.overhead)


def test_the_last_observation_is_kept_at_the_turn_cap() -> None:
    trajectory = play(Canned(output("first\n"), output("last\n", done=True)), [typed("ls"), typed("ls")])
    assert trajectory.stop_reason == "turn_cap"
    assert shown(trajectory)[-1] == (E, "last\n")


def test_the_last_observation_is_kept_at_the_length_cap() -> None:
    environment = Canned(output("first\n"), output("never\n"))
    opening = 1 + len(TOKENIZER.encode("task: t\n$ "))
    used = opening + len(typed("ls")) + len(TOKENIZER.encode("first\n")) + len(TOKENIZER.encode("$ "))
    at_cap = play(environment, [typed("ls")], EpisodeLimits(10, 1000, used + 9))
    assert environment.actions == ["ls"] and at_cap.stop_reason == "length_cap"
    assert text_of(at_cap, E) == ["first\n"]
    below = play(
        Canned(output("first\n"), output("last\n", done=True)), [typed("ls")] * 2, EpisodeLimits(10, 1000, used + 10)
    )
    assert below.stop_reason == "turn_cap"


def test_an_answer_stops_with_answered() -> None:
    trajectory = play(Canned(StepResult((), done=True)), [typed("answer: 7")])
    assert trajectory.stop_reason == "answered"
    assert trajectory.turns[0].command == "answer: 7"


# --- The verifier ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("actions", [[typed("ls")], [TOKENIZER.encode("cut")]])
def test_the_verifier_is_called_once_or_never(actions: list[list[int]]) -> None:
    environment = Canned(output("x\n", done=True))
    assert play(environment, actions, verify=True).reward == 0.75
    assert (environment.verified, environment.closed) == (1, 1)
    environment = Canned(output("x\n", done=True))
    assert play(environment, actions, verify=False).reward is None
    assert (environment.verified, environment.closed) == (0, 1)


def test_penalties_add_up_and_lower_the_reward_of_training_alone() -> None:
    replies = [replace(output("x\n", done=number == 2), penalty=0.25 * number) for number in range(3)]
    actions = [typed("ls")] * 3
    assert play(Canned(*replies), actions, training=True).reward == 0.75 - 0.25 - 0.5
    assert play(Canned(*replies), actions).reward == 0.75
    assert play(Canned(*replies), actions, verify=False, training=True).reward is None


def test_a_script_never_calls_the_verifier() -> None:
    environment = Canned(output("x\n"))
    script = [(TASK, ["ls"])]
    (trajectory,) = play_scripts(PLAIN, CannedWorlds(environment), script, WIDE, "explorer", world_model_only=True)
    assert (environment.verified, environment.closed, trajectory.reward) == (0, 1, None)
    assert (trajectory.stop_reason, trajectory.source, trajectory.world_model_only) == ("script_end", "explorer", True)
    assert trajectory.segments[1].logprobs is None


def test_a_script_stops_when_the_episode_ends() -> None:
    environment = Canned(output("x\n", done=True))
    script = [(TASK, ["ls", "cat", "head"])]
    (trajectory,) = play_scripts(PLAIN, CannedWorlds(environment), script, WIDE, "expert")
    assert environment.actions == ["ls"]
    assert trajectory.stop_reason == "turn_cap"


def test_a_script_ends_before_an_action_that_would_outgrow_the_episode() -> None:
    limits = EpisodeLimits(action_tokens=8, output_tokens=20, episode_tokens=120)
    environment = Canned(*[output("x\n")] * 4)
    script = [(TASK, ["ls", "echo " + "7" * 30, "echo " + "7" * 300, "ls"])]
    (trajectory,) = play_scripts(PLAIN, CannedWorlds(environment), script, limits, "expert")
    assert [len(action.split()) for action in environment.actions] == [1, 2]  # longer than a policy's may fit
    assert trajectory.stop_reason == "length_cap"
    assert len(trajectory) <= limits.longest(PLAIN.overhead)


# --- Many episodes together ------------------------------------------------------------------------------------------


def test_episodes_of_different_lengths_do_not_mix() -> None:
    environments = [
        Canned(output("a1\n"), output("a2\n", done=True)),
        Canned(StepResult((), done=True)),
        Canned(output("c1\n"), output("c2\n"), output("c3\n", done=True)),
    ]
    sampler = Forced([[typed("ls"), typed("wc")], [typed("answer: x")], [typed("cat"), typed("head"), typed("tail")]])
    tasks = [Task(name, "train", "family", {}) for name in "abc"]
    played = play_policy(
        lambda _: sampler,
        PLAIN,
        CannedWorlds(*environments),
        [(task, f"g-{task.task_id}") for task in tasks],
        WIDE,
        verify=True,
    )
    assert [environment.actions for environment in environments] == [
        ["ls", "wc"],
        ["answer: x"],
        ["cat", "head", "tail"],
    ]
    assert [text_of(trajectory, E) for trajectory in played] == [["a1\n", "a2\n"], [], ["c1\n", "c2\n", "c3\n"]]
    assert [(t.task_id, t.group_id) for t in played] == [("a", "g-a"), ("b", "g-b"), ("c", "g-c")]
    assert sampler.kept == [[0, 2], [1], []]


def test_the_sampler_sees_exactly_the_tokens_of_the_trajectory() -> None:
    environment = Canned(output("a\n"), output("b\n"), StepResult((), done=True))
    sampler = Forced([[typed("ls"), typed("wc"), typed("answer: x")], [TOKENIZER.encode("cut")]])
    contexts = sampler.context
    worlds = CannedWorlds(environment, Canned())
    played = play_policy(lambda _: sampler, PLAIN, worlds, [(TASK, "g"), (TASK, "g")], WIDE, verify=False)
    assert contexts[0] == played[0].token_ids


def test_the_toy_terminal_plays_from_end_to_end() -> None:
    worlds = ToyWorlds((0,), (), 5)
    for task in worlds.tasks.heldout[:12]:
        actions = [typed(action) for action in worlds.expert(task)]
        sampler, wanted = Forced([actions]), [(task, task.task_id)]
        (trajectory,) = play_policy(lambda _, s=sampler: s, PLAIN, worlds, wanted, WIDE, verify=True)  # type: ignore[misc]
        assert (trajectory.reward, trajectory.stop_reason) == (1.0, "answered")
        (scripted,) = play_scripts(PLAIN, worlds, [(task, worlds.expert(task))], WIDE, "expert")
        assert (scripted.token_ids, scripted.roles) == (trajectory.token_ids, trajectory.roles)


def test_an_episode_returns_the_tokens_that_follow() -> None:
    episode = Episode(PLAIN, Canned(output("x\n")), TASK, "g", WIDE)
    opening = asyncio.run(episode.reset())
    reply = asyncio.run(episode.act(typed("ls"), [0.0] * len(typed("ls"))))
    assert opening == Following([TOKENIZER.bos_id, *TOKENIZER.encode("task: t\n$ ")])
    assert reply == Following([*TOKENIZER.encode("x\n"), *TOKENIZER.encode("$ ")])
    assert episode.length == len(opening.token_ids) + len(typed("ls")) + len(reply.token_ids)
