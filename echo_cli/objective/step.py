"""Weights of an optimizer step: its rollouts, and the factor of each token's loss in each term."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
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
    """The B rollouts of an optimizer step, and all inputs of its loss other than the policy."""

    trajectories: Sequence[Trajectory]
    """B rollouts, from the policy, explorers and traces."""
    settings: ObjectiveSettings
    coeff: float
    """λ, the weight of the env term."""
    temperature: float
    """Sampling temperature of the actions; the RL term scores them at this temperature."""
    advantages_B: Tensor | None
    """Advantages, float64; None without an RL term."""
    counts: RolloutCounts
    weights: StepWeights
    dropped: Mapping[str, int]
    """Number of rollouts that each filter dropped from the env term."""
    imitation_coeff: float | None = None
    """Weight of the imitation term; None omits its metrics as well."""

    @property
    def has_contrast(self) -> bool:
        """Whether any advantage is nonzero."""
        return self.advantages_B is not None and bool(self.advantages_B.any())


def weigh_step(
    trajectories: Sequence[Trajectory],
    settings: ObjectiveSettings,
    coeff: float,
    temperature: float,
    *,
    imitated: Collection[int] = (),
    imitation_coeff: float | None = None,
    mark_ends: Callable[[Trajectory], Trajectory] | None = None,
) -> WeighedStep:
    """Compute advantages within groups, filters of the env term, and weights from denominators over the step.

    Args:
        coeff: λ.
        imitated: indices of the rollouts whose actions are imitated if `imitation_coeff` is above 0.
        mark_ends: marks the ends of a rollout's outputs, if `settings.end_of_output` (`TorchPolicy.mark_ends`).

    Raises:
        EchoError: a rollout lacks a reward or turns that the objective needs.
        ValueError: an imitated rollout has an RL term, or `mark_ends` is missing.
    """
    if settings.end_of_output:
        if mark_ends is None:
            raise ValueError("end_of_output needs mark_ends, such as TorchPolicy.mark_ends")
        trajectories = [mark_ends(trajectory) for trajectory in trajectories]
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
