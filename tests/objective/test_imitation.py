"""Imitated traces in a step: loss and gradient by hand, and the terms that imitation does not change."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from test_context_views import TEMPERATURE, TOKENIZER, make_policy
from torch import Tensor
from trace_files import store

from echo_cli.config.objective import ObjectiveSettings
from echo_cli.config.schema import Config
from echo_cli.errors import EchoError
from echo_cli.metrics import reduce_metrics
from echo_cli.models.policy import TorchPolicy
from echo_cli.models.renderer import PlainRenderer
from echo_cli.models.tiny import TinyModel
from echo_cli.objective.batch import count_rollouts
from echo_cli.objective.filters import filter_env_rollouts
from echo_cli.objective.loss import StepTotals, step_totals
from echo_cli.objective.step import WeighedStep, weigh_step
from echo_cli.traces.training_data import render_and_truncate
from echo_cli.trajectory import Role, Trajectory

RENDERER = PlainRenderer(TOKENIZER)
SETTINGS = ObjectiveSettings(rl_normalization="sequence_mean", env_normalization="observation_tokens")
COEFF, IMITATION = 0.3, 0.7


def sampled(trajectory: Trajectory, reward: float) -> Trajectory:
    """Return the trajectory as a rollout of the policy."""
    segments = tuple(
        replace(segment, logprobs=(-1.0,) * len(segment.token_ids)) if segment.role is Role.ACTION else segment
        for segment in trajectory.segments
    )
    return replace(trajectory, segments=segments, source="policy", world_model_only=False, reward=reward)


def rollouts() -> tuple[list[Trajectory], list[int]]:
    """Return two rollouts of the policy, two of explorers and four traces; and the indices of the traces."""
    found = list(render_and_truncate(store()[:8], RENDERER, 999).trajectories)
    policy = [sampled(found[0], 0.0), sampled(found[1], 1.0)]
    explorers = [replace(trajectory, source="explorer") for trajectory in found[2:4]]
    return [*policy, *explorers, *found[4:]], [4, 5, 6, 7]


STEP, TRACES = rollouts()


def weigh(
    imitation: float | None,
    imitated: Sequence[int] = TRACES,
    coeff: float = COEFF,
    settings: ObjectiveSettings = SETTINGS,
) -> WeighedStep:
    return weigh_step(STEP, settings, coeff, TEMPERATURE, imitated=imitated, imitation_coeff=imitation)


def gradient(
    imitation: float | None,
    imitated: Sequence[int] = TRACES,
    coeff: float = COEFF,
    budget: int = 8192,
    settings: ObjectiveSettings = SETTINGS,
) -> tuple[Tensor, dict[str, float | None], TorchPolicy]:
    policy = double(make_policy(budget))
    metrics = policy.forward_backward(weigh(imitation, imitated, coeff, settings))
    found = [p.grad.flatten() if p.grad is not None else torch.zeros(p.numel()) for p in policy.model.parameters()]
    return torch.cat(found), reduce_metrics([metrics]), policy


def double(policy: TorchPolicy) -> TorchPolicy:
    model = policy.model
    assert isinstance(model, TinyModel)
    model.double().rotations_T1d = model.rotations_T1d.to(torch.complex128)
    return policy


def mean_ce(policy: TorchPolicy) -> Tensor:
    """Return the mean cross-entropy of the traces' action tokens at temperature 1, computed sequence by sequence."""
    losses = []
    for index in TRACES:
        ids = torch.tensor([STEP[index].token_ids])
        logprobs_TV = torch.log_softmax(policy.model.head(policy.model(ids)[0]), dim=-1)
        places = [place for place, role in enumerate(STEP[index].roles) if role is Role.ACTION]
        losses += [-logprobs_TV[place - 1, ids[0, place]] for place in places]
    return torch.stack(losses).mean()


