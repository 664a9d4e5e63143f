"""Which rollouts keep their env term. The RL term is never filtered here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from echo_cli.config.objective import ObjectiveSettings
from echo_cli.errors import EchoError
from echo_cli.trajectory import Trajectory


@dataclass(frozen=True)
class FilterResult:
    """`kept`: indices of the rollouts in the env term. `dropped`: how many each filter rejected.

    The keys of `dropped` are the same on every step, unset filters included. A rollout that two filters reject counts
    under both, so the values may add up to more than the number of rollouts dropped.
    """

    kept: tuple[int, ...]
    dropped: Mapping[str, int]


def filter_env_rollouts(trajectories: Sequence[Trajectory], settings: ObjectiveSettings) -> FilterResult:
    """Apply the `min_*_fraction` filters of the env term; a rollout must pass every one that is set (>=).

    - `min_valid_action_fraction`, `min_clean_parse_fraction`: shares of the rollout's turns. A trace that is cut before
      its first action has none left to be judged by, and stays.
    - `min_correct_fraction`: the rollout's own reward, 0 to 1. It makes the env term depend on the verifier. It does
      not apply to `world_model_only` rollouts of ours without a reward, which have no verifier by design; a trace
      brings its reward or is refused.

    A dropped rollout leaves the env term entirely, sums and counts, B included. A kept rollout without observations
    still counts in B.

    Raises:
        EchoError: a filter is set and a rollout lacks the turns or the reward that it judges.
    """
    rejected = {
        "valid_action": _below(trajectories, settings.min_valid_action_fraction, _valid_action_fraction),
        "clean_parse": _below(trajectories, settings.min_clean_parse_fraction, _clean_parse_fraction),
        "correct": _below(trajectories, settings.min_correct_fraction, _correct_fraction),
    }
    dropped = set().union(*rejected.values())
    return FilterResult(
        kept=tuple(index for index in range(len(trajectories)) if index not in dropped),
        dropped={reason: len(indices) for reason, indices in rejected.items()},
    )


def _below(
    trajectories: Sequence[Trajectory], minimum: float | None, fraction_of: Callable[[Trajectory], float | None]
) -> set[int]:
    if minimum is None:
        return set()
    fractions = [fraction_of(trajectory) for trajectory in trajectories]
    return {index for index, fraction in enumerate(fractions) if fraction is not None and fraction < minimum}


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


def _correct_fraction(trajectory: Trajectory) -> float | None:
    if trajectory.reward is None and (trajectory.source == "trace" or not trajectory.world_model_only):
        raise EchoError(
            f"min_correct_fraction needs a reward, and the rollout of task {trajectory.task_id!r} has none",
            "call the verifier (objective.use_rl=true; traces bring theirs), or unset objective.min_correct_fraction",
        )
    return trajectory.reward


def _cut_before_acting(trajectory: Trajectory) -> bool:
    """Whether it is a trace of which only what precedes its first action fits."""
    return trajectory.source == "trace" and trajectory.stop_reason == "length_cap" and not trajectory.turns


def _require_turns(trajectory: Trajectory, name: str) -> None:
    if not trajectory.turns:
        raise EchoError(
            f"{name} needs the turns of each rollout, and the rollout of task {trajectory.task_id!r} has none",
            f"record the turns, or unset objective.{name}",
        )
