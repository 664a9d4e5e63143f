"""A weighted step: its parts equal those of the underlying functions, and imitation has no weight at 0."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from mock_lm import A, C, E, episode

from echo_cli.config.objective import ObjectiveSettings
from echo_cli.errors import EchoError
from echo_cli.objective.advantages import step_advantages
from echo_cli.objective.batch import count_rollouts
from echo_cli.objective.loss import step_totals, step_weights
from echo_cli.objective.step import weigh_step

SETTINGS = ObjectiveSettings(rl_normalization="sequence_mean", env_normalization="observation_tokens")
ROLLOUTS = [
    episode([C, A, A, E, E], reward=1.0, group_id="g"),
    episode([C, A, E], reward=0.0, group_id="g"),
    episode([C, A, E, E], reward=0.5, world_model_only=True),
]


def test_the_parts_are_those_of_the_functions_that_make_them() -> None:
    settings = replace(SETTINGS, min_correct_fraction=0.5)
    step = weigh_step(ROLLOUTS, settings, 0.3, 0.8, imitated=[2], imitation_coeff=0.1)
    counts = count_rollouts(ROLLOUTS, settings.selected_roles, kept=[0, 2], imitated=[2])
    weights = step_weights(counts, step_totals(counts), settings)
    assert step.advantages_B is not None
    assert torch.equal(step.advantages_B, step_advantages(ROLLOUTS, settings.advantage))
    for found, expected in ((step.counts, counts), (step.weights, weights)):
        for left, right in zip(vars(found).values(), vars(expected).values(), strict=True):
            assert torch.equal(left, right)
    assert step.dropped == {"valid_action": 0, "clean_parse": 0, "correct": 1}
    assert (step.trajectories, step.settings) == (ROLLOUTS, settings)
    assert (step.coeff, step.temperature, step.imitation_coeff) == (0.3, 0.8, 0.1)


@pytest.mark.parametrize("coeff", [None, 0.0])
def test_without_a_weight_nothing_is_imitated(coeff: float | None) -> None:
    step = weigh_step(ROLLOUTS, SETTINGS, 0.3, 1.0, imitated=[2], imitation_coeff=coeff)
    assert not step.counts.in_imitation_B.any() and not step.weights.imitation_weight_B.any()


def test_contrast_is_a_reward_that_differs_from_its_group() -> None:
    alike = [replace(rollout, reward=1.0) for rollout in ROLLOUTS]
    assert weigh_step(ROLLOUTS, SETTINGS, 0.3, 1.0).has_contrast
    assert not weigh_step(alike, SETTINGS, 0.3, 1.0).has_contrast
    assert not weigh_step(ROLLOUTS, replace(SETTINGS, use_rl=False), 0.3, 1.0).has_contrast


def test_without_rl_no_reward_is_needed() -> None:
    unrewarded = [replace(ROLLOUTS[0], reward=None)]
    step = weigh_step(unrewarded, replace(SETTINGS, use_rl=False), 0.3, 1.0)
    assert step.advantages_B is None and not step.counts.in_rl_B.any() and not step.weights.rl_weight_B.any()
    with pytest.raises(EchoError, match="has no reward"):
        weigh_step(unrewarded, SETTINGS, 0.3, 1.0)