def test_the_term_is_the_mean_over_the_traces_action_tokens_by_hand() -> None:
    plain, _, policy = gradient(None)
    found, metrics, _ = gradient(IMITATION)
    policy.model.zero_grad()
    loss = mean_ce(policy)
    expected = torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(policy.model.parameters()))])
    torch.testing.assert_close(found - plain, IMITATION * expected, rtol=0, atol=1e-9)
    assert metrics["imitation_loss"] == pytest.approx(loss.item(), abs=1e-9)
    assert metrics["imitation_tokens"] == sum(STEP[index].count(Role.ACTION) for index in TRACES)


@pytest.mark.parametrize("coeff", [0.0, COEFF])
@pytest.mark.parametrize("settings", [SETTINGS, ObjectiveSettings(use_rl=False)], ids=["rl", "no rl"])
def test_micro_batches_change_nothing(coeff: float, settings: ObjectiveSettings) -> None:
    whole, metrics, _ = gradient(IMITATION, coeff=coeff, settings=settings)
    for budget in (1, 40, 90):
        found, values, _ = gradient(IMITATION, coeff=coeff, budget=budget, settings=settings)
        torch.testing.assert_close(found, whole, rtol=0, atol=1e-6)
        kept = {name: value for name, value in metrics.items() if name != "padding_fraction"}
        assert {name: values[name] for name in kept} == pytest.approx(kept, abs=1e-6)


def test_at_zero_the_gradient_is_bitwise_what_it_was() -> None:
    without, metrics, _ = gradient(None, imitated=())
    for imitated in ((), TRACES):
        found, values, _ = gradient(0.0, imitated=imitated)
        assert torch.equal(found, without)
        assert {name: values[name] for name in metrics} == metrics
        assert (values["imitation_loss"], values["imitation_tokens"]) == (None, 0)


def test_the_other_terms_and_the_policys_own_figures_are_left_alone() -> None:
    _, plain, _ = gradient(None)
    _, metrics, _ = gradient(IMITATION)
    assert metrics["loss"] == pytest.approx((plain["loss"] or 0) + IMITATION * (metrics["imitation_loss"] or 0))
    others = [name for name in plain if name not in ("loss", "padding_fraction")]
    assert [metrics[name] for name in others] == pytest.approx([plain[name] for name in others], abs=1e-9)


def test_without_lambda_observations_have_no_gradient() -> None:
    settings = ObjectiveSettings(use_rl=False, world_model_coeff=0.0)
    found, _, policy = gradient(IMITATION, coeff=0.0, settings=settings)
    policy.model.zero_grad()
    parts = torch.autograd.grad(mean_ce(policy), list(policy.model.parameters()))
    torch.testing.assert_close(found, IMITATION * torch.cat([part.flatten() for part in parts]), rtol=0, atol=1e-9)


def test_the_probe_has_traces_in_the_env_term_and_imitation_in_neither() -> None:
    policy = double(make_policy())
    found = policy.probe(weigh(IMITATION))
    assert found == policy.probe(weigh(None, imitated=()))
    both, _, _ = gradient(None, coeff=1.0)
    rl, _, _ = gradient(None, coeff=0.0)
    assert found.env_norm == pytest.approx(float((both - rl).norm()), rel=1e-5)
    assert found.rl_norm == pytest.approx(float(rl.norm()), rel=1e-5)
    env = step_totals(count_rollouts(STEP, SETTINGS.selected_roles))
    assert (env.env_rollouts, env.rl_rollouts, env.imitation_tokens) == (8, 2, 0)


def _state(policy: TorchPolicy) -> list[Tensor]:
    parameters = list(policy.model.parameters())
    moments = [value for parameter in parameters for value in policy._optimizer.state[parameter].values()]
    return [value.detach().clone() for value in (*parameters, *moments)]


