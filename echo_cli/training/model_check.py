"""Check of a model before training: the first rollouts of a run, and what keeps the model from learning in them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from echo_cli.config.schema import Config
from echo_cli.environments.protocol import TaskSuite
from echo_cli.models.backend import Policy
from echo_cli.objective.advantages import step_advantages
from echo_cli.rollouts.behaviour import behaviour_metrics, find_obstacles, is_on_policy
from echo_cli.rollouts.environment_findings import Finding
from echo_cli.training.step_data import play_tasks
from echo_cli.trajectory import Role, Trajectory

_MOST_TASKS = 4
_MOST_OF_A_GROUP = 4


@dataclass(frozen=True)
class ModelReport:
    """Rollouts of a model, and their signals."""

    rollouts: tuple[Trajectory, ...]
    signals: Mapping[str, float | None]
    """`behaviour_metrics`, and `zero_advantage_fraction` and `reward`, both over the rollouts of the RL term."""
    most_action_tokens: int
    """Maximum number of tokens of an action, `rollout.max_action_tokens`."""
    findings: tuple[Finding, ...]

    @property
    def stops(self) -> dict[str, int]:
        """Number of rollouts by stop reason, most frequent first."""
        return dict(Counter(rollout.stop_reason for rollout in self.rollouts).most_common())

    @property
    def observed_tokens(self) -> int:
        """Number of env_output tokens."""
        return sum(rollout.count(Role.ENV_OUTPUT) for rollout in self.rollouts)

    def to_json(self) -> dict[str, Any]:
        """Return the report as a JSON object."""
        return {
            "rollouts": [rollout.to_json() for rollout in self.rollouts],
            "signals": dict(self.signals),
            "stop_reasons": self.stops,
            "observed_tokens": self.observed_tokens,
            "warnings": [vars(finding) for finding in self.findings],
        }


def check_model(config: Config, policy: Policy, worlds: TaskSuite) -> ModelReport:
    """Play the first training rollouts of a run with its initial policy: at most 4 tasks with 4 rollouts each.

    Raises:
        EchoError: the environment is unavailable (exit code 1).
    """
    rollout = config.rollout
    sizes = {
        "tasks_per_step": min(rollout.tasks_per_step or _MOST_TASKS, _MOST_TASKS),
        "group_size": min(rollout.group_size, _MOST_OF_A_GROUP),
    }
    played = play_tasks(config.model_copy(update={"rollout": rollout.model_copy(update=sizes)}), policy, worlds, 0)
    signals = behaviour_metrics(played)
    learned = [trajectory for trajectory in played if is_on_policy(trajectory)]
    if config.objective.use_rl and learned:
        flat = (step_advantages(learned, config.objective.advantage) == 0).double().mean()
        rewards = [trajectory.reward or 0.0 for trajectory in learned]
        signals |= {"zero_advantage_fraction": float(flat), "reward": sum(rewards) / len(rewards)}
    findings = tuple(find_obstacles(signals, rollout))
    return ModelReport(tuple(played), signals, rollout.max_action_tokens, findings)
