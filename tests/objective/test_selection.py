"""Selection of the env term's targets, and their factors: values by hand, and equality with what they stand for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from mock_lm import PAD_ID, A, C, E, TinyLM, W, episode, run_step
from torch import Tensor
from torch.testing import assert_close

from echo_cli.config.objective import EnvNormalization, ObjectiveSettings
from echo_cli.errors import EchoError
from echo_cli.metrics import reduce_metrics
from echo_cli.objective.batch import collate, pack, targets
from echo_cli.objective.diagnostics import check_first_step, portable_lambda
from echo_cli.objective.selection import action_entropy, target_factors, unmatched_line
from echo_cli.objective.step import WeighedStep, weigh_step
from echo_cli.trajectory import Role, Segment, Trajectory, expand_context_views

SETTINGS = ObjectiveSettings(env_normalization="token_mean", world_loss_target="all", end_of_output=True, max_length=20)
NORMALIZATIONS = get_args(EnvNormalization)
COEFF = 0.5


def named(trajectory: Trajectory, channels: Sequence[str | None]) -> Trajectory:
    """Return the trajectory with a channel per token, as every token is a segment of its own."""
    segments = [replace(s, channel=channel) for s, channel in zip(trajectory.segments, channels, strict=True)]
    return replace(trajectory, segments=tuple(segments))


def surprising(trajectory: Trajectory, *surprisals: float | None) -> Trajectory:
    """Return the trajectory with the surprisals of its actions, of one token each; None is a scripted action."""
    given = iter(surprisals)

    def played(segment: Segment) -> Segment:
        if segment.role is not A:
            return segment
        surprisal = next(given)
        return replace(segment, logprobs=None if surprisal is None else (-surprisal,))

    scripted = None in surprisals
    return replace(
        trajectory,
        segments=tuple(map(played, trajectory.segments)),
        world_model_only=scripted,
        source="explorer" if scripted else "policy",
        reward=None if scripted else trajectory.reward,
    )


OUT, ERR, STATUS = "stdout", "stderr", "exit_status"
# Tokens: a warning before the first action, three outputs, two warnings, one end. Every action has one token.
STEP = [
    surprising(
        named(
            episode([C, W, A, E, E, W, A, E, Role.END], reward=1.0, seed=1),
            [None, None, None, OUT, ERR, STATUS, None, None, "prompt"],
        ),
        2.0,
        0.5,
    ),
    surprising(named(episode([C, A, E, E, A, W], reward=0.0, seed=2), [None, None, ERR, OUT, None, None]), 1.0, 3.0),
    surprising(named(episode([C, A, E], seed=3), [None, None, OUT]), None),
]


def weigh(
    step: Sequence[Trajectory], settings: ObjectiveSettings = SETTINGS, coeff: float = COEFF, **changes: Any
) -> WeighedStep:
    return weigh_step(step, replace(settings, **changes), coeff, 1.0, mark_ends=lambda trajectory: trajectory)


def gradient(weighed: WeighedStep, rows: Sequence[Sequence[int]] | None = None) -> Tensor:
    step = weighed.trajectories
    micros = [collate(step, range(len(step)), PAD_ID)] if rows is None else [pack(step, rows, PAD_ID)]
    arguments = weighed.advantages_B, weighed.weights, weighed.settings, weighed.coeff
    return run_step(TinyLM(), micros, *arguments, factors=weighed.factors)[1]


def env_gradient(step: Sequence[Trajectory], **changes: Any) -> Tensor:
    return gradient(weigh(step, use_rl=False, world_model_coeff=COEFF, **changes))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"env_weights": {"env_output": 0.5}}, [[1, 0.5, 0.5, 1, 0.5, 1], [0.5, 0.5, 1], [0.5]]),
        ({"env_weights": {OUT: 3}}, [[1, 3, 1, 1, 1, 1], [1, 3, 1], [3]]),
        # The channel's factor replaces the role's, above it or below.
        ({"env_weights": {"env_output": 0, OUT: 2}}, [[1, 2, 0, 1, 0, 1], [0, 2, 1], [2]]),
        ({"env_weights": {"warning": 0, STATUS: 1, "end": 4}}, [[0, 1, 1, 1, 1, 4], [1, 1, 0], [1]]),
        # Actions of 2.0 and 0.5, 1.0 and 3.0 nats; the explorer's has no logprobs.
        ({"env_min_action_entropy": 1.0}, [[1, 1, 1, 1, 0, 0], [1, 1, 1], [1]]),
        ({"env_min_action_entropy": 1.5}, [[1, 1, 1, 1, 0, 0], [0, 0, 1], [1]]),
        ({"env_min_action_entropy": 2.5, "env_weights": {OUT: 0.5}}, [[1, 0, 0, 0, 0, 0], [0, 0, 1], [0.5]]),
    ],
    ids=str,
)
def test_factors_by_hand(changes: dict[str, Any], expected: list[list[float]]) -> None:
    assert target_factors(STEP, replace(SETTINGS, **changes)) == dict(enumerate(expected))


def test_roles_outside_the_env_term_have_no_factor() -> None:
    plain = ObjectiveSettings(env_weights={OUT: 0.5})
    assert target_factors(STEP, plain) == {0: [0.5, 1, 1], 1: [1, 0.5], 2: [0.5]}


def test_an_actions_entropy_is_its_mean_surprisal() -> None:
    assert action_entropy(Segment(A, "", (1, 2), logprobs=(-1.0, -3.0))) == 2.0
    assert action_entropy(Segment(A, "", (), logprobs=())) == 0.0
    assert action_entropy(Segment(A, "", (1, 2))) is None


def test_without_a_selection_every_bit_is_as_before() -> None:
    plain = weigh(STEP)
    assert plain.factors == {} and plain.unselected_fraction == 0.0
    assert torch.equal(plain.counts.selected_B, plain.counts.candidates_B)
    wanted = targets(collate(STEP, [0, 1], PAD_ID), SETTINGS.target_roles)
    assert wanted.weighted({}) is wanted and wanted.factors_N is None
    below_all = weigh(STEP, env_min_action_entropy=0.4)
    assert below_all.unselected_fraction == 0.0
    assert torch.equal(gradient(below_all), gradient(plain))


@pytest.mark.parametrize(
    ("normalization", "expected"),
    [
        # |O| = 6, 3, 1 counts every observation; the targets are 2, 1 and 1: stdout has the factor 2, warnings have 1.
        ("observation_tokens", [1 / (3 * 6), 1 / (3 * 3), 1 / 3]),
        ("selected_tokens", [1 / (3 * 3), 1 / (3 * 2), 1 / 3]),
        ("token_mean", [1 / 6] * 3),
        ("fixed_length", [1 / (3 * 20)] * 3),
    ],
)
def test_denominators_count_selected_tokens_and_the_papers_counts_all(
    normalization: EnvNormalization, expected: list[float]
) -> None:
    weights = {"env_output": 0, "end": 0, OUT: 2}
    weighed = weigh(STEP, env_normalization=normalization, env_weights=weights)
    assert weighed.counts.observations_B.tolist() == weighed.counts.candidates_B.tolist() == [6, 3, 1]
    assert weighed.counts.selected_B.tolist() == [3, 2, 1]
    assert weighed.counts.factors_B.tolist() == [1 + 2 + 1, 2 + 1, 2]
    assert weighed.weights.env_weight_B.tolist() == pytest.approx(expected)
    assert weighed.unselected_fraction == pytest.approx(4 / 10)
    # With a uniform model every CE is log V, so the term is the sum of weight · factor.
    model = TinyLM()
    torch.nn.init.zeros_(model.lm_head.weight)
    micros = [collate(STEP, [index], PAD_ID) for index in range(3)]
    arguments = weighed.advantages_B, weighed.weights, weighed.settings, COEFF
    found = reduce_metrics(run_step(model, micros, *arguments, factors=weighed.factors)[2])
    sums = sum(weight * factor for weight, factor in zip(expected, (4, 3, 2), strict=True))
    assert found["env_loss"] == pytest.approx(sums * torch.log(torch.tensor(11.0)).item())
    assert found["env_tokens"] == 6 and found["end_tokens"] == 0
    assert found["env_ce"] == pytest.approx(torch.log(torch.tensor(11.0)).item()), "over all outputs"


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_equal_factors_scale_the_env_gradient_alone(normalization: EnvNormalization) -> None:
    every = dict.fromkeys(("env_output", "warning", "end"), 0.25)
    plain = weigh(STEP, env_normalization=normalization)
    scaled = weigh(STEP, env_normalization=normalization, env_weights=every)
    grpo = gradient(replace(plain, coeff=0.0))
    assert torch.equal(gradient(replace(scaled, coeff=0.0)), grpo)
    assert_close(gradient(scaled) - grpo, 0.25 * (gradient(plain) - grpo), rtol=1e-9, atol=1e-12)
    lambdas = [portable_lambda(COEFF, step.counts, step.weights, step.advantages_B) for step in (scaled, plain)]
    assert lambdas[1] is not None and lambdas[0] == pytest.approx(0.25 * lambdas[1])


@pytest.mark.parametrize("normalization", sorted({*NORMALIZATIONS} - {"observation_tokens"}))
def test_a_channel_without_weight_is_as_good_as_context(normalization: EnvNormalization) -> None:
    blind = [
        replace(
            trajectory,
            segments=tuple(replace(s, role=C) if s.channel == ERR else s for s in trajectory.segments),
        )
        for trajectory in STEP
    ]
    found = env_gradient(STEP, env_normalization=normalization, env_weights={ERR: 0})
    assert_close(found, env_gradient(blind, env_normalization=normalization))
    assert not torch.allclose(found, env_gradient(STEP, env_normalization=normalization))


def test_an_entropy_above_all_leaves_the_scripted_rollouts_and_without_them_stops_the_first_step() -> None:
    opened = [replace(each, segments=each.segments[:1] + each.segments[2:]) for each in STEP[:1]] + STEP[1:]
    found = env_gradient(opened, env_min_action_entropy=9.0)
    assert_close(found, env_gradient(opened[2:]))
    own = weigh(opened[:2], env_min_action_entropy=9.0)
    assert own.unselected_fraction == 1.0
    assert torch.equal(gradient(own), gradient(replace(own, coeff=0.0)))
    with pytest.raises(EchoError, match="env_min_action_entropy and env_weights leave out all of 8 observation tokens"):
        check_first_step(0, COEFF, own.counts, 0.0)


def test_failed_rollouts_alone_give_the_env_gradient_of_a_step_without_the_others() -> None:
    step = [*STEP[:2], replace(STEP[0], reward=0.5)]
    weighed = weigh(step, max_correct_fraction=0.5)
    assert weighed.counts.in_env_B.tolist() == [False, True, True] and weighed.dropped["max_correct"] == 1
    assert weighed.counts.in_rl_B.all()
    env = gradient(weighed) - gradient(replace(weighed, coeff=0.0))
    assert_close(env, env_gradient(step[1:]))


def test_factors_do_not_depend_on_packing_or_on_the_other_rollouts() -> None:
    changes = {"env_min_action_entropy": 1.5, "env_weights": {OUT: 0.5, "warning": 2}}
    weighed = weigh(STEP, **changes)
    assert_close(gradient(weighed, [[2, 0], [1]]), gradient(weighed))
    alone = [target_factors([trajectory], weighed.settings)[0] for trajectory in STEP]
    assert weighed.factors == dict(enumerate(alone))


def test_factors_belong_to_places_whatever_targets_a_placebo_puts_there() -> None:
    changes = {"env_targets": "shuffled", "env_weights": {ERR: 0}}
    plain, selected = weigh(STEP, env_targets="shuffled"), weigh(STEP, **changes)
    assert selected.misplaced == plain.misplaced and selected.factors[1][0] == 0
    assert 0 < (selected.misplaced_fraction or 0) <= 1
    wanted = targets(collate(STEP, [0, 1, 2], PAD_ID), SETTINGS.selected_roles)
    both = wanted.replaced(selected.misplaced).weighted(selected.factors)
    assert both.factors_N is not None
    assert both.factors_N.tolist() == [factor for index in range(3) for factor in selected.factors[index]]
    assert torch.equal(both.token_ids_N, wanted.replaced(plain.misplaced).token_ids_N)
    with pytest.raises(ValueError, match="1 factors for 3 targets of rollout 1"):
        wanted.weighted({1: [1.0]})


def test_dropped_thinking_counts_in_the_entropy_and_shifts_no_factor() -> None:
    thinking = Segment(A, "", (4, 5), logprobs=(-3.0, -1.0), transient=1)
    step = [replace(STEP[1], segments=(STEP[1].segments[0], thinking, *STEP[1].segments[2:])), STEP[0]]
    weighed = weigh(step, env_min_action_entropy=2.0, env_weights={OUT: 0.5})
    assert weighed.factors == {0: [1, 0.5, 1], 1: [1, 0.5, 1, 1, 0, 0]}
    views = expand_context_views(step, use_rl=True)
    assert views.owners == (0, 0, 1)
    found = targets(collate(views.trajectories, range(3), PAD_ID), SETTINGS.target_roles).of_rollouts(views.owners)
    observing = found.weighted(weighed.factors)
    assert observing.factors_N is not None
    assert observing.factors_N[: found.action_count].tolist() == [1.0] * found.action_count
    assert observing.factors_N[found.action_count :].tolist() == [*weighed.factors[0], *weighed.factors[1]]


def test_a_name_that_no_observation_has_is_a_line_with_the_names_there_are() -> None:
    line = unmatched_line(STEP, replace(SETTINGS, env_weights={"std_err": 0.5, OUT: 2, "volatile": 0}))
    assert line is not None and "named std_err or volatile, as in objective.env_weights" in line
    assert line.endswith("this step: end, env_output, exit_status, prompt, stderr, stdout, warning")
    assert unmatched_line(STEP, replace(SETTINGS, env_weights={"end": 0.5, STATUS: 2})) is None
    # A channel of warnings is no name of the env term unless warnings are targets.
    assert unmatched_line(STEP, ObjectiveSettings(env_weights={STATUS: 2})) is not None
    assert unmatched_line([episode([C, A])], SETTINGS) is None
