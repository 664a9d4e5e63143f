"""A step as advantages and logprobs: hand-computed values, and the gradient of the loss that they stand for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from mock_lm import PAD_ID, A, C, E, TinyLM, W, episode, random_episodes
from torch import Tensor

from echo_cli.config.objective import ObjectiveSettings
from echo_cli.models.tinker.datum import (
    Datum,
    Reduction,
    advantages_of,
    gather,
    needs_fresh,
    reduction_factors,
    step_sequences,
    step_targets,
    weighed,
)
from echo_cli.objective.batch import collate, targets
from echo_cli.objective.logprobs import target_logprobs
from echo_cli.objective.loss import echo_loss
from echo_cli.objective.step import WeighedStep, weigh_step
from echo_cli.trajectory import expand_context_views

PAPER = ObjectiveSettings(rl_normalization="token_mean", env_normalization="observation_tokens", advantage="group_mean")
LOW, HIGH = 0.2, 0.28


def logprobs_of(model: TinyLM, datum: Datum) -> Tensor:
    """Return the model's logprobs of a sequence's targets, [T]."""
    ids = [*datum.input_ids.tolist(), PAD_ID]
    micro = collate([episode([C] * len(ids), token_ids=ids)], [0], PAD_ID)
    all_TV = model.lm_head(model(micro)[0, :-1]).log_softmax(dim=-1)
    return all_TV.gather(1, torch.from_numpy(datum.target_ids)[:, None])[:, 0]


def request(model: TinyLM, step: WeighedStep, reduction: Reduction = "sum") -> list[Datum]:
    """Return the request for a step, with the model's present logprobs."""
    views = expand_context_views(step.trajectories, use_rl=step.settings.use_rl)
    wanted = step_targets(step, views)
    sequences = step_sequences(views, wanted)
    fresh_N = gather([logprobs_of(model, of).detach().numpy() for of in sequences], wanted)
    logprobs_N = torch.where(needs_fresh(step, wanted), fresh_N, wanted.behaviour_logprobs_N.double())
    return weighed(sequences, wanted, advantages_of(step, wanted, fresh_N), logprobs_N, reduction)


def served_loss(model: TinyLM, data: list[Datum], surrogate: str, reduction: Reduction) -> Tensor:
    """Return the loss as a service computes it."""
    losses = []
    for datum in data:
        assert datum.advantages is not None and datum.logprobs is not None
        ratio_T = (logprobs_of(model, datum) - torch.from_numpy(datum.logprobs)).exp()
        advantages_T = torch.from_numpy(datum.advantages)
        terms_T = ratio_T * advantages_T
        if surrogate == "clipped":
            terms_T = torch.minimum(terms_T, ratio_T.clamp(1 - LOW, 1 + HIGH) * advantages_T)
        losses.append(-terms_T.sum() / (1 if reduction == "sum" else len(datum) * len(data)))
    return torch.stack(losses).sum()


def gradient(model: TinyLM) -> Tensor:
    found = torch.cat(
        [torch.zeros_like(of).flatten() if of.grad is None else of.grad.flatten() for of in model.parameters()]
    )
    model.zero_grad()
    return found


EIGHT = episode([C, C, A, A, E, E, A, A], token_ids=[1, 2, 3, 4, 5, 6, 7, 8], reward=1.0)
"""The episode prompt · prompt · action · action · output · output · action · action."""


def values(array: Any) -> list[float]:
    return [round(float(value), 5) for value in array]


def test_the_eight_token_episode_by_hand() -> None:
    other = episode([C, A, E], token_ids=[1, 2, 3], reward=0.0)
    step = weigh_step([EIGHT, other], PAPER, 0.5, 1.0)
    model = TinyLM()
    first, second = request(model, step)
    assert first.input_ids.tolist() == [1, 2, 3, 4, 5, 6, 7] and first.target_ids.tolist() == [2, 3, 4, 5, 6, 7, 8]
    # Advantages ±0.5 over 5 action tokens; λ 0.5 over 2 rollouts and their own 2 and 1 observations.
    assert first.advantages is not None and second.advantages is not None
    assert values(first.advantages) == [0, 0.1, 0.1, 0.125, 0.125, 0.1, 0.1]
    assert values(second.advantages) == [-0.1, 0.25]
    behaviour = [segment.logprobs[0] for segment in EIGHT.segments if segment.logprobs]
    fresh = logprobs_of(model, first).tolist()
    expected = [0, *behaviour[:2], *fresh[3:5], *behaviour[2:]]
    assert first.logprobs is not None and values(first.logprobs) == values(expected)


