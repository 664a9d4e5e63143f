"""Filters that exclude rollouts from the env term. The RL term is not filtered."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from echo_cli.config.objective import ObjectiveSettings
from echo_cli.errors import EchoError
from echo_cli.trajectory import Trajectory


@dataclass(frozen=True)
class FilterResult:
    """Result of the filters: indices of the rollouts in the env term, and the number of rollouts each filter rejected.

    `dropped` has the same keys on every step, unset filters included. A rollout rejected by two filters counts under
    both, so the values may add up to more than the number of rollouts dropped.
    """

    kept: tuple[int, ...]
    dropped: Mapping[str, int]


def filter_env_rollouts(trajectories: Sequence[Trajectory], settings: ObjectiveSettings) -> FilterResult:
    """Apply the filters of the env term, `min_*_fraction` and `max_correct_fraction`; a rollout must pass all of them.

    - `min_valid_action_fraction`, `min_clean_parse_fraction`: fractions of the rollout's turns. A trace truncated
      before its first action has no turns and passes.
    - `min_correct_fraction`, `max_correct_fraction`: the rollout's reward, 0 to 1. These filters make the env term
      depend on the verifier. A `world_model_only` rollout without a reward passes, because it has no verifier by
      design; a trace without a reward is an error.

    A value equal to the bound passes.

    A dropped rollout is excluded from all sums and counts of the env term, including B. A kept rollout without
    observations counts in B.

    Raises:
        EchoError: a filter is set and a rollout lacks the turns or the reward that the filter needs.
    """
    rejected = {
        "valid_action": _below(trajectories, settings.min_valid_action_fraction, _valid_action_fraction),
        "clean_parse": _below(trajectories, settings.min_clean_parse_fraction, _clean_parse_fraction),
        "correct": _below(trajectories, settings.min_correct_fraction, _reward_for("min_correct_fraction")),
        "max_correct": _above(trajectories, settings.max_correct_fraction, _reward_for("max_correct_fraction")),
    }
    dropped = set().union(*rejected.values())
    return FilterResult(
        kept=tuple(index for index in range(len(trajectories)) if index not in dropped),
        dropped={reason: len(indices) for reason, indices in rejected.items()},
    )


Fraction = Callable[[Trajectory], float | None]
"""Fraction of a rollout that a filter compares with its bound; None if the filter does not apply."""


def _below(trajectories: Sequence[Trajectory], minimum: float | None, fraction_of: Fraction) -> set[int]:
    if minimum is None:
        return set()
    fractions = [fraction_of(trajectory) for trajectory in trajectories]
    return {index for index, fraction in enumerate(fractions) if fraction is not None and fraction < minimum}


def _above(trajectories: Sequence[Trajectory], maximum: float | None, fraction_of: Fraction) -> set[int]:
    if maximum is None:
        return set()
    fractions = [fraction_of(trajectory) for trajectory in trajectories]
    return {index for index, fraction in enumerate(fractions) if fraction is not None and fraction > maximum}


def _valid_action_fraction(trajectory: Trajectory) -> float | None:
    if _cut_before_acting(trajectory):
        return None
    _require_turns(trajectory, "min_valid_action_fraction")
    return sum(turn.valid_action for turn in trajectory.turns) / len(trajectory.turns)


def _clean_parse_fraction(trajectory: Trajectory) -> float | None:
    if _cut_before_acting(trajectory):
        return None
    _require_turns(trajectory, "min_clean_parse_fraction")
    return sum(turn.clean_parse for turn in trajectory.turns) / len(trajectory.turns)


def _reward_for(name: str) -> Fraction:
    """Return the reward of a rollout as the fraction of the filter `name`."""

    def reward(trajectory: Trajectory) -> float | None:
        if trajectory.reward is None and (trajectory.source == "trace" or not trajectory.world_model_only):
            raise EchoError(
                f"{name} needs a reward, and the rollout of task {trajectory.task_id!r} has none",
                f"call the verifier (objective.use_rl=true), use traces with rewards, or unset objective.{name}",
            )
        return trajectory.reward

    return reward


def _cut_before_acting(trajectory: Trajectory) -> bool:
    """Return whether the trajectory is a trace truncated before its first action."""
    return trajectory.source == "trace" and trajectory.stop_reason == "length_cap" and not trajectory.turns


def _require_turns(trajectory: Trajectory, name: str) -> None:
    if not trajectory.turns:
        raise EchoError(
            f"{name} needs the turns of each rollout, and the rollout of task {trajectory.task_id!r} has none",
            f"record the turns, or unset objective.{name}",
        )
