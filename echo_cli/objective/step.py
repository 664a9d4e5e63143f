"""How an optimizer step is weighed: its rollouts, and what multiplies each token's loss in each term."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from echo_cli.config.objective import ObjectiveSettings
from echo_cli.objective.advantages import step_advantages
from echo_cli.objective.batch import RolloutCounts, count_rollouts
from echo_cli.objective.filters import filter_env_rollouts
from echo_cli.objective.loss import StepWeights, step_totals, step_weights
from echo_cli.trajectory import Trajectory


@dataclass(frozen=True)
class WeighedStep:
    """The rollouts of one optimizer step, and everything that its loss needs besides the policy. B rollouts."""

    trajectories: Sequence[Trajectory]
    """B rollouts: of the policy, of explorers and of traces."""
    settings: ObjectiveSettings
    coeff: float
    """λ, the weight of the env term."""
    temperature: float
    """Sampling temperature of the actions, at which the RL term scores them."""
    advantages_B: Tensor | None
    """float64; None without an RL term."""
    counts: RolloutCounts
    weights: StepWeights
    dropped: Mapping[str, int]
    """Number of rollouts that each filter has taken out of the env term."""
    imitation_coeff: float | None = None
    """Weight of the imitation term; None leaves its metrics out as well."""

    @property
    def has_contrast(self) -> bool:
        """Whether any rollout is better or worse than its group."""
        return self.advantages_B is not None and bool(self.advantages_B.any())


def weigh_step(
    trajectories: Sequence[Trajectory],
    settings: ObjectiveSettings,
    coeff: float,
    temperature: float,
    *,
    imitated: Collection[int] = (),
    imitation_coeff: float | None = None,
) -> WeighedStep:
    """Weigh the rollouts of a step: advantages within groups, filters of the env term, denominators over the step.

    Args:
        coeff: λ.
        imitated: indices of the rollouts whose actions are imitated where `imitation_coeff` is above 0.

    Raises:
        EchoError: a rollout lacks a reward or turns that the objective needs.
        ValueError: a rollout that is imitated has an RL term.
    """
    advantages_B = step_advantages(trajectories, settings.advantage) if settings.use_rl else None
    filtered = filter_env_rollouts(trajectories, settings)
    counts = count_rollouts(
        trajectories,
        settings.selected_roles,
        use_rl=settings.use_rl,
        kept=filtered.kept,
        imitated=imitated if imitation_coeff else (),
    )
    return WeighedStep(
        trajectories=trajectories,
        settings=settings,
        coeff=coeff,
        temperature=temperature,
        advantages_B=advantages_B,
        counts=counts,
        weights=step_weights(counts, step_totals(counts), settings),
        dropped=filtered.dropped,
        imitation_coeff=imitation_coeff,
    )
