"""The ECHO objective: hand-computed values, and invariance to order, batching and padding."""

from __future__ import annotations

import math
import random
from collections.abc import Collection
from dataclasses import replace
from itertools import product
from typing import Any, get_args

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from mock_lm import PAD_ID, VOCABULARY, A, C, E, TinyLM, W, episode, plan_step, random_episodes, run_step
from torch import Tensor

from echo_cli.config.objective import EnvNormalization, ObjectiveSettings, RlNormalization
from echo_cli.errors import EchoError
from echo_cli.metrics import Metric, reduce_metrics
from echo_cli.objective.advantages import advantages, step_advantages
from echo_cli.objective.batch import MicroBatch, Targets, collate, count_rollouts, pack, targets
from echo_cli.objective.diagnostics import check_first_step, gradient_comparison, portable_lambda
from echo_cli.objective.filters import filter_env_rollouts
from echo_cli.objective.logprobs import selected_logprobs, target_logprobs
from echo_cli.objective.loss import StepTotals, echo_loss, env_loss, rl_loss, step_totals, step_weights
from echo_cli.objective.schedule import world_model_coeff_at
from echo_cli.objective.selection import target_factors
from echo_cli.trajectory import Role, Trajectory, Turn

NORMALIZATIONS = list(product(get_args(RlNormalization), get_args(EnvNormalization)))


def normalized(rl: str = "token_mean", env: str = "observation_tokens", **fields: Any) -> ObjectiveSettings:
    return ObjectiveSettings(rl_normalization=rl, env_normalization=env, max_length=16, **fields)  # type: ignore[arg-type]


def one_batch(trajectories: list[Trajectory]) -> list[MicroBatch]:
    return [collate(trajectories, range(len(trajectories)), PAD_ID)]


def assert_close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


# --- Denominators, by hand -------------------------------------------------------------------------------------------

# Rollout 0: 4 actions, 2 env_output, 1 warning. Rollout 1: 1 action, 4 env_output.
# Rollout 2: 2 actions, no observation. Rollout 3: world_model_only with 3 actions, 1 env_output.
FOUR = [
    episode([C, C, A, A, E, E, W, A, A], reward=1.0),
    episode([C, A, E, E, E, E], reward=0.0),
    episode([C, A, A], reward=0.0),
    episode([C, A, A, A, E], world_model_only=True),
]
# Every surrogate is 1 per action token and every CE is 1 nat, so the terms are sums of weights.


def unit_terms(settings: ObjectiveSettings, kept: list[int] | None = None) -> tuple[float, float]:
    counts = count_rollouts(FOUR, settings.selected_roles, kept=kept)
    weights = step_weights(counts, step_totals(counts), settings)
    wanted = targets(one_batch(FOUR)[0], settings.target_roles)
    minus_ones_N = -torch.ones(len(wanted.row_N), dtype=torch.float64)
    reinforce = replace(settings, surrogate="reinforce")
    ones_B = torch.ones(4, dtype=torch.float64)
    rl = rl_loss(minus_ones_N, wanted, ones_B, weights, reinforce)
    return float(rl), float(env_loss(minus_ones_N, wanted, weights, settings))


@pytest.mark.parametrize(
    ("rl", "expected"),
    [
        ("token_mean", 7 / 7),
        ("sequence_mean", (4 / 4 + 1 / 1 + 2 / 2) / 3),
        ("fixed_length", 7 / (3 * 16)),
    ],
)
def test_rl_denominators_by_hand(rl: str, expected: float) -> None:
    assert unit_terms(normalized(rl=rl))[0] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        # Rollout 2 has no observation and still counts in B = 4; the warning counts in |O_0| = 3, not in the sum.
        ("observation_tokens", (2 / 3 + 4 / 4 + 0 + 1 / 1) / 4),
        ("selected_tokens", (2 / 2 + 4 / 4 + 0 + 1 / 1) / 4),
        ("token_mean", 7 / 7),
        ("fixed_length", 7 / (4 * 16)),
    ],
)
def test_env_denominators_by_hand(env: str, expected: float) -> None:
    assert unit_terms(normalized(env=env))[1] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ("observation_tokens", (3 / 3 + 4 / 4 + 1 / 1) / 4),
        ("token_mean", 8 / 8),
        ("fixed_length", 8 / (4 * 16)),
    ],
)
def test_world_loss_target_all_adds_warnings_to_the_sum(env: str, expected: float) -> None:
    assert unit_terms(normalized(env=env, world_loss_target="all"))[1] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ("observation_tokens", (2 / 3 + 0) / 2),
        ("selected_tokens", (2 / 2 + 0) / 2),
        ("token_mean", 2 / 2),
        ("fixed_length", 2 / (2 * 16)),
    ],
)
def test_a_dropped_rollout_leaves_env_sums_and_counts_and_no_rl_term(env: str, expected: float) -> None:
    rl, dropped = unit_terms(normalized(env=env), kept=[0, 2])
    assert dropped == pytest.approx(expected, abs=1e-12)
    assert rl == pytest.approx(1.0)


@pytest.mark.parametrize(("rl", "env"), [("sequence_mean", "observation_tokens"), ("sequence_mean", "selected_tokens")])
def test_a_rollout_without_targets_has_no_weight_and_a_single_target_has_one(rl: str, env: str) -> None:
    _, weights = plan_step([episode([C, A, E])], normalized(rl, env))
    assert (weights.rl_weight_B.tolist(), weights.env_weight_B.tolist()) == ([1.0], [1.0])
    trajectories = [episode([C, A], reward=1.0), episode([C, E])]
    advantages_B, weights = plan_step(trajectories, normalized(rl, env))
    assert (weights.rl_weight_B.tolist(), weights.env_weight_B.tolist()) == ([0.5, 0.0], [0.0, 0.5])
    r = portable_lambda(0.1, count_rollouts(trajectories, {E}), weights, advantages_B)
    assert advantages_B is not None and r == pytest.approx(0.1 / float(advantages_B.abs().mean()))


def test_one_token_denominators_differ_where_cross_entropies_differ() -> None:
    trajectories = [episode([C, E, W]), episode([C, E, E, E])]
    wanted = targets(one_batch(trajectories)[0], {E})
    logprobs_N = -torch.tensor([8.0, 1.0, 2.0, 3.0], dtype=torch.float64)
    expected = {
        "observation_tokens": (8 / 2 + 6 / 3) / 2,
        "selected_tokens": (8 / 1 + 6 / 3) / 2,
        "token_mean": 14 / 4,
        "fixed_length": 14 / 32,
    }
    for env, value in expected.items():
        _, weights = plan_step(trajectories, normalized(env=env))
        assert float(env_loss(logprobs_N, wanted, weights, normalized(env=env))) == pytest.approx(value)


