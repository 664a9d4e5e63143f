"""Context views: each token of an episode with dropped thinking is scored once, in the context it was sampled in."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from canned_worlds import CannedWorlds
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import echo_cli
from echo_cli.config.objective import ObjectiveSettings
from echo_cli.config.schema import OptimConfig
from echo_cli.environments.protocol import StepResult, TextPiece
from echo_cli.environments.tasks import Task
from echo_cli.evaluation.measures import predict, tokens_of
from echo_cli.metrics import reduce_metrics
from echo_cli.models.policy import TorchPolicy
from echo_cli.models.renderer import Message, PlainRenderer
from echo_cli.models.tiny import TinyConfig, TinyModel
from echo_cli.models.tokenizer import Tokenizer
from echo_cli.objective.step import WeighedStep, weigh_step
from echo_cli.rollouts.limits import EpisodeLimits
from echo_cli.rollouts.rollout import play_policy
from echo_cli.runs.pools import pool_of
from echo_cli.trajectory import Role, Segment, Trajectory, Turn, context_views, expand_context_views, visible

torch.set_num_threads(1)

C, A, E, W = Role.CONTEXT, Role.ACTION, Role.ENV_OUTPUT, Role.WARNING
TOKENIZER = Tokenizer.load(Path(echo_cli.__file__).parent / "models" / "tiny_base" / "tokenizer.json")
TEMPERATURE = 0.7
TASK = Task("t", "train", "family", {})


def action(ids: Sequence[int], transient: int = 0) -> Segment:
    return Segment(A, "", tuple(ids), tuple(-0.1 * token for token in ids), transient=transient)


def other(role: Role, *ids: int) -> Segment:
    return Segment(role, "", ids)


def trajectory(*segments: Segment, world_model_only: bool = False) -> Trajectory:
    turns = tuple(Turn("", "", None, True, True) for segment in segments if segment.role is A)
    return Trajectory("t", "g", segments, turns, 1.0, "answered", "policy", world_model_only)


def tagged(view: Trajectory) -> list[tuple[int, Role]]:
    return list(zip(view.token_ids, view.roles, strict=True))


THOUGHT = trajectory(
    *(other(C, 1, 2), action([3, 4, 5], transient=2), other(E, 6), other(C, 7)),
    *(action([8]), other(E, 9), action([10, 11], transient=2), other(W, 12)),
)


# --- The views of a trajectory ---------------------------------------------------------------------------------------


def test_a_trajectory_without_transient_tokens_is_its_only_view() -> None:
    plain = trajectory(other(C, 1), action([2]), other(E, 3))
    assert context_views(plain)[0] is visible(plain) is plain and len(context_views(plain)) == 1


def test_views_by_hand() -> None:
    base, first, third = context_views(THOUGHT)
    assert tagged(base) == [(1, C), (2, C), (5, C), (6, E), (7, C), (8, A), (9, E), (12, W)]
    assert tagged(first) == [(1, C), (2, C), (3, A), (4, A), (5, A)]
    assert tagged(third) == [*((i, C) for i in (1, 2, 5, 6, 7, 8, 9)), (10, A), (11, A)]
    assert first.segments[-1].logprobs == THOUGHT.segments[1].logprobs
    assert tagged(visible(THOUGHT)) == [(1, C), (2, C), (5, A), (6, E), (7, C), (8, A), (9, E), (12, W)]
    assert visible(THOUGHT).segments[1].logprobs == (-0.5,)


@st.composite
def _trajectories(draw: st.DrawFn) -> Trajectory:
    """Generate episodes in which every token has a unique id."""
    ids, segments = iter(range(1, 1000)), [other(C, 0)]
    for role in draw(st.lists(st.sampled_from([C, A, A, E, W]), max_size=8)):
        count = draw(st.integers(0, 4))
        tokens = [next(ids) for _ in range(count)]
        transient = draw(st.integers(0, count)) if role is A else 0
        segments.append(action(tokens, transient) if role is A else other(role, *tokens))
    return trajectory(*segments)


@given(_trajectories())
@settings(max_examples=200, deadline=None)
def test_every_target_is_in_one_view_in_the_context_that_it_was_seen_in(played: Trajectory) -> None:
    found = [(token, role) for view in context_views(played) for token, role in tagged(view) if role is not C]
    assert sorted(found) == sorted((token, role) for token, role in tagged(played) if role is not C)
    context: list[int] = []  # visible tokens at the start of a segment
    before = {}
    for segment in played.segments:
        for place, token in enumerate(segment.token_ids):
            before[token] = [*context, *segment.token_ids[:place]]
        context += segment.token_ids[segment.transient :]
    hidden = {token for s in played.segments for token in s.token_ids[: s.transient]}
    for view in context_views(played):
        for place, (token, role) in enumerate(tagged(view)):
            if role is not C:
                assert view.token_ids[:place] == before[token]
    assert visible(played).token_ids == [token for token in played.token_ids if token not in hidden]


def test_actions_have_no_views_where_they_are_no_targets() -> None:
    observed = replace(THOUGHT, world_model_only=True)
    assert expand_context_views([THOUGHT, observed, THOUGHT], use_rl=True).owners == (0, 0, 0, 1, 2, 2, 2)
    assert expand_context_views([THOUGHT, observed], use_rl=False).owners == (0, 1)
    assert [view.world_model_only for view in expand_context_views([observed], use_rl=True).trajectories] == [True]


# --- Episodes that a policy played -----------------------------------------------------------------------------------


class Forgetful(PlainRenderer):
    """Renderer in which thinking ends with the first token with `id % 4 == 1`, and an action with `id % 7 == 0`.

    Later turns do not see the thinking.
    """

    def __init__(self) -> None:
        super().__init__(TOKENIZER)
        self.stop_ids = tuple(range(0, TOKENIZER.vocab_size, 7))

    def message(self, action_ids: Sequence[int]) -> Message:
        ids = list(action_ids)
        thinking = next((place + 1 for place, token in enumerate(ids) if token % 4 == 1), 0)
        return Message(TOKENIZER.decode(ids[thinking:]), complete=ids[-1] in self.stop_ids, transient=thinking)


class Talkative:
    """An environment with five different answers."""

    grader = None

    def __init__(self, name: str) -> None:
        self._name, self._turn = name, 0

    async def reset(self, task: Task) -> tuple[TextPiece, ...]:
        return (TextPiece(C, f"task: {self._name}\n$ "),)

    async def step(self, action: str, problem: str | None = None) -> StepResult:
        self._turn += 1
        pieces = (
            TextPiece(E, f"{self._name} said {self._turn * 37}\n"),
            TextPiece(W, "[exit 1]\n"),
            TextPiece(C, "$ "),
        )
        return StepResult(pieces[: 2 if self._turn == 5 else 3], done=self._turn == 5)

    async def verify(self) -> float:
        return float(len(self._name) % 2)

    async def close(self) -> None: ...


def make_policy(budget: int = 8192) -> TorchPolicy:
    model = TinyModel(TinyConfig(TOKENIZER.vocab_size, hidden=32, layers=2, heads=4, max_length=1024))
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    return TorchPolicy(model, Forgetful(), OptimConfig(token_budget=budget), torch.device("cpu"))


@pytest.fixture(scope="module")
def played() -> list[Trajectory]:
    policy, names = make_policy(), ("a", "bb", "ccc", "dd")
    worlds, wanted = CannedWorlds(*map(Talkative, names)), [(TASK, "g"), (TASK, "g"), (TASK, "h"), (TASK, "h")]
    limits = EpisodeLimits(action_tokens=20, output_tokens=50, episode_tokens=400)
    return play_policy(policy.sampler(TEMPERATURE, 3), policy.renderer, worlds, wanted, limits, verify=True)


def dense_logprobs(model: TinyModel, played: Trajectory) -> list[list[Tensor]]:
    """Return logprobs by segment and token, each in its own context; one forward pass per segment."""
    found, context = [], []
    for segment in played.segments:
        ids = [*context, *segment.token_ids]
        temperature = TEMPERATURE if segment.role is A else 1.0
        logprobs_TV = torch.log_softmax(model.head(model(torch.tensor([ids]))[0]) / temperature, dim=-1)
        # The very first token, which nothing predicts, is context.
        places = range(len(context), len(ids))
        found.append([logprobs_TV[place - 1, ids[place]] for place in places])
        context += segment.token_ids[segment.transient :]
    return found


def test_behaviour_logprobs_equal_a_replay_of_the_views(played: list[Trajectory]) -> None:
    model, thinking = make_policy().model, 0
    assert isinstance(model, TinyModel)
    for rollout in played:
        actions = [view for view in context_views(rollout) if view.count(A)]
        sampled = [segment.logprobs for view in actions for segment in view.segments if segment.role is A]
        replayed = [
            logprobs
            for view in actions
            for segment, logprobs in zip(view.segments, dense_logprobs(model, view), strict=True)
            if segment.role is A
        ]
        for ours, theirs in zip(sampled, replayed, strict=True):
            assert ours == pytest.approx([value.item() for value in theirs], abs=1e-5)
        thinking += sum(segment.transient > 0 for segment in rollout.segments)
    assert thinking > 5
    # The whole transcript as one sequence is not the context of any sampled token.
    whole = dense_logprobs(
        model, replace(played[0], segments=tuple(replace(s, transient=0) for s in played[0].segments))
    )
    last = max(n for n, segment in enumerate(played[0].segments) if segment.role is A)
    assert [value.item() for value in whole[last]] != pytest.approx(played[0].segments[last].logprobs, abs=1e-2)


SETTINGS = ObjectiveSettings(rl_normalization="sequence_mean", env_normalization="observation_tokens")


def weigh(rollouts: Sequence[Trajectory], coeff: float = 0.3) -> WeighedStep:
    return weigh_step(rollouts, SETTINGS, coeff, TEMPERATURE)


def test_loss_and_gradient_over_views_are_the_sums_by_hand(played: list[Trajectory]) -> None:
    policy, coeff = make_policy(budget=100), 0.3
    model = policy.model
    assert isinstance(model, TinyModel)
    model.double().rotations_T1d = model.rotations_T1d.to(torch.complex128)
    rollouts = [replace(played[0], reward=0.0), replace(played[1], reward=1.0)]
    rollouts += [replace(played[2], reward=0.5), replace(played[3], world_model_only=True)]
    step = weigh(rollouts, coeff)
    assert step.advantages_B is not None

    rl = env = torch.zeros(())
    for number, rollout in enumerate(rollouts):
        for segment, logprobs in zip(rollout.segments, dense_logprobs(model, rollout), strict=True):
            if segment.role is A and not rollout.world_model_only:
                for logprob, behaviour in zip(logprobs, segment.logprobs or (), strict=True):
                    ratio, advantage = (logprob - torch.tensor(behaviour)).exp(), float(step.advantages_B[number])
                    clipped = ratio.clamp(1 - SETTINGS.clip_low, 1 + SETTINGS.clip_high)
                    surrogate = torch.minimum(ratio * advantage, clipped * advantage)
                    rl = rl - float(step.weights.rl_weight_B[number]) * surrogate
            if segment.role in SETTINGS.selected_roles:
                env = env - float(step.weights.env_weight_B[number]) * torch.stack(logprobs).sum()
    parameters = list(model.parameters())
    rl_gradient, env_gradient = (
        torch.cat([part.flatten() for part in torch.autograd.grad(term, parameters, retain_graph=True)])
        for term in (rl, env)
    )

    metrics = reduce_metrics([policy.forward_backward(step)])
    assert [metrics["rl_loss"], metrics["env_loss"]] == pytest.approx([rl.item(), env.item()], abs=1e-9)
    found = torch.cat([parameter.grad.flatten() for parameter in parameters if parameter.grad is not None])
    expected = rl_gradient + coeff * env_gradient
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    # Each token and each rollout is counted once, for any number of micro-batches.
    assert metrics["action_tokens"] == sum(rollout.count(A) for rollout in rollouts[:3])
    assert metrics["env_tokens"] == sum(rollout.count(E) for rollout in rollouts)
    assert metrics["zero_advantage_fraction"] == pytest.approx(1 / 3)
    compared = policy.probe(step)
    norms = [float(rl_gradient.norm()), float(env_gradient.norm())]
    assert [compared.rl_norm, compared.env_norm] == pytest.approx(norms, rel=1e-5)


def test_denominators_are_those_of_the_tokens_whether_later_turns_see_them_or_not(played: list[Trajectory]) -> None:
    seen = [replace(t, segments=tuple(replace(s, transient=0) for s in t.segments)) for t in played]
    for left, right in zip(vars(weigh(played).weights).values(), vars(weigh(seen).weights).values(), strict=True):
        assert torch.equal(left, right)


def test_micro_batches_change_nothing(played: list[Trajectory]) -> None:
    found = []
    for budget in (50, 8192):
        policy = make_policy(budget)
        values = reduce_metrics([policy.forward_backward(weigh(played))])
        found.append({name: value for name, value in values.items() if name != "padding_fraction"})
    assert found[0] == pytest.approx(found[1], abs=1e-5)


# --- Pools -----------------------------------------------------------------------------------------------------------


def test_a_pool_is_scored_as_its_last_turns_saw_it(played: list[Trajectory]) -> None:
    policy = make_policy()
    model, pool = policy.model, pool_of(played)
    assert isinstance(model, TinyModel)
    assert [t.token_ids for t in pool.trajectories] == [visible(t).token_ids for t in played]
    by_hand = [
        -torch.stack(logprobs).sum().item()
        for rollout in played
        for segment, logprobs in zip(rollout.segments, dense_logprobs(model, rollout), strict=True)
        if segment.role is E
    ]
    tokens = tokens_of(pool, (), TOKENIZER)
    output = tokens.role == "env_output"
    nats = predict(policy, pool, tokens).nats[output]
    assert np.bincount(tokens.span[output], nats) == pytest.approx(by_hand, abs=1e-4)
    assert nats.sum() == pytest.approx(sum(by_hand), abs=1e-3)
    for whole, seen in zip(played, pool.trajectories, strict=True):
        assert torch.equal(*(policy.score([t], {E, W})[0].logprobs for t in (whole, seen)))
        assert policy.predict(whole) == policy.predict(seen)


def test_the_command_of_a_token_is_that_of_its_turn(played: list[Trajectory]) -> None:
    draw = random.Random(0)
    named = [replace(t, turns=tuple(replace(turn, command=str(draw.random())) for turn in t.turns)) for t in played]
    pool = pool_of(named)
    tokens = tokens_of(pool, (), TOKENIZER)
    expected = [turn.command for t in named for turn in t.turns if turn.output]
    assert list(dict.fromkeys(tokens.command[tokens.role == "env_output"])) == expected
