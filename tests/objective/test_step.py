"""A weighted step: its parts equal those of the underlying functions, and imitation has no weight at 0."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from mock_lm import A, C, E, episode

from echo_cli.config.objective import ObjectiveSettings
from echo_cli.errors import EchoError
from echo_cli.objective.advantages import step_advantages
from echo_cli.objective.batch import collate, count_rollouts, pack, targets
from echo_cli.objective.loss import step_totals, step_weights
from echo_cli.objective.step import WeighedStep, misplaced_targets, observation_tokens, weigh_step
from echo_cli.trajectory import Role

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
    assert step.dropped == {"valid_action": 0, "clean_parse": 0, "correct": 1, "max_correct": 0}
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


# Three rollouts with the observations 1 2, 3 and 4 5 6, and one that observes nothing.
PLACEBO_ROLLOUTS = [
    episode([C, A, E, E], token_ids=[0, 9, 1, 2], reward=1.0),
    episode([C, A, E, A], token_ids=[0, 9, 3, 9], reward=0.0),
    episode([C, A, E, E, E], token_ids=[0, 9, 4, 5, 6], reward=None, world_model_only=True),
    episode([C, A], token_ids=[0, 9], reward=0.5),
]


def _weigh(targets_of: object, seed: int = 0) -> WeighedStep:
    return weigh_step(PLACEBO_ROLLOUTS, replace(SETTINGS, env_targets=targets_of), 0.3, 0.8, seed=seed)  # type: ignore[arg-type]


def test_shuffled_targets_are_the_other_rollouts_texts_by_hand() -> None:
    # The longest rollout, 2, comes first, so that every target is three tokens ahead in the texts that follow it.
    expected = ({2: [1, 2, 3], 0: [4, 5], 1: [6]}, {2: [3, 1, 2], 1: [4], 0: [5, 6]})
    found = [dict(_weigh("shuffled", seed).misplaced) for seed in range(8)]
    assert all(each in expected for each in found) and all(each in found for each in expected)
    assert _weigh("shuffled").misplaced_fraction == 1.0


@pytest.mark.parametrize("kind", ["shuffled", "random"])
def test_wrong_targets_keep_the_counts_of_tokens_and_of_every_rollout(kind: str) -> None:
    true = {index: observation_tokens(rollout, {E}) for index, rollout in enumerate(PLACEBO_ROLLOUTS)}
    step = _weigh(kind, 5)
    assert step.misplaced == _weigh(kind, 5).misplaced
    assert any(step.misplaced != _weigh(kind, seed).misplaced for seed in range(5))
    assert {index: len(found) for index, found in step.misplaced.items()} == {0: 2, 1: 1, 2: 3}
    assert Counter(t for found in step.misplaced.values() for t in found) == Counter(
        t for f in true.values() for t in f
    )
    plain = weigh_step(PLACEBO_ROLLOUTS, SETTINGS, 0.3, 0.8)
    for left, right in zip(vars(step.weights).values(), vars(plain.weights).values(), strict=True):
        assert torch.equal(left, right)
    assert plain.misplaced == {} and plain.misplaced_fraction == 0.0


def test_a_filtered_rollout_neither_gives_nor_gets_targets() -> None:
    settings = replace(SETTINGS, env_targets="shuffled", min_correct_fraction=0.5)
    assert weigh_step(PLACEBO_ROLLOUTS, settings, 0.3, 0.8).misplaced == {2: [1, 2, 4], 0: [5, 6]}
    assert misplaced_targets([PLACEBO_ROLLOUTS[3]], [0], settings, 0) == {}
    alone = misplaced_targets(PLACEBO_ROLLOUTS, [0], settings, 0)
    assert alone == {0: [1, 2]}, "there is nobody to exchange with"


def test_replaced_targets_leave_inputs_actions_and_other_rollouts_as_they_are() -> None:
    for micro in (collate(PLACEBO_ROLLOUTS, [0, 1, 2], 0), pack(PLACEBO_ROLLOUTS, [[1, 2], [0]], 0)):
        wanted = targets(micro, {A, E})
        found = wanted.replaced({0: [7, 8], 2: [5, 6, 4]})
        assert torch.equal(found.token_ids_N[: found.action_count], wanted.token_ids_N[: wanted.action_count])
        for index, expected in ((0, [7, 8]), (1, [3]), (2, [5, 6, 4])):
            mine = (found.rollout_N == index) & (found.roles_N == Role.ENV_OUTPUT)
            assert found.token_ids_N[mine].tolist() == expected
        assert torch.equal(found.position_N, wanted.position_N) and wanted.replaced({}) is wanted
        with pytest.raises(ValueError, match="1 token ids for 2 targets"):
            wanted.replaced({0: [7]})


def test_a_placebo_of_another_world_leaves_only_explorers_in_the_env_term() -> None:
    step = _weigh("other_world")
    assert step.counts.in_env_B.tolist() == [False, False, True, False]
    assert step.misplaced == {} and step.misplaced_fraction == 0.0
    assert step.weights.env_weight_B.tolist() == [0, 0, 1 / 3, 0]
    assert torch.equal(step.weights.rl_weight_B, weigh_step(PLACEBO_ROLLOUTS, SETTINGS, 0.3, 0.8).weights.rl_weight_B)
