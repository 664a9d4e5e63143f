"""The objective's settings: their values, defaults and bounds.

This module imports no torch, so that reading a config stays fast.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from itertools import pairwise
from typing import Any, ClassVar, Literal, get_args

from echo_cli.errors import EchoError
from echo_cli.trajectory import Role

AdvantageKind = Literal["group_norm", "group_mean", "rloo"]
Surrogate = Literal["clipped", "reinforce"]
RlNormalization = Literal["token_mean", "sequence_mean", "fixed_length"]
EnvNormalization = Literal["observation_tokens", "selected_tokens", "token_mean", "fixed_length"]
WorldLossTarget = Literal["env_output", "all"]
EnvTargets = Literal[True, "other_world", "shuffled", "random"]
Schedule = Literal["constant", "linear", "cosine", "step", "gradient_ratio"]

CHOICES: Mapping[str, tuple[Any, ...]] = {
    "advantage": get_args(AdvantageKind),
    "surrogate": get_args(Surrogate),
    "rl_normalization": get_args(RlNormalization),
    "env_normalization": get_args(EnvNormalization),
    "world_loss_target": get_args(WorldLossTarget),
    "env_targets": get_args(EnvTargets),
    "schedule": get_args(Schedule),
}


@dataclass(frozen=True)
class ObjectiveSettings:
    """All settings of `L = L_RL(actions) + λ · CE(observations)`.

    Raises:
        EchoError: a choice is unknown, a number is out of range, or a setting would have no effect.
    """

    # For pydantic, which reads a config: unknown keys and wrong types are errors in this section too.
    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "strict": True, "allow_inf_nan": False}

    use_rl: bool = True
    """Whether the loss has the RL term. If False: no verifier, no advantage, loss = λ · CE."""

    world_model_coeff: float | None = None
    """λ. None means 0.05 with the RL term and 1 without it. The `step` schedule reads `schedule_values` instead."""
    world_model_coeff_end: float | None = None
    """λ at the last step of the `linear` and `cosine` schedules."""
    schedule: Schedule = "constant"
    schedule_steps: tuple[int, ...] = ()
    """Optimizer steps, 0-based and increasing, at which the `step` schedule moves to its next value."""
    schedule_values: tuple[float, ...] = ()
    """Values of λ, one more than `schedule_steps`; the first applies before the first of these steps."""
    env_every: int = 1
    """Number of steps between steps with an env term; λ is 0 at the steps (0-based) that it does not divide."""
    gradient_ratio_target: float = 0.5
    """Target of λ · ‖env gradient‖ / ‖RL gradient‖ (`gradient_ratio` schedule). λ starts at `world_model_coeff`."""
    gradient_ratio_bounds: tuple[float, float] = (1e-3, 10.0)
    """Lowest and highest λ of the `gradient_ratio` schedule."""
    gradient_ratio_smoothing: float = 0.5
    """Weight of the earlier measurements in the running mean of each gradient norm, in [0, 1)."""
    gradient_ratio_every: int = 5
    """Number of steps between measurements; a measurement costs one forward pass and two backward passes."""

    advantage: AdvantageKind = "group_norm"
    surrogate: Surrogate = "clipped"
    """`reinforce` is -A · logp: the ratio is 1, without clipping."""
    clip_low: float = 0.2
    clip_high: float = 0.28
    rl_normalization: RlNormalization = "token_mean"
    kl_coeff: float = 0.0
    """Weight of the KL divergence from the reference policy, inside the RL term. The env term has no KL."""

    env_normalization: EnvNormalization = "observation_tokens"
    world_loss_target: WorldLossTarget = "env_output"
    """Target tokens of the env term: `env_output` alone, or with harness warnings (`all`)."""
    end_of_output: bool = False
    """Whether the tokens that end an output (role END, see renderer.mark_ends) are targets of the env term."""
    env_targets: EnvTargets = True
    """Target tokens of the env term: the environment's own (true), or those of a placebo.

    - `other_world`: explorers play a world that no task asks about, and the policy's rollouts have no env term.
    - `shuffled`, `random`: the inputs stay true, and each target is a token of another place; see
      `objective.step.misplaced_targets`.
    """
    env_loss_clip: float | None = None
    """Largest cross-entropy of a token in the env term, nats; a token above it counts as this, without a gradient."""
    env_stop_at: float | None = None
    """Probability above which a token of the env term has no gradient; its cross-entropy counts as -log of this."""
    env_min_action_entropy: float | None = None
    """Lowest entropy of a sampled action, nats per token, after which observations are targets of the env term.

    Observations after a scripted action, and before the first action, are targets at any value. See
    objective/selection.py.
    """
    env_weights: Mapping[str, float] = field(default_factory=dict)
    """Factor on the cross-entropy of an observation token, by its channel or else its role; 1 for other names.

    A token with the factor 0 is no target of the env term.
    """
    max_length: int | None = None
    """Denominator of both `fixed_length` normalisations, tokens."""

    min_valid_action_fraction: float | None = None
    min_clean_parse_fraction: float | None = None
    min_correct_fraction: float | None = None
    """Minimum reward of a rollout, 0 to 1. The filters exclude rollouts from the env term (see objective/filters.py);
    only this filter and the next use the verifier's reward."""
    max_correct_fraction: float | None = None
    """Maximum reward of a rollout; below the reward of a solved task, only failed rollouts have an env term."""

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise EchoError(
                    f"unknown {name} {getattr(self, name)!r}",
                    f"choose one of: {', '.join(str(choice).lower() for choice in choices)}",
                )
        _check_numbers(self)
        _check_schedule(self)
        _check_env_term(self)
        _check_selection(self)

    @property
    def base_coeff(self) -> float:
        """λ before the schedule is applied."""
        if self.world_model_coeff is not None:
            return self.world_model_coeff
        return 0.05 if self.use_rl else 1.0

    @property
    def highest_coeff(self) -> float:
        """Upper bound of λ over the steps."""
        if self.schedule == "step":
            return max(self.schedule_values)
        bound = self.gradient_ratio_bounds[1] if self.schedule == "gradient_ratio" else 0.0
        return max(self.base_coeff, self.world_model_coeff_end or 0.0, bound)

    @property
    def selected_roles(self) -> frozenset[Role]:
        """Roles whose tokens the env term sums over (O'); O is always env_output, warning and any marked ends."""
        warnings = {Role.WARNING} if self.world_loss_target == "all" else set()
        ends = {Role.END} if self.end_of_output else set()
        return frozenset({Role.ENV_OUTPUT} | warnings | ends)

    @property
    def target_roles(self) -> frozenset[Role]:
        """Roles whose tokens need a logprob."""
        return self.selected_roles | ({Role.ACTION} if self.use_rl else set())


