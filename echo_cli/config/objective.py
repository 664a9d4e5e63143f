"""The objective's settings, and the named presets: the paper, its released code, prime-rl, OpenEnv's example.

Imports no torch, so that reading a config stays fast.
"""

from __future__ import annotations

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
Schedule = Literal["constant", "linear", "step", "gradient_ratio"]

CHOICES: Mapping[str, tuple[str, ...]] = {
    "advantage": get_args(AdvantageKind),
    "surrogate": get_args(Surrogate),
    "rl_normalization": get_args(RlNormalization),
    "env_normalization": get_args(EnvNormalization),
    "world_loss_target": get_args(WorldLossTarget),
    "schedule": get_args(Schedule),
}


@dataclass(frozen=True)
class ObjectiveSettings:
    """Everything that defines `L = L_RL(actions) + λ · CE(observations)`, apart from the data.

    Raises:
        EchoError: a choice is unknown, a number is out of range, or a setting would have no effect.
    """

    # Read by config.py's pydantic, so that a config's unknown keys and wrong types are errors here too.
    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "strict": True, "allow_inf_nan": False}

    use_rl: bool = True
    """False: no verifier, no advantage, loss = λ · CE."""

    world_model_coeff: float | None = None
    """λ. None means 0.05 with the RL term and 1 without. The `step` schedule reads `schedule_values` instead."""
    world_model_coeff_end: float | None = None
    """λ at the last step of the `linear` schedule."""
    schedule: Schedule = "constant"
    schedule_steps: tuple[int, ...] = ()
    """0-based optimizer steps at which the `step` schedule moves to its next value, increasing."""
    schedule_values: tuple[float, ...] = ()
    """One more than `schedule_steps`: the first holds before the first of them."""
    gradient_ratio_target: float = 0.5
    """With the `gradient_ratio` schedule: where λ · ‖env gradient‖ / ‖RL gradient‖ is held. λ starts as given above."""
    gradient_ratio_bounds: tuple[float, float] = (1e-3, 10.0)
    """The lowest and the highest λ that it may choose."""
    gradient_ratio_smoothing: float = 0.5
    """What the running mean of each norm keeps of its past at a measurement, in [0, 1)."""
    gradient_ratio_every: int = 5
    """Steps between measurements, each of which costs a forward and two backward passes."""

    advantage: AdvantageKind = "group_norm"
    surrogate: Surrogate = "clipped"
    """`reinforce` is -A · logp: ratio 1, no clip."""
    clip_low: float = 0.2
    clip_high: float = 0.28
    rl_normalization: RlNormalization = "token_mean"
    kl_coeff: float = 0.0
    """Weight of the KL to the reference policy, inside the RL term. The env term never has one."""

    env_normalization: EnvNormalization = "observation_tokens"
    world_loss_target: WorldLossTarget = "env_output"
    """`all` adds the harness warnings to the env term."""
    max_length: int | None = None
    """Tokens; the denominator of both `fixed_length` normalisations."""

    min_valid_action_fraction: float | None = None
    min_clean_parse_fraction: float | None = None
    min_correct_fraction: float | None = None
    """Filters of the env term, see rollout_filter.py. This last one uses the verifier's reward."""

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise EchoError(f"unknown {name} {getattr(self, name)!r}", f"choose one of: {', '.join(choices)}")
        _check_numbers(self)
        _check_schedule(self)

    @property
    def base_coeff(self) -> float:
        """λ before its schedule."""
        if self.world_model_coeff is not None:
            return self.world_model_coeff
        return 0.05 if self.use_rl else 1.0

    @property
    def selected_roles(self) -> frozenset[Role]:
        """Roles whose tokens the env term sums over (O'); O itself is always env_output and warning."""
        if self.world_loss_target == "all":
            return frozenset({Role.ENV_OUTPUT, Role.WARNING})
        return frozenset({Role.ENV_OUTPUT})

    @property
    def target_roles(self) -> frozenset[Role]:
        """Roles whose tokens need a logprob."""
        return self.selected_roles | ({Role.ACTION} if self.use_rl else set())