def test_a_mean_over_sequences_is_undone_by_length_and_number() -> None:
    step = weigh_step([EIGHT, episode([C, A, E], token_ids=[1, 2, 3], reward=0.0)], PAPER, 0.5, 1.0)
    summed, averaged = request(TinyLM(), step), request(TinyLM(), step, "sequence_mean")
    assert reduction_factors("sequence_mean", [7, 2]) == [14.0, 4.0]
    assert reduction_factors("sum", [7, 2]) == [1.0, 1.0]
    for of, scaled, factor in zip(summed, averaged, (14, 4), strict=True):
        assert of.advantages is not None and scaled.advantages is not None
        np.testing.assert_allclose(scaled.advantages, factor * of.advantages, rtol=1e-6)
        assert of.logprobs is not None and scaled.logprobs is not None
        assert of.logprobs.tobytes() == scaled.logprobs.tobytes()


def test_at_zero_lambda_nothing_of_the_observations_is_sent() -> None:
    step = weigh_step([EIGHT, replace(EIGHT, reward=0.0)], PAPER, 0.0, 1.0)
    views = expand_context_views(step.trajectories, use_rl=True)
    assert not needs_fresh(step, step_targets(step, views)).any()
    for sign, datum in zip((1, -1), request(TinyLM(), step), strict=True):
        assert datum.advantages is not None and datum.logprobs is not None
        assert values(datum.advantages) == [0, *[sign * 0.0625] * 2, 0, 0, *[sign * 0.0625] * 2]
        assert datum.logprobs[[0, 3, 4]].tolist() == [0, 0, 0]


VARIANTS: dict[str, dict[str, Any]] = {
    "paper": {},
    "sequence mean": {"rl_normalization": "sequence_mean", "env_normalization": "selected_tokens"},
    "fixed length": {"rl_normalization": "fixed_length", "env_normalization": "fixed_length", "max_length": 9},
    "warnings": {"world_loss_target": "all", "env_normalization": "token_mean"},
    "reinforce": {"surrogate": "reinforce"},
    "no rl": {"use_rl": False},
    "limits": {"env_loss_clip": 2.4, "env_stop_at": 0.2},
    "weights": {"env_weights": {"env_output": 0.3}},
    "shuffled": {"env_targets": "shuffled"},
    "random": {"env_targets": "random"},
}


@pytest.mark.parametrize("reduction", ["sum", "sequence_mean"])
@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("coeff", [0.0, 0.7])
def test_the_service_gets_the_gradient_of_the_loss(name: str, coeff: float, reduction: Reduction) -> None:
    settings = replace(PAPER, clip_low=LOW, clip_high=HIGH, **VARIANTS[name])
    rollouts = [*random_episodes(3), EIGHT, episode([C, W, A, E, W, E], reward=0.5, world_model_only=True)]
    step = weigh_step(rollouts, settings, coeff, 1.0, seed=1)
    model = TinyLM()
    expected = own_gradient(model, step)
    served_loss(model, request(model, step, reduction), settings.surrogate, reduction).backward()
    torch.testing.assert_close(gradient(model), expected, rtol=1e-5, atol=1e-7)


def own_gradient(model: TinyLM, step: WeighedStep) -> Tensor:
    """Return the gradient of the loss itself."""
    micro = collate(step.trajectories, range(len(step.trajectories)), PAD_ID)
    wanted = targets(micro, step.settings.target_roles).replaced(step.misplaced).weighted(step.factors)
    scores = target_logprobs(wanted.gather(model(micro)), model.lm_head, wanted, 1.0)
    loss, _ = echo_loss(scores.logprobs_N, wanted, step.advantages_B, step.weights, step.settings, step.coeff)
    loss.backward()
    return gradient(model)


def test_imitated_actions_are_a_cross_entropy_too() -> None:
    traced = replace(EIGHT, world_model_only=True)
    step = weigh_step([traced], PAPER, 0.0, 1.0, imitated=[0], imitation_coeff=0.8)
    model = TinyLM()
    (datum,) = request(model, step)
    assert datum.advantages is not None and datum.logprobs is not None
    assert values(datum.advantages) == [0, 0.2, 0.2, 0, 0, 0.2, 0.2]
    sent = logprobs_of(model, datum).detach().numpy() * (datum.advantages != 0)
    np.testing.assert_allclose(datum.logprobs, sent, rtol=1e-6)


def test_a_placebo_changes_the_targets_and_no_input() -> None:
    rollouts = [EIGHT, episode([C, A, E, E, E], token_ids=[1, 2, 9, 9, 9], reward=0.0)]
    step = weigh_step(rollouts, replace(PAPER, env_targets="shuffled"), 0.5, 1.0)
    first, second = request(TinyLM(), step)
    assert first.input_ids.tolist() == [1, 2, 3, 4, 5, 6, 7] and second.input_ids.tolist() == [1, 2, 9, 9]
    assert first.target_ids.tolist() == [2, 3, 4, 9, 9, 7, 8]
    assert sorted(second.target_ids.tolist()) == [2, 5, 6, 9]
