"""Ends of outputs as targets of the env term: denominators, metrics, and gradients that nothing else may change."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from mock_lm import PAD_ID, A, C, E, TinyLM, W, episode, plan_step, run_step
from torch.testing import assert_close

from echo_cli.config.objective import EnvNormalization, ObjectiveSettings
from echo_cli.errors import EchoError
from echo_cli.metrics import reduce_metrics
from echo_cli.objective.batch import MicroBatch, collate, count_rollouts, pack, targets
from echo_cli.objective.diagnostics import check_first_step
from echo_cli.objective.step import weigh_step
from echo_cli.trajectory import Role, Trajectory

END = Role.END
SETTINGS = ObjectiveSettings(end_of_output=True, env_normalization="token_mean")
PLAIN = replace(SETTINGS, end_of_output=False)
# Two outputs with an end, one of them with a warning; the last output of the second rollout has none.
STEP = [
    episode([C, A, E, E, W, END, C, A, E, END, C], reward=1.0, seed=1),
    episode([C, A, E, E, E, END, A, E], reward=0.0, seed=2),
    episode([C, A, A, W], reward=0.5, seed=3),
]


def batch(trajectories: list[Trajectory]) -> list[MicroBatch]:
    return [collate(trajectories, range(len(trajectories)), PAD_ID)]


def unmarked(trajectory: Trajectory) -> Trajectory:
    segments = [replace(s, role=C) if s.role is END else s for s in trajectory.segments]
    return replace(trajectory, segments=tuple(segments))


@pytest.mark.parametrize(
    ("normalization", "weights"),
    [
        ("observation_tokens", [1 / (3 * 6), 1 / (3 * 5), 1 / 3]),  # |O| = 6, 5, 1: outputs, warnings and ends
        ("selected_tokens", [1 / (3 * 5), 1 / (3 * 5), 0.0]),
        ("token_mean", [1 / 10, 1 / 10, 1 / 10]),
        ("fixed_length", [1 / (3 * 20)] * 3),
    ],
)
def test_ends_enter_every_denominator_as_any_other_target(
    normalization: EnvNormalization, weights: list[float]
) -> None:
    settings = replace(SETTINGS, env_normalization=normalization, max_length=20)
    step = weigh_step(STEP, settings, 0.3, 1.0, mark_ends=lambda trajectory: trajectory)
    assert step.counts.ends_B.tolist() == [2, 1, 0]
    assert step.counts.selected_B.tolist() == [5, 5, 0] and step.counts.observations_B.tolist() == [6, 5, 1]
    assert step.weights.env_weight_B.tolist() == pytest.approx(weights)


def test_the_losses_of_outputs_and_ends_are_told_apart() -> None:
    model, micros = TinyLM(), [collate(STEP, [index], 0) for index in range(3)]
    advantages_B, weights = plan_step(STEP, SETTINGS)
    loss, _, parts = run_step(model, micros, advantages_B, weights, replace(SETTINGS, use_rl=False), 1.0)
    found = reduce_metrics(parts)
    assert (found["end_tokens"], found["env_tokens"]) == (3, 10)
    assert found["env_ce"] is not None and found["end_ce"] is not None
    assert loss == pytest.approx((7 * found["env_ce"] + 3 * found["end_ce"]) / 10)
    # The CE of outputs is the same, over the same tokens, in a run that does not learn ends.
    as_before = [unmarked(trajectory) for trajectory in STEP]
    without = run_step(model, batch(as_before), *plan_step(as_before, PLAIN), PLAIN, 1.0)[2]
    assert reduce_metrics(without)["env_ce"] == pytest.approx(found["env_ce"], abs=1e-12)
    assert "end_ce" not in without[0] and "end_tokens" not in without[0]


def test_without_the_option_nothing_is_marked_and_every_bit_is_as_before() -> None:
    as_before = [unmarked(trajectory) for trajectory in STEP]

    def refuse(trajectory: Trajectory) -> Trajectory:
        raise AssertionError("an end was marked")

    step = weigh_step(as_before, PLAIN, 0.3, 1.0, mark_ends=refuse)
    assert step.trajectories is as_before and not step.counts.ends_B.any()
    with pytest.raises(ValueError, match="mark_ends"):
        weigh_step(as_before, SETTINGS, 0.3, 1.0)


def test_ends_are_ordinary_targets_of_the_env_term() -> None:
    """λ = 0 is bitwise plain GRPO, and neither packing nor order nor the RL term changes the gradient of ends."""
    model = TinyLM()
    plan, as_before = plan_step(STEP, SETTINGS), [unmarked(trajectory) for trajectory in STEP]
    grpo = run_step(model, batch(as_before), *plan_step(as_before, PLAIN), PLAIN, 0.0)[1]
    assert torch.equal(run_step(model, batch(STEP), *plan, SETTINGS, 0.0)[1], grpo)

    whole = run_step(model, batch(STEP), *plan, SETTINGS, 0.5)[1]
    packed = [pack(STEP, [[2, 0], [1]], 0, width=20, padding_side="left")]
    assert_close(run_step(model, packed, *plan, SETTINGS, 0.5)[1], whole)
    alone = [collate(STEP, [index], 0) for index in (1, 0, 2)]
    assert_close(run_step(model, alone, *plan, SETTINGS, 0.5)[1], whole)
    without_rl = replace(SETTINGS, use_rl=False)
    env = run_step(model, batch(STEP), *plan_step(STEP, without_rl), without_rl, 0.5)[1]
    assert_close(whole - grpo, env)
    wanted = targets(batch(STEP)[0], SETTINGS.target_roles)
    assert (wanted.roles_N == END).sum() == 3 and (wanted.roles_N[: wanted.action_count] == A).all()


def test_a_step_without_any_end_stops_the_run() -> None:
    def first(rollouts: list[Trajectory], coeff: float, *, ends: bool) -> None:
        counts = count_rollouts(rollouts, SETTINGS.selected_roles)
        check_first_step(0, coeff, counts, 1.0, end_of_output=ends)

    first(STEP, 0.3, ends=True)
    bare = [episode([C, A, E])]
    first(bare, 0.3, ends=False)
    first(bare, 0.0, ends=True)  # the env term is off
    with pytest.raises(EchoError, match="no output of step 0 is followed by a prompt") as caught:
        first(bare, 0.3, ends=True)
    assert caught.value.exit_code == 1 and "environment.prompt" in str(caught.value.tip)
