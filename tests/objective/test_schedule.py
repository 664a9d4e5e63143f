"""Schedules of the learning rate and of λ: golden values. A change here changes every published run."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echo_cli.config.objective import ObjectiveSettings
from echo_cli.config.schema import OptimConfig
from echo_cli.errors import EchoError
from echo_cli.objective.schedule import GradientNorms, learning_rate_at, measures_gradients, world_model_coeff_at


def rates(steps: int, **fields: object) -> list[float]:
    optim = OptimConfig(lr=0.1, **fields)  # type: ignore[arg-type]
    return [learning_rate_at(optim, step, steps) for step in range(steps)]


def test_a_constant_rate() -> None:
    assert rates(3) == [0.1, 0.1, 0.1]


def test_warm_up_reaches_the_rate_at_its_last_step() -> None:
    assert rates(5, warmup_steps=4) == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1])


def test_linear_would_reach_zero_at_the_step_after_the_last() -> None:
    assert rates(4, lr_schedule="linear") == pytest.approx([0.1, 0.075, 0.05, 0.025])
    assert rates(6, lr_schedule="linear", warmup_steps=2) == pytest.approx([0.05, 0.1, 0.1, 0.075, 0.05, 0.025])


def test_cosine() -> None:
    half = 0.1 / 2
    root = math.sqrt(0.5)
    assert rates(4, lr_schedule="cosine") == pytest.approx([0.1, half * (1 + root), half, half * (1 - root)])


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (1, 1), (3, 5), (60, 6)])
def test_every_step_has_a_positive_rate_no_higher_than_the_configured_one(
    schedule: str, steps: int, warmup: int
) -> None:
    found = rates(steps, lr_schedule=schedule, warmup_steps=warmup)
    assert all(0 < rate <= 0.1 * (1 + 1e-12) for rate in found)


def test_schedule_golden_values() -> None:
    constant = ObjectiveSettings(world_model_coeff=0.1)
    assert [world_model_coeff_at(constant, step, 5) for step in range(5)] == [0.1] * 5
    linear = ObjectiveSettings(world_model_coeff=1.0, world_model_coeff_end=0.0, schedule="linear")
    assert [world_model_coeff_at(linear, step, 5) for step in range(6)] == [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    assert world_model_coeff_at(linear, 0, 1) == 0.0
    stepped = ObjectiveSettings(schedule="step", schedule_steps=(2, 4), schedule_values=(0.3, 0.2, 0.0))
    assert [world_model_coeff_at(stepped, step, 6) for step in range(6)] == [0.3, 0.3, 0.2, 0.2, 0.0, 0.0]


def test_lambda_decays_along_half_a_cosine() -> None:
    cosine = ObjectiveSettings(world_model_coeff=1.0, world_model_coeff_end=0.0, schedule="cosine")
    found = [world_model_coeff_at(cosine, step, 5) for step in range(6)]
    assert found == pytest.approx([1.0, 0.5 + 0.5**1.5, 0.5, 0.5 - 0.5**1.5, 0.0, 0.0])
    assert (found[0], found[4]) == (1.0, 0.0)
    assert world_model_coeff_at(cosine, 0, 1) == 0.0
    rising = replace(cosine, world_model_coeff=0.1, world_model_coeff_end=0.7)
    assert [world_model_coeff_at(rising, step, 3) for step in range(3)] == pytest.approx([0.1, 0.4, 0.7])


def test_the_env_term_has_lambda_at_every_kth_step_and_zero_between() -> None:
    constant = ObjectiveSettings(world_model_coeff=0.3, env_every=3)
    assert [world_model_coeff_at(constant, step, 7) for step in range(7)] == [0.3, 0, 0, 0.3, 0, 0, 0.3]
    linear = ObjectiveSettings(world_model_coeff=1.0, world_model_coeff_end=0.0, schedule="linear", env_every=2)
    assert [world_model_coeff_at(linear, step, 5) for step in range(5)] == [1.0, 0, 0.5, 0, 0]
    stepped = ObjectiveSettings(schedule="step", schedule_steps=(2,), schedule_values=(0.3, 0.2), env_every=2)
    assert [world_model_coeff_at(stepped, step, 5) for step in range(5)] == [0.3, 0, 0.2, 0, 0.2]


def test_lambda_of_a_gradient_ratio_is_the_target_over_the_measured_ratio_within_its_bounds() -> None:
    settings = ObjectiveSettings(
        world_model_coeff=0.7, schedule="gradient_ratio", gradient_ratio_target=0.5, gradient_ratio_bounds=(0.01, 2.0)
    )
    # λ · env / RL = target: 0.5 · 0.3 / 0.2.
    assert world_model_coeff_at(settings, 3, 9, GradientNorms(rl=0.3, env=0.2)) == pytest.approx(0.75)
    assert world_model_coeff_at(settings, 3, 9, GradientNorms(rl=9.0, env=0.2)) == 2.0
    assert world_model_coeff_at(settings, 3, 9, GradientNorms(rl=1e-4, env=0.2)) == 0.01
    assert world_model_coeff_at(settings, 3, 9, GradientNorms()) == world_model_coeff_at(settings, 3, 9) == 0.7
    constant = ObjectiveSettings(world_model_coeff=0.7)
    assert world_model_coeff_at(constant, 3, 9, GradientNorms(rl=0.3, env=0.2)) == 0.7


def test_linear_lambda_between_two_values_above_zero() -> None:
    linear = ObjectiveSettings(world_model_coeff=2.0, world_model_coeff_end=0.5, schedule="linear")
    assert [world_model_coeff_at(linear, step, 4) for step in range(4)] == pytest.approx([2.0, 1.5, 1.0, 0.5])
    assert [world_model_coeff_at(linear, step, 2) for step in range(2)] == [2.0, 0.5]


def test_lambda_defaults_to_the_papers_with_rl_and_to_one_without() -> None:
    assert world_model_coeff_at(ObjectiveSettings(), 0, 1) == 0.05
    assert world_model_coeff_at(ObjectiveSettings(use_rl=False), 0, 1) == 1.0
    assert world_model_coeff_at(ObjectiveSettings(use_rl=False, world_model_coeff=0.2), 0, 1) == 0.2


def test_gradient_norms_are_moving_averages_of_usable_measurements() -> None:
    once = GradientNorms().updated(2.0, 4.0, 0.75)
    assert once == GradientNorms(rl=0.5, env=1.0)
    assert once.updated(2.0, 8.0, 0.75) == GradientNorms(rl=0.875, env=2.75)
    assert GradientNorms().updated(0.25, 0.5, 0.5) == GradientNorms(rl=0.125, env=0.25)
    for rl, env in ((0.0, 1.0), (1.0, 0.0), (math.nan, 1.0), (math.inf, 1.0), (1.0, math.inf)):
        assert once.updated(rl, env, 0.75) == once
        assert GradientNorms().updated(rl, env, 0.75) == GradientNorms()


def _ratio(**fields: Any) -> ObjectiveSettings:
    return ObjectiveSettings(schedule="gradient_ratio", **fields)


def test_the_gradient_ratio_starts_at_the_given_lambda_and_then_holds_its_target() -> None:
    settings = _ratio(world_model_coeff=0.7, gradient_ratio_target=0.5, gradient_ratio_every=3)
    assert world_model_coeff_at(settings, 0, 9) == world_model_coeff_at(settings, 5, 9, GradientNorms()) == 0.7
    # λ · env / rl = 0.5 with rl 0.2 and env 0.4. The first measurement has full weight for any smoothing.
    norms = GradientNorms().updated(0.2, 0.4, 0.9)
    assert world_model_coeff_at(settings, 0, 9, norms) == pytest.approx(0.25)
    # Means of half the old and half the new: rl (0.1 + 0.4) / 0.75 and env (0.2 + 0.2) / 0.75, bias-corrected.
    norms = GradientNorms().updated(0.4, 0.8, 0.5).updated(0.8, 0.4, 0.5)
    assert world_model_coeff_at(settings, 1, 9, norms) == pytest.approx(0.5 * 0.5 / 0.4)
    assert [step for step in range(9) if measures_gradients(settings, step)] == [0, 3, 6]
    assert not measures_gradients(ObjectiveSettings(), 0)


@given(st.lists(st.tuples(st.floats(1e-6, 1e6), st.floats(1e-6, 1e6)), min_size=1, max_size=20), st.floats(0, 0.99))
def test_lambda_lies_among_those_that_the_single_measurements_ask_for(
    measured: list[tuple[float, float]], smoothing: float
) -> None:
    settings = _ratio(gradient_ratio_target=1.0, gradient_ratio_bounds=(0.0, 1e15))
    norms = GradientNorms()
    for rl, env in measured:
        norms = norms.updated(rl, env, smoothing)
    wanted = [rl / env for rl, env in measured]
    assert min(wanted) * 0.999 <= world_model_coeff_at(settings, 0, 9, norms) <= max(wanted) * 1.001


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"gradient_ratio_target": 1.0}, "schedule 'constant' does not use gradient_ratio_target"),
        ({"gradient_ratio_every": 1, "schedule": "linear", "world_model_coeff_end": 0.1}, "does not use"),
        ({"schedule": "gradient_ratio", "use_rl": False}, "needs an RL gradient"),
        ({"schedule": "gradient_ratio", "gradient_ratio_target": 0.0}, "out of range"),
        ({"schedule": "gradient_ratio", "gradient_ratio_bounds": (1.0, 0.1)}, "out of range"),
        ({"schedule": "gradient_ratio", "gradient_ratio_bounds": (-1.0, 0.1)}, "out of range"),
        ({"schedule": "gradient_ratio", "gradient_ratio_bounds": (0.0, 0.0)}, "out of range"),
        ({"schedule": "gradient_ratio", "gradient_ratio_smoothing": 1.0}, "out of range"),
        ({"schedule": "gradient_ratio", "gradient_ratio_every": 0}, "out of range"),
        ({"schedule": "gradient_ratio", "world_model_coeff_end": 1.0}, "world_model_coeff_end"),
        ({"schedule": "gradient-ratio"}, "unknown schedule"),
    ],
)
def test_a_schedule_with_settings_that_do_not_fit_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(EchoError, match=message) as caught:
        ObjectiveSettings(**fields)
    assert caught.value.tip