def test_interference_is_the_env_terms_own_first_step_by_hand() -> None:
    lr, policy, moved = 1e-3, double(make_policy()), double(make_policy())
    both, _, _ = gradient(None, coeff=COEFF)
    rl, _, _ = gradient(None, coeff=0.0)
    env = both - rl
    env = env * min(1.0, policy._optim.grad_clip / float(env.norm()))
    with torch.no_grad():
        at = 0
        for parameter in moved.model.parameters():
            part = env[at : at + parameter.numel()].view_as(parameter)
            parameter -= lr * part / (part.abs() + policy._optim.eps)  # AdamW's first step
            at += parameter.numel()

    def logprobs(of: TorchPolicy) -> Tensor:
        found = []
        for rollout in STEP[:2]:
            ids = torch.tensor([rollout.token_ids])
            logprobs_TV = torch.log_softmax(of.model.head(of.model(ids)[0]).detach() / TEMPERATURE, dim=-1)
            places = [place for place, role in enumerate(rollout.roles) if role is Role.ACTION]
            found += [logprobs_TV[place - 1, ids[0, place]] for place in places]
        return torch.stack(found)

    change = logprobs(moved) - logprobs(policy)
    found = policy.interference(weigh(IMITATION), lr)
    assert found is not None
    assert found.shift == pytest.approx(float(change.mean()), rel=1e-4)
    assert found.distance == pytest.approx(float(change.abs().mean()), rel=1e-4)
    assert found.kl == pytest.approx(float((change.exp() - change - 1).mean()), rel=1e-3) and found.kl > 0
    assert found.distance > 0.001, "the step moves the policy"


def test_interference_is_undone_bitwise() -> None:
    probed, plain = make_policy(), make_policy()
    for policy in (probed, plain):
        policy.forward_backward(weigh(None, imitated=()))
        policy.optim_step(1e-3)
    before = _state(probed)
    probed.forward_backward(weigh(None, imitated=()))
    accumulated = [parameter.grad.clone() for parameter in probed.model.parameters() if parameter.grad is not None]
    first = probed.interference(weigh(None, imitated=()), 1e-3)
    assert first == probed.interference(weigh(None, imitated=()), 1e-3), "nothing of the first one is left"
    assert all(map(torch.equal, _state(probed), before))
    kept = [parameter.grad for parameter in probed.model.parameters() if parameter.grad is not None]
    assert len(kept) == len(accumulated) > 0 and all(map(torch.equal, kept, accumulated))
    plain.forward_backward(weigh(None, imitated=()))
    assert probed.optim_step(1e-3) == plain.optim_step(1e-3)
    assert all(map(torch.equal, _state(probed), _state(plain)))


def test_interference_needs_a_weight_of_the_env_term_and_actions_of_the_policy() -> None:
    policy = make_policy()
    assert policy.interference(weigh(None, imitated=(), coeff=0.0), 1e-3) is None
    explorers = [replace(rollout, world_model_only=True) for rollout in STEP]
    assert policy.interference(weigh_step(explorers, SETTINGS, COEFF, TEMPERATURE), 1e-3) is None
    verifier_free = replace(SETTINGS, use_rl=False)
    assert policy.interference(weigh(None, imitated=(), settings=verifier_free), 1e-3) is not None


def test_totals_of_ranks_add_up() -> None:
    assert StepTotals(1, 2, 3, 4, 5) + StepTotals(10, 20, 30, 40, 50) == StepTotals(11, 22, 33, 44, 55)


def test_what_rl_learns_from_is_not_imitated() -> None:
    with pytest.raises(ValueError, match="cannot be imitated"):
        count_rollouts(STEP, SETTINGS.selected_roles, imitated=[0])


def test_filters_are_of_the_env_term_and_judge_traces_by_their_own_reward() -> None:
    judged = [replace(trajectory, reward=number / 8) for number, trajectory in enumerate(STEP)]
    settings = ObjectiveSettings(min_correct_fraction=0.5)
    assert filter_env_rollouts(judged, settings).kept == (4, 5, 6, 7)
    unjudged = replace(STEP[4], reward=None)
    assert filter_env_rollouts([replace(unjudged, source="explorer")], settings).kept == (0,)
    with pytest.raises(EchoError, match="needs a reward"):
        filter_env_rollouts([unjudged], settings)


def test_the_weight_is_the_configs() -> None:
    def config(**keys: Any) -> Config:
        return Config.model_validate_json(json.dumps(keys))

    assert config().imitation_coeff == 0.0
    assert config(traces={"path": "a"}).imitation_coeff == 0.0
    assert config(traces={"path": ["a"], "imitation_coeff": 0.3}).imitation_coeff == 0.3