def test_bounded_cross_entropies_by_hand_have_no_gradient_beyond_their_bounds() -> None:
    trajectories = [episode([C, A, E, E, E, E])]
    wanted = targets(one_batch(trajectories)[0], {A, E})
    ce = [math.log(8), 3.0, 0.5, 0.1, 1.0]  # nats of the action, then of the observations
    for bounds, expected, moved in (
        ({}, 3.0 + 0.5 + 0.1 + 1.0, [1, 1, 1, 1]),
        ({"env_loss_clip": 2.0}, 2.0 + 0.5 + 0.1 + 1.0, [0, 1, 1, 1]),
        ({"env_stop_at": 0.5}, 3.0 + 2 * math.log(2) + 1.0, [1, 0, 0, 1]),
        ({"env_stop_at": 0.5, "env_loss_clip": 0.8}, 0.8 + 2 * math.log(2) + 0.8, [0, 0, 0, 0]),
    ):
        settings = normalized(env="token_mean", **bounds)
        logprobs_N = torch.tensor([-value for value in ce], dtype=torch.float64, requires_grad=True)
        _, weights = plan_step(trajectories, settings)
        loss = env_loss(logprobs_N, wanted, weights, settings)
        loss.backward()
        assert float(loss.detach()) == pytest.approx(expected / 4)  # all tokens count in the denominator
        assert logprobs_N.grad is not None
        assert logprobs_N.grad.tolist() == pytest.approx([0.0, *(-one / 4 for one in moved)])


# --- The eight-token episode -----------------------------------------------------------------------------------------