def _check_numbers(settings: ObjectiveSettings) -> None:
    coefficients = (settings.world_model_coeff, settings.world_model_coeff_end, *settings.schedule_values)
    if any(value is not None and value < 0 for value in coefficients):
        raise EchoError("a world-model coefficient is negative", "λ is 0 or more; 0 is plain GRPO")
    if settings.kl_coeff < 0 or settings.clip_high < 0 or not 0 <= settings.clip_low <= 1:
        raise EchoError(
            "kl_coeff, clip_low or clip_high is out of range", "kl_coeff, clip_high >= 0; clip_low in [0, 1]"
        )
    fixed_length = "fixed_length" in (settings.rl_normalization, settings.env_normalization)
    if fixed_length and (settings.max_length is None or settings.max_length <= 0):
        raise EchoError("fixed_length divides by max_length, which is not set", "set max_length to a token count")


def _check_schedule(settings: ObjectiveSettings) -> None:
    if (settings.schedule == "linear") != (settings.world_model_coeff_end is not None):
        raise EchoError(
            f"schedule {settings.schedule!r} with world_model_coeff_end {settings.world_model_coeff_end}",
            "set world_model_coeff_end with schedule: linear, and only then",
        )
    steps, values = settings.schedule_steps, settings.schedule_values
    if settings.schedule != "step" and (steps or values):
        raise EchoError(f"schedule {settings.schedule!r} does not use schedule_steps", "set schedule: step")
    if settings.schedule == "step" and len(values) != len(steps) + 1:
        raise EchoError(
            f"{len(values)} schedule_values for {len(steps)} schedule_steps",
            "give one value more than steps: the first holds before the first step",
        )
    if any(later <= earlier for earlier, later in pairwise(steps)):
        raise EchoError("schedule_steps do not increase", "list them in increasing order")
    _check_gradient_ratio(settings)


def _check_gradient_ratio(settings: ObjectiveSettings) -> None:
    own = [known for known in fields(settings) if known.name.startswith("gradient_ratio_")]
    if settings.schedule != "gradient_ratio":
        changed = [known.name for known in own if getattr(settings, known.name) != known.default]
        if changed:
            raise EchoError(f"schedule {settings.schedule!r} does not use {changed[0]}", "set schedule: gradient_ratio")
        return
    if not settings.use_rl:
        raise EchoError("schedule 'gradient_ratio' needs an RL gradient, and use_rl is false", "set use_rl: true")
    low, high = settings.gradient_ratio_bounds
    if settings.gradient_ratio_target <= 0 or not 0 <= low <= high or high == 0:
        raise EchoError(
            f"gradient_ratio_target {settings.gradient_ratio_target} or _bounds [{low}, {high}] is out of range",
            "the target is above 0; the bounds are two values of λ, the lower first",
        )
    if not 0 <= settings.gradient_ratio_smoothing < 1 or settings.gradient_ratio_every < 1:
        raise EchoError(
            "gradient_ratio_smoothing or gradient_ratio_every is out of range",
            "smoothing in [0, 1), 0 takes the latest measurement; every is a number of steps, 1 or more",
        )


@dataclass(frozen=True)
class Preset:
    """Overrides of the defaults: `objective` by ObjectiveSettings field, `optim` for AdamW and gradient clipping."""

    objective: Mapping[str, Any]
    optim: Mapping[str, Any] = field(default_factory=dict)


PRESETS: Mapping[str, Preset] = {
    # arXiv 2605.24517, text and Eq. 3.
    "paper": Preset(
        objective={
            "world_model_coeff": 0.05,
            "advantage": "group_norm",
            "surrogate": "clipped",
            "clip_low": 0.2,
            "clip_high": 0.28,
            "rl_normalization": "token_mean",
            "env_normalization": "observation_tokens",
        },
        optim={"betas": (0.9, 0.95), "grad_clip": 0.2},
    ),
    # The paper's released configuration, where it departs from the text.
    "released": Preset(
        objective={
            "world_model_coeff": 0.05,
            "advantage": "group_norm",
            "surrogate": "clipped",
            "clip_low": 0.2,
            "clip_high": 0.2,
            "rl_normalization": "sequence_mean",
            "env_normalization": "observation_tokens",
        },
        optim={"betas": (0.9, 0.999), "grad_clip": 0.2},
    ),
    # True Agents Model the World, as close as the clipped surrogate allows.
    "prime": Preset(
        objective={
            "world_model_coeff": 0.1,
            "advantage": "group_mean",
            "surrogate": "clipped",
            "rl_normalization": "token_mean",
            "env_normalization": "token_mean",
        },
    ),
    # OpenEnv's RFC 010 example.
    "openenv-example": Preset(
        objective={
            "surrogate": "reinforce",
            "rl_normalization": "token_mean",
            "env_normalization": "token_mean",
        },
    ),
}