def _check_numbers(settings: ObjectiveSettings) -> None:
    coefficients = (settings.world_model_coeff, settings.world_model_coeff_end, *settings.schedule_values)
    if any(value is not None and value < 0 for value in coefficients):
        raise EchoError("a world-model coefficient is negative", "set λ to 0 or more; 0 is plain GRPO")
    if settings.kl_coeff < 0 or settings.clip_high < 0 or not 0 <= settings.clip_low <= 1:
        raise EchoError(
            "kl_coeff, clip_low or clip_high is out of range", "set kl_coeff, clip_high >= 0; clip_low in [0, 1]"
        )
    fixed_length = "fixed_length" in (settings.rl_normalization, settings.env_normalization)
    if fixed_length and (settings.max_length is None or settings.max_length <= 0):
        raise EchoError("fixed_length requires max_length", "set max_length to a number of tokens above 0")


def _check_env_term(settings: ObjectiveSettings) -> None:
    """Reject settings of the env term that are out of range or have no effect."""
    optional = ("env_loss_clip", "env_stop_at", "env_min_action_entropy", "max_correct_fraction")
    unset: Mapping[str, Any] = {"env_targets": True, "env_every": 1, **dict.fromkeys(optional), "env_weights": {}}
    for name, default in unset.items():
        value = getattr(settings, name)
        if value != default and settings.highest_coeff == 0:
            shown = "null" if default is None else str(default).lower()
            raise EchoError(
                f"{name} {value} has no effect, because λ is 0 at every step",
                f"set world_model_coeff above 0, or {name}: {shown}",
            )
    if settings.env_every < 1:
        raise EchoError(
            f"env_every is {settings.env_every}", "set it to 1 step or more; 1 is an env term at every step"
        )
    if settings.env_every > 1 and not settings.use_rl:
        raise EchoError(
            "env_every leaves steps without any loss, because use_rl is false", "set use_rl: true, or env_every: 1"
        )
    if settings.env_every > 1 and settings.schedule == "gradient_ratio":
        raise EchoError(
            "schedule 'gradient_ratio' measures an env gradient at steps where env_every leaves none",
            "set env_every: 1, or another schedule",
        )
    clip, stop = settings.env_loss_clip, settings.env_stop_at
    if (clip is not None and clip <= 0) or (stop is not None and not 0 < stop < 1):
        raise EchoError(
            f"env_loss_clip {clip} or env_stop_at {stop} is out of range",
            "set env_loss_clip above 0 nats, and env_stop_at to a probability between 0 and 1",
        )
    if clip is not None and stop is not None and clip <= -math.log(stop):
        raise EchoError(
            f"env_loss_clip {clip} and env_stop_at {stop} leave no token a gradient",
            f"set env_loss_clip above -log(env_stop_at), {-math.log(stop):.3g} nats",
        )