def test_the_eight_token_episode_by_hand() -> None:
    trajectories = [episode([C, C, A, A, E, E, A, A])]
    wanted = targets(one_batch(trajectories)[0], {A, E})
    behaviour = torch.tensor([-1.0, -1.0, -1.0, -1.0, 0.0, 0.0])
    wanted = replace(wanted, behaviour_logprobs_N=behaviour)
    ratios = [1.0, 1.5, 0.5, 1.1]
    logprobs_N = torch.tensor([-1 + math.log(ratio) for ratio in ratios] + [-3.0, -5.0], dtype=torch.float64)
    _, weights = plan_step(trajectories, normalized())
    # A = 2: min(ρ A, clip(ρ, .8, 1.28) A) = 2, 2.56, 1, 2.2
    loss, above = echo_loss(logprobs_N, wanted, torch.tensor([2.0]), weights, normalized(), coeff=0.05)
    assert float(loss) == pytest.approx(-(2 + 2.56 + 1 + 2.2) / 4 + 0.05 * (3 + 5) / 2)
    # A = -2: -2, -3, -1.6, -2.2
    loss, metrics = echo_loss(logprobs_N, wanted, torch.tensor([-2.0]), weights, normalized(), coeff=0.05)
    assert float(loss) == pytest.approx((2 + 3 + 1.6 + 2.2) / 4 + 0.05 * (3 + 5) / 2)
    # Clipped are ρ = 1.5 for A > 0 and ρ = 0.5 for A < 0; on the other sides, the gradient is kept.
    assert above["clip_fraction"] == metrics["clip_fraction"] == Metric(1, 4)
    for ratio, advantage, clipped in (
        (1.27, 2, 0),
        (1.29, 2, 1),
        (0.81, -2, 0),
        (0.79, -2, 1),
        (0.1, 2, 0),
        (9, -2, 0),
        (1.29, 0.5, 1),
        (0.79, -0.5, 1),
        (9, 0, 0),
        (0.1, 0, 0),
    ):
        moved_N = torch.cat([behaviour[:4] + math.log(ratio), torch.zeros(2)]).double()
        _, found = echo_loss(moved_N, wanted, torch.tensor([float(advantage)]), weights, normalized(), coeff=0.0)
        assert found["clip_fraction"] == Metric(4 * clipped, 4), (ratio, advantage)
    # A ratio at the bound keeps its gradient.
    same_N, bound = torch.cat([behaviour[:4], torch.zeros(2)]).double(), normalized(clip_low=0.0, clip_high=0.0)
    for advantage in (2.0, -2.0):
        _, found = echo_loss(same_N, wanted, torch.tensor([advantage]), weights, bound, coeff=0.0)
        assert found["clip_fraction"] == Metric(0, 4)
    assert metrics["env_ce"] == Metric(8, 2)
    assert metrics["action_tokens"].total == 4 and metrics["env_tokens"].total == 2
    assert reduce_metrics([metrics])["ratio"] == pytest.approx(sum(ratios) / 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_loss_has_the_dtype_of_the_logprobs(dtype: torch.dtype) -> None:
    trajectories = [episode([C, A, E])]
    wanted = targets(one_batch(trajectories)[0], {A, E})
    advantages_B, weights = plan_step(trajectories, normalized())  # float64, which not every device has
    assert advantages_B is not None and advantages_B.dtype == weights.env_weight_B.dtype == torch.float64
    logprobs_N = torch.tensor([-1.0, -2.0], dtype=dtype)
    assert rl_loss(logprobs_N, wanted, advantages_B, weights, normalized()).dtype == dtype
    assert env_loss(logprobs_N, wanted, weights, normalized()).dtype == dtype


def test_reinforce_ignores_ratio_and_clip() -> None:
    trajectories = [episode([C, A, A])]
    wanted = targets(one_batch(trajectories)[0], {A})
    logprobs_N = torch.tensor([-1.0, -4.0], dtype=torch.float64, requires_grad=True)
    _, weights = plan_step(trajectories, normalized())
    loss = rl_loss(logprobs_N, wanted, torch.tensor([3.0]), weights, normalized(surrogate="reinforce"))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(3 * (1 + 4) / 2)
    assert logprobs_N.grad is not None and logprobs_N.grad.tolist() == [-1.5, -1.5]
    # With behaviour logprobs of 0, both ratios are below the clip's range; without a clip, nothing is clipped.
    wanted = replace(wanted, behaviour_logprobs_N=torch.zeros(2))
    for surrogate, clipped in (("reinforce", 0), ("clipped", 2)):
        settings = normalized(surrogate=surrogate)
        _, metrics = echo_loss(logprobs_N, wanted, torch.tensor([-3.0]), weights, settings, coeff=0.0)
        assert metrics["clip_fraction"] == Metric(clipped, 2)


def test_kl_is_added_to_the_rl_term_with_its_weights() -> None:
    trajectories = [episode([C, A, A])]
    wanted = targets(one_batch(trajectories)[0], {A})
    logprobs_N = torch.tensor([-1.0, -2.0], dtype=torch.float64)
    _, weights = plan_step(trajectories, normalized())
    settings = normalized(kl_coeff=0.5)
    loss = rl_loss(logprobs_N, wanted, torch.zeros(1), weights, settings, logprobs_N + torch.tensor([1.0, 0.0]))
    assert float(loss) == pytest.approx(0.5 * (math.e - 2) / 2)
    with pytest.raises(ValueError, match="reference_logprobs_N"):
        rl_loss(logprobs_N, wanted, torch.zeros(1), weights, settings)


# --- λ = 0, use_rl: false, independence ------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("seed", range(5))
def test_lambda_zero_is_bitwise_plain_grpo(seed: int, temperature: float) -> None:
    trajectories, model, settings = random_episodes(seed), TinyLM(), normalized()
    advantages_B, weights = plan_step(trajectories, settings)
    assert advantages_B is not None
    loss, gradient, parts = run_step(model, one_batch(trajectories), advantages_B, weights, settings, 0.0, temperature)

    # Plain GRPO, written out, on a batch with action targets only.
    wanted = targets(one_batch(trajectories)[0], {A})
    n = torch.tensor([not trajectories[i].world_model_only for i in wanted.rollout_N.tolist()], dtype=torch.bool)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    logits_NV = model.lm_head(wanted.gather(model(one_batch(trajectories)[0]))) / temperature
    logprobs_n = logits_NV.log_softmax(-1).gather(-1, wanted.token_ids_N[:, None]).squeeze(-1)[n]
    ratio_n = (logprobs_n - wanted.behaviour_logprobs_N[n].double()).exp()
    advantages_n = advantages_B[wanted.rollout_N[n]]
    surrogate_n = -torch.minimum(ratio_n * advantages_n, ratio_n.clamp(0.8, 1.28) * advantages_n)
    plain = ((1 / max(int(n.sum()), 1)) * surrogate_n).sum()
    plain.backward()
    expected = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    assert loss == float(plain.detach())
    assert torch.equal(gradient, expected)
    observations = sum(t.count(E) for t in trajectories)
    assert parts[0]["env_ce"].count == observations and (parts[0]["env_ce"].total > 0) == (observations > 0)


def test_lambda_zero_keeps_a_broken_env_term_out_of_the_loss() -> None:
    trajectories = [episode([C, A, E], reward=1.0)]
    wanted = targets(one_batch(trajectories)[0], {A, E})
    logprobs_N = torch.tensor([-1.0, -math.inf], dtype=torch.float64, requires_grad=True)
    _, weights = plan_step(trajectories, normalized())
    loss, _ = echo_loss(logprobs_N, wanted, torch.ones(1), weights, normalized(), coeff=0.0)
    loss.backward()
    assert math.isfinite(loss.item())
    assert logprobs_N.grad is not None and logprobs_N.grad[1] == 0


def test_without_env_gradient_observations_are_scored_the_same_and_carry_none() -> None:
    model, micro = TinyLM(), one_batch([episode([C, A, E, A, E])])[0]
    wanted = targets(micro, {A, E})
    hidden_NH = wanted.gather(model(micro))
    scores = target_logprobs(hidden_NH, model.lm_head, wanted, 1.0, env_gradient=False)
    assert torch.equal(scores.logprobs_N, target_logprobs(hidden_NH, model.lm_head, wanted, 1.0).logprobs_N)
    (gradient_NH,) = torch.autograd.grad(scores.logprobs_N.sum(), hidden_NH)
    assert gradient_NH[:2].all() and not gradient_NH[2:].any()


def test_use_rl_false_is_exactly_lambda_times_the_cross_entropy_and_needs_no_reward() -> None:
    trajectories = [episode([C, A, E, E, A, E], reward=None, seed=3), episode([C, E], reward=None)]
    settings, model = normalized(use_rl=False), TinyLM()
    advantages_B, weights = plan_step(trajectories, settings)
    assert advantages_B is None
    coeff = world_model_coeff_at(settings, 0, 10)
    assert coeff == 1.0
    loss, gradient, _ = run_step(model, one_batch(trajectories), None, weights, settings, 0.25)
    alone, alone_gradient, _ = run_step(model, one_batch(trajectories), None, weights, settings, 1.0)
    wanted = targets(one_batch(trajectories)[0], {E})
    logits_NV = model.lm_head(wanted.gather(model(one_batch(trajectories)[0])))
    ce_N = torch.nn.functional.cross_entropy(logits_NV, wanted.token_ids_N, reduction="none")
    assert alone == pytest.approx(((ce_N[:3].mean() + ce_N[3]) / 2).item())
    assert loss == 0.25 * alone
    assert torch.equal(gradient, 0.25 * alone_gradient)


def test_a_missing_reward_or_advantage_is_an_error_when_there_is_an_rl_term() -> None:
    trajectories = [episode([C, A], reward=None)]
    with pytest.raises(EchoError, match="no reward"):
        plan_step(trajectories, normalized())
    counts = count_rollouts(trajectories, {E})
    weights = step_weights(counts, step_totals(counts), normalized())
    with pytest.raises(ValueError, match="advantages_B"):
        rl_loss(torch.zeros(1), targets(one_batch(trajectories)[0], {A}), None, weights, normalized())


@pytest.mark.parametrize(
    "change",
    [
        {"advantages": 7.0},
        {"behaviour": -9.0},
        {"clip_low": 1.0, "clip_high": 50.0},
        {"surrogate": "reinforce"},
        {"temperature": 0.3},
        {"kl_coeff": 2.0},
        {"rl_normalization": "sequence_mean"},
    ],
    ids=lambda change: "+".join(change),
)
def test_the_env_gradient_does_not_depend_on_the_rl_term(change: dict[str, Any]) -> None:
    # Two lengths, three rewards, ratios within and outside the clip range.
    trajectories = [
        episode([C, A, E, A, A, E, E], reward=1.0, seed=1),
        episode([C, A, A, A, E, W], reward=0.0, seed=2),
        episode([C, A, E], reward=0.3, seed=3),
    ]
    model, micro = TinyLM(), one_batch(trajectories)[0]
    behaviour_RT = torch.linspace(-2.8, -2.0, micro.roles_RT.numel()).view_as(micro.roles_RT)
    micro = replace(micro, behaviour_logprobs_RT=behaviour_RT)

    def env_part(change: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Return the env gradient, as the gradient at λ = 1 minus the one at λ = 0, and the gradient at λ = 1."""
        fields = dict(change)
        temperature, scale = fields.pop("temperature", 1.0), fields.pop("advantages", 1.0)
        behaviour = fields.pop("behaviour", None)
        settings = normalized(**{"rl": fields.pop("rl_normalization", "token_mean"), **fields})
        advantages_B, weights = plan_step(trajectories, settings)
        assert advantages_B is not None
        changed = micro
        if behaviour is not None:
            changed = replace(micro, behaviour_logprobs_RT=torch.full_like(micro.behaviour_logprobs_RT, behaviour))
        with_env, without_env = (
            run_step(model, [changed], scale * advantages_B, weights, settings, coeff, temperature)[1]
            for coeff in (1.0, 0.0)
        )
        return with_env - without_env, with_env

    env, whole = env_part({})
    changed_env, changed_whole = env_part(change)
    assert_close(env, changed_env)
    assert float(env.norm()) > 0
    assert not torch.allclose(whole, changed_whole), "the change must reach the RL term for this test to say anything"


def test_actions_are_scored_at_the_sampling_temperature_and_observations_at_one() -> None:
    model, micro = TinyLM(), one_batch([episode([C, A, E, A, E])])[0]
    wanted = targets(micro, {A, E})
    hidden_NH = wanted.gather(model(micro))
    scores = target_logprobs(hidden_NH, model.lm_head, wanted, temperature=0.5)
    logits_NV = model.lm_head(hidden_NH)
    logits_NV = torch.cat([logits_NV[:2] / 0.5, logits_NV[2:]])
    assert_close(scores.logprobs_N, logits_NV.log_softmax(-1).gather(-1, wanted.token_ids_N[:, None]).squeeze(-1))


@pytest.mark.parametrize("chunk_rows", [1, 2])
def test_entropy_is_of_actions_and_correctness_of_both(chunk_rows: int) -> None:
    model, micro, rows = TinyLM(), one_batch([episode([C, A, E, A, E])])[0], []

    def head(hidden_nH: Tensor) -> Tensor:
        rows.append(len(hidden_nH))
        return model.lm_head(hidden_nH)

    wanted = targets(micro, {A, E})
    hidden_NH = wanted.gather(model(micro)).detach()
    logprobs_NV = (model.lm_head(hidden_NH) / torch.tensor([2.0, 2.0, 1, 1])[:, None]).log_softmax(-1).detach()
    likeliest_N = logprobs_NV.argmax(-1)
    wanted = replace(wanted, token_ids_N=torch.where(torch.arange(4) % 2 == 0, likeliest_N, (likeliest_N + 1) % 2))
    scores = target_logprobs(hidden_NH, head, wanted, 2.0, chunk_rows=chunk_rows)
    assert_close(scores.entropy_N[:2], -(logprobs_NV.exp() * logprobs_NV).sum(-1)[:2])
    assert scores.entropy_N[2:].isnan().all()
    assert scores.correct_N.tolist() == [True, False, True, False]
    assert_close(scores.confidence_N, logprobs_NV.exp().amax(-1))
    assert max(rows) == chunk_rows
    without = target_logprobs(hidden_NH, model.lm_head, wanted, 2.0, correct=False)
    assert torch.equal(without.logprobs_N, target_logprobs(hidden_NH, model.lm_head, wanted, 2.0).logprobs_N)
    assert without.correct_N.dtype == scores.correct_N.dtype == torch.bool
    assert not without.correct_N.any() and without.confidence_N.isnan().all()


def test_batches_without_reward_variance_still_have_an_env_gradient() -> None:
    trajectories = [episode([C, A, E, A, E], reward=1.0, seed=s) for s in range(3)]
    advantages_B, weights = plan_step(trajectories, normalized())
    assert advantages_B is not None and not advantages_B.any()
    _, gradient, parts = run_step(TinyLM(), one_batch(trajectories), advantages_B, weights, normalized(), 0.05)
    assert float(gradient.norm()) > 0
    assert reduce_metrics(parts)["zero_advantage_fraction"] == 1.0
    _, gradient, _ = run_step(TinyLM(), one_batch(trajectories), advantages_B, weights, normalized(), 0.0)
    assert not gradient.any()


def test_actions_of_world_model_only_rollouts_get_no_gradient() -> None:
    trajectories = [episode([C, A, A], world_model_only=True), episode([C, A], reward=1.0), episode([C, A], reward=0.0)]
    wanted = targets(one_batch(trajectories)[0], {A, E})
    logprobs_N = torch.full((4,), -1.0, dtype=torch.float64, requires_grad=True)
    advantages_B, weights = plan_step(trajectories, normalized())
    rl_loss(logprobs_N, wanted, advantages_B, weights, normalized(surrogate="reinforce")).backward()
    assert logprobs_N.grad is not None
    assert (logprobs_N.grad != 0).tolist() == [False, False, True, True]


# --- Invariance ------------------------------------------------------------------------------------------------------


def rearranged(trajectories: list[Trajectory], draw: random.Random) -> tuple[list[Trajectory], list[MicroBatch]]:
    """Return the same rollouts shuffled, split at random into micro-batches and rows, and padded at random."""
    shuffled = draw.sample(trajectories, len(trajectories))
    rows: list[list[int]] = []
    for index in range(len(shuffled)):
        if rows and draw.random() < 0.5:
            rows[-1].append(index)
        else:
            rows.append([index])
    micro_rows: list[list[list[int]]] = []
    for row in rows:
        if micro_rows and draw.random() < 0.5:
            micro_rows[-1].append(row)
        else:
            micro_rows.append([row])
    longest = sum(len(t) for t in trajectories)
    micros = [
        pack(
            shuffled,
            rows,
            draw.randrange(VOCABULARY),
            width=draw.choice([None, longest + draw.randrange(4)]),
            padding_side=draw.choice(["left", "right"]),
        )
        for rows in micro_rows
    ]
    return shuffled, micros


@pytest.mark.parametrize(("rl", "env"), NORMALIZATIONS)
@given(seed=st.integers(0, 100_000))
@hypothesis_settings(max_examples=12, deadline=None)
def test_loss_and_gradient_do_not_depend_on_the_arrangement(rl: str, env: str, seed: int) -> None:
    draw = random.Random(seed)
    bounds = {"env_loss_clip": draw.choice([None, 2.5]), "env_stop_at": draw.choice([None, 0.12])}
    chosen = {
        "world_loss_target": draw.choice(["env_output", "all"]),
        "env_min_action_entropy": draw.choice([None, 2.0]),
        "env_weights": draw.choice([{}, {"env_output": 0.25}]),
    }
    settings = normalized(rl, env, kl_coeff=0.1, **chosen, **bounds)
    trajectories, model = random_episodes(seed), TinyLM()
    advantages_B, weights = plan_step(trajectories, settings)
    factors = target_factors(trajectories, settings)
    loss, gradient, parts = run_step(
        model, one_batch(trajectories), advantages_B, weights, settings, 0.5, factors=factors
    )

    shuffled, micros = rearranged(trajectories, draw)
    advantages_B, weights = plan_step(shuffled, settings)
    factors = target_factors(shuffled, settings)
    other_loss, other_gradient, other_parts = run_step(
        model, micros, advantages_B, weights, settings, 0.5, factors=factors
    )
    assert other_loss == pytest.approx(loss, rel=1e-6, abs=1e-9)
    assert_close(other_gradient, gradient)
    values, other_values = reduce_metrics(parts), reduce_metrics(other_parts)
    assert other_values.keys() == values.keys()
    for name, value in values.items():
        assert other_values[name] == (None if value is None else pytest.approx(value, rel=1e-6, abs=1e-9)), name


@pytest.mark.parametrize(("rl", "env"), NORMALIZATIONS)
@pytest.mark.parametrize("bounds", [{}, {"env_loss_clip": 2.5, "env_stop_at": 0.12}], ids=["unbounded", "bounded"])
def test_shards_with_summed_totals_add_up_to_the_whole(rl: str, env: str, bounds: dict[str, float]) -> None:
    settings, model = normalized(rl, env, **bounds), TinyLM()
    shards = [[episode([C, A, E, E], reward=1.0, group_id="g"), episode([C, A, A], group_id="g")]]
    shards.append([episode([C, A, E, W], reward=1.0, group_id="h", seed=5), episode([C, E, A, A], group_id="h")])
    totals = [step_totals(count_rollouts(shard, {E})) for shard in shards]
    whole = shards[0] + shards[1]
    expected_loss, expected, _ = run_step(model, one_batch(whole), *plan_step(whole, settings), settings, 0.5)
    results = [
        run_step(model, one_batch(shard), *plan_step(shard, settings, other), settings, 0.5)
        for shard, other in zip(shards, reversed(totals), strict=True)
    ]
    assert sum(loss for loss, _, _ in results) == pytest.approx(expected_loss, rel=1e-6)
    assert_close(results[0][1] + results[1][1], expected)
    assert totals[0] + totals[1] == StepTotals(rl_rollouts=4, action_tokens=6, env_rollouts=4, selected_tokens=4)


# --- Logprobs --------------------------------------------------------------------------------------------------------


def test_uniform_logits_give_the_log_of_the_vocabulary() -> None:
    trajectories = [episode([C, E, E]), episode([C, E])]
    model = TinyLM()
    torch.nn.init.zeros_(model.lm_head.weight)
    settings = normalized(use_rl=False, env="token_mean")
    loss, _, parts = run_step(model, one_batch(trajectories), *plan_step(trajectories, settings), settings, 1.0)
    assert loss == pytest.approx(math.log(VOCABULARY))
    assert reduce_metrics(parts)["env_ce"] == pytest.approx(math.log(VOCABULARY))


@pytest.mark.parametrize("chunk_rows", [1, 3, 7, 100])
@pytest.mark.parametrize("rows", [0, 1, 7])
def test_chunked_logprobs_agree_with_dense_ones_in_value_and_gradient(rows: int, chunk_rows: int) -> None:
    torch.manual_seed(0)
    hidden_NH = torch.randn(rows, 4, dtype=torch.float64, requires_grad=True)
    head = torch.nn.Linear(4, VOCABULARY, dtype=torch.float64)
    ids_N, upstream_N = torch.randint(VOCABULARY, (rows,)), torch.randn(rows, dtype=torch.float64)

    def gradients(logprobs_N: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad((logprobs_N * upstream_N).sum(), [hidden_NH, *head.parameters()])

    dense_NV = (head(hidden_NH) / 0.7).log_softmax(-1)
    dense_N = dense_NV.gather(-1, ids_N[:, None]).squeeze(-1)
    scores = selected_logprobs(hidden_NH, head, ids_N, 0.7, chunk_rows)
    assert_close(scores.logprobs_N, dense_N)
    for chunked, dense in zip(gradients(scores.logprobs_N), gradients(dense_N), strict=True):
        assert_close(chunked, dense)
    assert_close(scores.entropy_N, -(dense_NV.exp() * dense_NV).sum(-1).detach())
    assert torch.equal(scores.correct_N, dense_NV.argmax(-1) == ids_N)
    assert_close(scores.confidence_N, dense_NV.exp().amax(-1).detach())
    assert not scores.confidence_N.requires_grad
    assert not scores.entropy_N.requires_grad


@pytest.mark.parametrize(("chunk_rows", "calls"), [(2, 6), (3, 4), (6, 1)])
def test_only_more_than_one_chunk_is_recomputed(chunk_rows: int, calls: int) -> None:
    heads: list[int] = []
    weight_VH = torch.randn(VOCABULARY, 4, requires_grad=True)

    def head(hidden_nH: Tensor) -> Tensor:
        heads.append(len(hidden_nH))
        return hidden_nH @ weight_VH.T

    selected_logprobs(
        torch.randn(6, 4), head, torch.zeros(6, dtype=torch.int64), 1.0, chunk_rows
    ).logprobs_N.sum().backward()
    assert len(heads) == calls
    assert max(heads) <= chunk_rows


def test_half_precision_logits_are_scored_in_float32() -> None:
    logits_NV = torch.randn(3, 4, dtype=torch.bfloat16)
    scores = selected_logprobs(logits_NV, lambda h: h, torch.zeros(3, dtype=torch.int64))
    assert scores.logprobs_N.dtype == torch.float32
    assert torch.equal(scores.logprobs_N, logits_NV.float().log_softmax(-1)[:, 0])


def test_masked_logits_of_minus_infinity_do_not_become_nan() -> None:
    hidden_NH = torch.randn(4, 3, requires_grad=True)
    mask_V = torch.tensor([0.0, 0.0, -math.inf])
    scores = selected_logprobs(hidden_NH, lambda h: h + mask_V, torch.tensor([0, 1, 0, 1]), chunk_rows=2)
    scores.logprobs_N.sum().backward()
    assert scores.entropy_N.isfinite().all()
    assert hidden_NH.grad is not None and hidden_NH.grad.isfinite().all()


def test_minus_infinity_outside_a_term_does_not_become_nan() -> None:
    trajectories = [episode([C, A, W], world_model_only=True), episode([C, A, E], reward=1.0)]
    wanted = targets(one_batch(trajectories)[0], {A, E, W})
    logprobs_N = torch.tensor([-math.inf, -1.0, -math.inf, -2.0], dtype=torch.float64, requires_grad=True)
    counts = count_rollouts(trajectories, {E}, kept=[1])
    weights = step_weights(counts, step_totals(counts), normalized())
    loss, metrics = echo_loss(logprobs_N, wanted, torch.ones(2), weights, normalized(), 0.5)
    loss.backward()
    assert math.isfinite(float(loss.detach()))
    assert logprobs_N.grad is not None and logprobs_N.grad.isfinite().all()
    assert all(math.isfinite(metric.total) for metric in metrics.values())


# --- Empty selections ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("use_rl", [True, False])
@pytest.mark.parametrize("coeff", [0.0, 0.5])
@pytest.mark.parametrize("roles", [[C, C, C], [C, C, W], [C, A, A], [C, E, E]], ids=str)
@pytest.mark.parametrize(("rl", "env"), [("token_mean", "token_mean"), ("sequence_mean", "observation_tokens")])
def test_empty_selections_back_propagate_zeros(roles: list[Any], coeff: float, use_rl: bool, rl: str, env: str) -> None:
    trajectories = [episode(roles, reward=1.0), episode(roles, reward=0.0, seed=1)]
    settings = normalized(rl, env, use_rl=use_rl)
    loss, gradient, parts = run_step(
        TinyLM(), one_batch(trajectories), *plan_step(trajectories, settings), settings, coeff
    )
    assert math.isfinite(loss) and gradient.isfinite().all()
    has_target = (A in roles and use_rl) or (E in roles and coeff > 0)
    assert bool(gradient.any()) == has_target
    assert all(value is None or math.isfinite(value) for value in reduce_metrics(parts).values())


# --- Metrics ---------------------------------------------------------------------------------------------------------


def test_metric_keys_are_the_same_on_every_step() -> None:
    keys = set()
    for roles, use_rl, coeff in product([[C], [C, A], [C, E], [C, A, E, W]], [True, False], [0.0, 0.5]):
        trajectories, settings = [episode(roles)], normalized(use_rl=use_rl)
        _, _, parts = run_step(TinyLM(), one_batch(trajectories), *plan_step(trajectories, settings), settings, coeff)
        keys.add(frozenset(parts[0]))
    assert len(keys) == 1


def test_metrics_are_reduced_as_sums_and_counts() -> None:
    parts = [
        {"env_ce": Metric(2.0, 1), "env_tokens": Metric(1, 1), "ratio": Metric(0, 0)},
        {"env_ce": Metric(3.0, 9), "env_tokens": Metric(9, 1), "ratio": Metric(0, 0)},
    ]
    assert reduce_metrics(parts) == {"env_ce": 0.5, "env_tokens": 10, "ratio": None}
    with pytest.raises(ValueError, match="ratio"):
        reduce_metrics([{"env_ce": Metric(1, 1)}, {"env_ce": Metric(1, 1), "ratio": Metric(1, 1)}])


def test_env_ce_is_over_env_output_alone() -> None:
    settings = normalized(world_loss_target="all")
    trajectories = [episode([C, A, E, W, W])]
    wanted = targets(one_batch(trajectories)[0], settings.target_roles)
    _, weights = plan_step(trajectories, settings)
    logprobs_N = torch.tensor([-1.0, -4.0, -100.0, -100.0], dtype=torch.float64)
    _, metrics = echo_loss(logprobs_N, wanted, torch.zeros(1), weights, settings, 0.5)
    assert metrics["env_ce"] == Metric(4.0, 1)
    assert metrics["env_tokens"].total == 3


# --- What λ means ----------------------------------------------------------------------------------------------------


def test_portable_lambda_by_hand() -> None:
    trajectories = [episode([C, A, A, A, A, E, E], reward=1.0), episode([C, A, E, W], reward=0.0)]
    advantages_B = torch.tensor([0.5, -0.5])
    counts = count_rollouts(trajectories, {E})

    def r(settings: ObjectiveSettings, advantages_B: Tensor | None = advantages_B) -> float | None:
        return portable_lambda(0.1, counts, step_weights(counts, step_totals(counts), settings), advantages_B)

    assert r(normalized("token_mean", "token_mean")) == pytest.approx(0.1 * (1 / 3) / (1 / 5 * 0.5))
    # Env weights are 1/(2·2) for two tokens and 1/(2·2) for one.
    assert r(normalized("token_mean", "observation_tokens")) == pytest.approx(0.1 * 0.25 / (1 / 5 * 0.5))
    assert r(normalized("sequence_mean", "token_mean")) == pytest.approx(0.1 * (1 / 3) / (1 / 5 * 0.5))
    assert r(normalized(), torch.zeros(2)) is None
    assert r(normalized(), None) is None


def test_rollouts_of_the_env_term_alone_do_not_dilute_the_mean_advantage_of_portable_lambda() -> None:
    explorers = [episode([C, A, E, E, E], world_model_only=True)] * 3
    counts = count_rollouts([episode([C, A, A, E], reward=1.0), episode([C, A, E], reward=0.0), *explorers], {E})
    weights = step_weights(counts, step_totals(counts), normalized("token_mean", "token_mean"))
    advantages_B = torch.tensor([0.5, -0.5, 0.0, 0.0, 0.0])
    assert portable_lambda(0.1, counts, weights, advantages_B) == pytest.approx(0.1 * (1 / 11) / (1 / 3 * 0.5))


def test_portable_lambda_is_undefined_without_tokens() -> None:
    for roles in ([C], [C, A], [C, E]):
        counts = count_rollouts([episode(roles)], {E})
        weights = step_weights(counts, step_totals(counts), normalized())
        assert portable_lambda(0.1, counts, weights, torch.ones(1)) is None


def test_gradient_comparison_by_hand() -> None:
    rl, env = (
        [torch.tensor([3.0, 0.0]), torch.tensor([4.0]), None],
        [torch.tensor([6.0, 0.0]), None, torch.tensor([8.0])],
    )
    compared = gradient_comparison(rl, env)
    assert (compared.rl_norm, compared.env_norm) == pytest.approx((5, 10))
    assert compared.ratio == pytest.approx(2)
    assert compared.cosine == pytest.approx(18 / 50)
    zero = gradient_comparison([torch.zeros(2)], [torch.ones(2)])
    assert zero.ratio is None and zero.cosine is None
    assert gradient_comparison([torch.ones(2)], [torch.zeros(2)]).cosine is None
    # Products add up over the parameters, and norms below 1 are norms.
    small = gradient_comparison(
        [torch.tensor([0.03]), torch.tensor([0.04])], [torch.tensor([0.08]), torch.tensor([0.06])]
    )
    assert (small.ratio, small.cosine) == pytest.approx((2, 0.96))
    with pytest.raises(ValueError):
        gradient_comparison([torch.ones(1)], [])


def test_the_terms_alone_give_the_gradients_of_the_whole() -> None:
    trajectories, settings, model = random_episodes(4), normalized(), TinyLM()
    advantages_B, weights = plan_step(trajectories, settings)
    micro = one_batch(trajectories)[0]
    wanted: Targets = targets(micro, settings.target_roles)
    logprobs_N = target_logprobs(wanted.gather(model(micro)), model.lm_head, wanted, 1.0).logprobs_N
    parameters = list(model.parameters())
    rl_term = rl_loss(logprobs_N, wanted, advantages_B, weights, settings)
    rl = torch.autograd.grad(rl_term, parameters, retain_graph=True)
    env = torch.autograd.grad(env_loss(logprobs_N, wanted, weights, settings), parameters)
    _, whole, _ = run_step(model, [micro], advantages_B, weights, settings, 0.3)
    assert_close(torch.cat([(r + 0.3 * e).flatten() for r, e in zip(rl, env, strict=True)]), whole)


# --- The first step --------------------------------------------------------------------------------------------------


def first_step(coeff: float, *roles: list[Role], env: float = 0.0, kept: Collection[int] | None = None) -> None:
    rollouts = [episode(each, reward=1.0) for each in roles]
    check_first_step(0, coeff, count_rollouts(rollouts, {Role.ENV_OUTPUT}, kept=kept), env)


@pytest.mark.parametrize("env", [math.nan, math.inf, 0.0, -1.0])
def test_an_env_term_that_does_nothing_stops_the_first_step(env: float) -> None:
    with pytest.raises(EchoError, match="env term") as caught:
        first_step(0.05, [C, A, E, E], env=env)
    assert caught.value.exit_code == 1 and caught.value.tip


@pytest.mark.parametrize(
    ("rollouts", "kept", "cause"),
    [
        ([[C, A], [C]], None, "2 rollouts without an observation"),
        ([[C, A, W], [C, A]], None, "2 rollouts with warnings and without env_output"),
        ([[C, A, E], [C, A, E], [C, A]], [2], "max_correct_fraction exclude every rollout that observes something"),
    ],
)
def test_a_first_step_without_a_token_for_the_env_term_stops_with_the_cause(
    rollouts: list[list[Role]], kept: list[int] | None, cause: str
) -> None:
    with pytest.raises(EchoError, match=cause) as caught:
        first_step(0.05, *rollouts, kept=kept)
    assert caught.value.exit_code == 1 and "world_model_coeff=0" in str(caught.value.tip)
    first_step(0.0, *rollouts, kept=kept)


def test_a_first_step_with_an_env_term_passes() -> None:
    first_step(0.05, [C, A, E], [C, A], env=1.5)
    first_step(0.05, [C, A, E], [C, A], env=0.01)


# --- Advantages ------------------------------------------------------------------------------------------------------


def test_advantages_by_hand() -> None:
    rewards_B = torch.tensor([1.0, 4.0, 0.0, 5.0], dtype=torch.float64)
    groups = ["g", "h", "g", "g"]
    # Group g: 1, 0, 5, mean 2, sample variance (1 + 4 + 9) / 2. Group h has one member.
    assert advantages(rewards_B, groups, "group_mean").tolist() == [-1, 0, -2, 3]
    unit = 1 / (math.sqrt(7) + 1e-6)
    norm = advantages(rewards_B, groups, "group_norm").tolist()
    assert norm == pytest.approx([-unit, 0, -2 * unit, 3 * unit], rel=1e-12)
    # r - mean of the others: 1 - 2.5, none, 0 - 3, 5 - 0.5.
    assert advantages(rewards_B, groups, "rloo").tolist() == pytest.approx([-1.5, 0, -3, 4.5])


@pytest.mark.parametrize("kind", ["group_norm", "group_mean", "rloo"])
def test_equal_rewards_give_exactly_zero(kind: Any) -> None:
    rewards_B = torch.full((3,), 0.1, dtype=torch.float64)
    assert rewards_B.mean() != rewards_B[0]  # a rounding error that group_norm would blow up
    assert advantages(rewards_B, ["g"] * 3, kind).tolist() == [0, 0, 0]
    assert advantages(torch.tensor([0.7]), ["g"], kind).tolist() == [0]
    assert len(advantages(torch.zeros(0), [], kind)) == 0


def test_groups_and_rewards_must_match() -> None:
    with pytest.raises(ValueError, match="1 group ids for 2 rewards"):
        advantages(torch.zeros(2), ["g"], "rloo")


def test_world_model_only_rollouts_stay_out_of_their_groups_statistics() -> None:
    trajectories = [episode([C], reward=1.0), episode([C], reward=9.0, world_model_only=True), episode([C], reward=0.0)]
    assert step_advantages(trajectories, "group_mean").tolist() == [0.5, 0, -0.5]
    assert step_advantages(trajectories, "rloo").tolist() == [1, 0, -1]
    assert step_advantages([episode([C], reward=None, world_model_only=True)], "group_norm").tolist() == [0]


# --- Settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {"schedule": "cosine"},
        {"advantage": "gae"},
        {"surrogate": "ppo"},
        {"rl_normalization": "observation_tokens"},
        {"env_normalization": "sequence_mean"},
        {"world_loss_target": "warning"},
        {"world_model_coeff": -0.1},
        {"clip_low": -0.1},
        {"env_normalization": "fixed_length"},
        {"rl_normalization": "fixed_length", "max_length": 0},
        {"schedule": "linear"},
        {"schedule": "cosine"},
        {"env_every": 0},
        {"env_every": 2, "use_rl": False},
        {"env_every": 2, "world_model_coeff": 0.0},
        {"env_every": 2, "schedule": "gradient_ratio"},
        {"env_loss_clip": 0.0},
        {"env_loss_clip": 1.0, "world_model_coeff": 0.0},
        {"env_stop_at": 1.0},
        {"env_stop_at": 0.9, "world_model_coeff": 0.0},
        {"env_stop_at": 0.5, "env_loss_clip": 0.6},
        {"max_correct_fraction": 0.5, "min_correct_fraction": 0.6},
        {"max_correct_fraction": 0.5, "world_model_coeff": 0.0},
        {"max_correct_fraction": 0.5, "env_targets": "other_world"},
        {"env_min_action_entropy": 0.0},
        {"env_min_action_entropy": 1.0, "world_model_coeff": 0.0},
        {"env_min_action_entropy": 1.0, "env_targets": "other_world"},
        {"env_weights": {"stderr": -0.5}},
        {"env_weights": {"stderr": math.nan}},
        {"env_weights": {"warning": 0.5}},
        {"env_weights": {"end": 0.5}},
        {"env_weights": {"action": 1.0}},
        {"env_weights": {"env_output": 0.0}},
        {"env_weights": {"env_output": 0.0, "stderr": 0.0}},
        {"env_weights": {"stderr": 0.5}, "world_model_coeff": 0.0},
        {"world_model_coeff_end": 0.1},
        {"schedule_steps": (1,), "schedule_values": (0.1, 0.2)},
        {"schedule": "step", "schedule_steps": (1,), "schedule_values": (0.1,)},
        {"schedule": "step", "schedule_steps": (2, 2), "schedule_values": (0.1, 0.2, 0.3)},
    ],
    ids=str,
)
def test_settings_that_cannot_be_meant_are_errors(fields: dict[str, Any]) -> None:
    with pytest.raises(EchoError) as caught:
        ObjectiveSettings(**fields)
    assert caught.value.tip


# --- Filters ---------------------------------------------------------------------------------------------------------


def turn(valid_action: bool = True, clean_parse: bool = True) -> Turn:
    return Turn("ls", "", 0, valid_action, clean_parse)


def test_filters_keep_and_count_by_reason() -> None:
    trajectories = [
        episode([C], turns=(turn(), turn()), reward=1.0),
        episode([C], turns=(turn(valid_action=False), turn()), reward=1.0),
        episode([C], turns=(turn(False, False),), reward=0.0),
    ]
    nothing = filter_env_rollouts(trajectories, ObjectiveSettings())
    assert nothing.kept == (0, 1, 2)
    assert nothing.dropped == {"valid_action": 0, "clean_parse": 0, "correct": 0, "max_correct": 0}
    half = ObjectiveSettings(min_valid_action_fraction=0.5, min_clean_parse_fraction=1.0)
    assert filter_env_rollouts(trajectories, half).kept == (0, 1)
    dropped = {"valid_action": 1, "clean_parse": 1, "correct": 0, "max_correct": 0}
    assert filter_env_rollouts(trajectories, half).dropped == dropped
    for fraction, kept in ((0.5, (0, 1)), (0.6, (0,))):
        for name in ("min_valid_action_fraction", "min_clean_parse_fraction"):
            mixed = [trajectories[0], episode([C], turns=(turn(), turn(False, False))), trajectories[2]]
            assert filter_env_rollouts(mixed, ObjectiveSettings(**{name: fraction})).kept == kept  # type: ignore[arg-type]
    correct = filter_env_rollouts(trajectories, ObjectiveSettings(min_correct_fraction=1.0))
    assert correct.kept == (0, 1) and correct.dropped["correct"] == 1
    rewarded = [episode([C], reward=reward) for reward in (0.0, 0.5, 1.0)]
    for low, high, kept in ((None, 0.5, (0, 1)), (None, 0.0, (0,)), (0.5, 0.5, (1,)), (0.6, 0.9, ())):
        within = ObjectiveSettings(min_correct_fraction=low, max_correct_fraction=high)
        found = filter_env_rollouts(rewarded, within)
        assert found.kept == kept and sum(found.dropped.values()) == 3 - len(kept)


@pytest.mark.parametrize(
    "name",
    ["min_valid_action_fraction", "min_clean_parse_fraction", "min_correct_fraction", "max_correct_fraction"],
)
def test_a_filter_whose_metadata_is_missing_is_an_error(name: str) -> None:
    with pytest.raises(EchoError, match=f"^{name} ") as caught:
        filter_env_rollouts([episode([C], reward=None)], ObjectiveSettings(**{name: 0.0}))  # type: ignore[arg-type]
    assert f"unset objective.{name}" in caught.value.tip


def test_a_trace_cut_before_its_first_action_passes_the_filters_of_turns() -> None:
    settings = ObjectiveSettings(min_valid_action_fraction=1.0, min_clean_parse_fraction=1.0)
    cut = replace(episode([C]), source="trace", stop_reason="length_cap")
    acted = replace(cut, turns=(turn(False, False),))
    assert filter_env_rollouts([cut, acted], settings).kept == (0,)
    for other in (replace(cut, source="policy"), replace(cut, stop_reason="turn_cap")):
        with pytest.raises(EchoError, match="turns"):
            filter_env_rollouts([other], settings)


def test_the_correct_filter_does_not_apply_to_scripted_rollouts() -> None:
    scripted = [episode([C], reward=None, world_model_only=True)]
    for name in ("min_correct_fraction", "max_correct_fraction"):
        assert filter_env_rollouts(scripted, ObjectiveSettings(**{name: 0.5})).kept == (0,)  # type: ignore[arg-type]
