"""The arms that the claims compare: configs with overrides, and the learning rates among which each is tuned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

RATES = (2.5e-4, 5e-4, 1e-3, 2e-3)
GRPO_RATES = (1e-4, *RATES)
FEW_RATES = (2.5e-4, 5e-4, 1e-3)
PLACEBO_RATES = (*RATES, 4e-3)
"""Learning rates of which an arm gets the one that is best on the machines that arms are tuned on."""

NEUTRAL = "objective.env_targets=other_world"
ENV_ONLY = ("objective.use_rl=false", "objective.world_model_coeff=1")


@dataclass(frozen=True)
class Place:
    """Where an arm is trained: a machine, or another world, and a seed."""

    machine: int
    seed: int


@dataclass(frozen=True)
class Arm:
    """One way to train, on every machine and seed."""

    name: str
    label: str
    config: str
    overrides: tuple[str, ...] = ()
    rates: tuple[float, ...] = ()
    rate_of: str | None = None
    """Arm whose learning rate it has, so that the two differ in nothing but what their overrides say."""
    continues: str | None = None
    """Arm from whose last checkpoint of the same machine and seed it starts."""
    homeless: bool = False
    """Whether it starts from a base that never met a home machine."""

    @property
    def starts_elsewhere(self) -> bool:
        """Whether it starts from weights that its config does not name."""
        return self.homeless or self.continues is not None


GRPO = Arm("grpo", "GRPO", "toy-grpo", rates=GRPO_RATES)
OWN = Arm("own", "ECHO, own rollouts, λ 0.3", "toy-own", rates=RATES)
ECHO = Arm("echo", "ECHO, explorers, λ 3", "toy", rates=RATES)


def _like(
    arm: Arm, name: str, label: str, *overrides: str, continues: str | None = None, homeless: bool = False
) -> Arm:
    """Return `arm` with more overrides or another start, at the learning rate of `arm`."""
    return Arm(
        name,
        label,
        arm.config,
        (*arm.overrides, *overrides),
        rate_of=arm.name,
        continues=continues,
        homeless=homeless,
    )


def _false_targets(arm: Arm) -> tuple[Arm, ...]:
    """Return the arms that learn false targets: exchanged between the rollouts of a step, or drawn at random."""
    return tuple(
        _like(
            arm,
            f"{arm.name}-{targets}",
            f"{targets} targets, {arm.label.removeprefix('ECHO, ')}",
            f"objective.env_targets={targets}",
        )
        for targets in ("shuffled", "random")
    )


ARMS = (
    GRPO,
    Arm("grpo-kl", "GRPO, KL 0.05", "toy-grpo", ("objective.kl_coeff=0.05",), FEW_RATES),
    Arm("grpo-hot", "GRPO, temperature 1", "toy-grpo", ("rollout.temperature=1.0",), FEW_RATES),
    Arm(
        "grpo-steps",
        "GRPO, as many environment steps as ECHO",
        "toy-grpo",
        ("rollout.tasks_per_step=19",),
        FEW_RATES,
    ),
    Arm(
        "grpo-tokens",
        "GRPO, as many trained tokens as ECHO",
        "toy-grpo",
        ("rollout.tasks_per_step=31",),
        FEW_RATES,
    ),
    OWN,
    ECHO,
    Arm(
        "own-placebo",
        "placebo: 9 explorers elsewhere, λ 0.3",
        "toy-own",
        (NEUTRAL, "rollout.explorers=9"),
        PLACEBO_RATES,
    ),
    Arm("echo-placebo", "placebo: 44 explorers elsewhere, λ 3", "toy", (NEUTRAL,), PLACEBO_RATES),
    *_false_targets(OWN),
    *_false_targets(ECHO),
    _like(ECHO, "env-only", "env-CE alone, explorers", *ENV_ONLY),
    _like(ECHO, "env-after", "env-CE alone, explorers, after GRPO", *ENV_ONLY, continues="grpo"),
    _like(OWN, "own-after", "env-CE alone, own rollouts, after GRPO", *ENV_ONLY, continues="grpo"),
    _like(OWN, "own-1", "ECHO, own rollouts, λ 1", "objective.world_model_coeff=1"),
    _like(ECHO, "echo-30", "ECHO, explorers, λ 30", "objective.world_model_coeff=30"),
    _like(ECHO, "echo-300", "ECHO, explorers, λ 300", "objective.world_model_coeff=300"),
    *(_like(arm, f"homeless-{arm.name}", f"homeless base: {arm.label}", homeless=True) for arm in (GRPO, OWN, ECHO)),
)
BY_NAME: Mapping[str, Arm] = {arm.name: arm for arm in ARMS}