def _check_selection(settings: ObjectiveSettings) -> None:
    """Reject a selection of the env term's targets that is out of range, has no effect or leaves no target."""
    low, high, entropy = settings.min_correct_fraction, settings.max_correct_fraction, settings.env_min_action_entropy
    if low is not None and high is not None and low > high:
        raise EchoError(
            f"min_correct_fraction {low} is above max_correct_fraction {high}: no reward is within them",
            "lower the minimum, or set one of them to null",
        )
    if entropy is not None and entropy <= 0:
        raise EchoError(
            f"env_min_action_entropy is {entropy}: every action has as much", "set it above 0 nats per token, or null"
        )
    for name, value in (("env_min_action_entropy", entropy), ("max_correct_fraction", high)):
        if value is not None and settings.env_targets == "other_world":
            raise EchoError(
                f"{name} has no effect with env_targets: other_world, which leaves only explorers in the env term",
                f"set env_targets: true, or {name}: null",
            )
    weights, selected = settings.env_weights, {role.name.lower() for role in settings.selected_roles}
    for name, weight in weights.items():
        if not 0 <= weight < math.inf:
            raise EchoError(f"env_weights.{name} is {weight}", "set a factor of 0 or more; 0 leaves the tokens out")
        if name in _ROLES and name not in selected:
            raise EchoError(
                f"env_weights.{name} has no effect: the env term has no token of this role",
                _TARGETED_BY.get(name, f"name one of the roles {', '.join(sorted(selected))}, or a channel"),
            )
    if all(weights.get(name) == 0 for name in selected) and not any(weights.values()):
        raise EchoError("env_weights leave the env term no token", "set a role or a channel above 0")


def check_selection_data(settings: ObjectiveSettings, *, sampled: bool, traced: bool) -> None:
    """Reject a selection of the env term's targets by actions or rewards that the run's rollouts do not have.

    Args:
        sampled: whether the policy plays rollouts.
        traced: whether the run trains on traces, which may have rewards.
    """
    if settings.env_min_action_entropy is not None and not sampled:
        raise EchoError(
            "objective.env_min_action_entropy has no effect: the policy plays no rollout, so no action has an entropy",
            "set rollout.tasks_per_step above 0, or env_min_action_entropy: null",
        )
    for name in ("min_correct_fraction", "max_correct_fraction"):
        if getattr(settings, name) is not None and sampled and not settings.use_rl:
            raise EchoError(
                f"objective.{name} needs rewards, and use_rl: false never calls the verifier",
                f"set use_rl: true, or {name}: null",
            )
    if settings.max_correct_fraction is not None and not sampled and not traced:
        raise EchoError(
            "objective.max_correct_fraction has no effect: explorers have no reward and pass it",
            "set rollout.tasks_per_step above 0, or max_correct_fraction: null",
        )


_ROLES = {role.name.lower() for role in Role}
_TARGETED_BY = {
    "warning": "set world_loss_target: all, or omit it",
    "end": "set end_of_output: true, or omit it",
}
"""Tip for a role that is in the env term only with another setting."""


def _check_schedule(settings: ObjectiveSettings) -> None:
    if (settings.schedule in ("linear", "cosine")) != (settings.world_model_coeff_end is not None):
        raise EchoError(
            f"schedule {settings.schedule!r} with world_model_coeff_end {settings.world_model_coeff_end}",
            "set world_model_coeff_end if and only if schedule is linear or cosine",
        )
    steps, values = settings.schedule_steps, settings.schedule_values
    unused = [name for name in ("schedule_steps", "schedule_values") if getattr(settings, name)]
    if settings.schedule != "step" and unused:
        raise EchoError(f"schedule {settings.schedule!r} does not use {' and '.join(unused)}", "set schedule: step")
    if settings.schedule == "step" and len(values) != len(steps) + 1:
        raise EchoError(
            f"{len(values)} schedule_values for {len(steps)} schedule_steps",
            "give one value more than steps: the first applies before the first step",
        )
    if any(later <= earlier for earlier, later in pairwise(steps)):
        raise EchoError("schedule_steps are not strictly increasing", "list them in increasing order")
    _check_gradient_ratio(settings)


def _check_gradient_ratio(settings: ObjectiveSettings) -> None:
    own = [known for known in fields(settings) if known.name.startswith("gradient_ratio_")]
    if settings.schedule != "gradient_ratio":
        changed = [known.name for known in own if getattr(settings, known.name) != known.default]
        if changed:
            raise EchoError(f"schedule {settings.schedule!r} does not use {changed[0]}", "set schedule: gradient_ratio")
        return
    if not settings.use_rl:
        raise EchoError("schedule 'gradient_ratio' needs an RL gradient, but use_rl is false", "set use_rl: true")
    low, high = settings.gradient_ratio_bounds
    if settings.gradient_ratio_target <= 0 or not 0 <= low <= high or high == 0:
        raise EchoError(
            f"gradient_ratio_target {settings.gradient_ratio_target} or _bounds [{low}, {high}] is out of range",
            "set the target above 0, and the bounds to two values of λ, the lower first",
        )
    if not 0 <= settings.gradient_ratio_smoothing < 1 or settings.gradient_ratio_every < 1:
        raise EchoError(
            "gradient_ratio_smoothing or gradient_ratio_every is out of range",
            "set smoothing in [0, 1), where 0 uses the latest measurement alone; set every to 1 step or more",
        )
