"""What a run would do, before it does it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from echo_cli.config import Config


def plan(config: Config, path: Path) -> dict[str, Any]:
    """The plan of `--dry-run`: counts of rollouts and an upper bound of tokens (context included) per step."""
    rollout, evaluation = config.rollout, config.evaluation
    policy_rollouts = rollout.tasks_per_step * rollout.group_size
    # At λ = 0 explorers are not played.
    explorers = rollout.explorers if config.objective.base_coeff > 0 else 0
    longest = rollout.max_episode_tokens + rollout.max_output_tokens
    return {
        "run directory": str(path),
        "environment": config.environment.source,
        "λ": config.objective.base_coeff,
        "policy rollouts per step": policy_rollouts,
        "explorer rollouts per step": explorers,
        "tokens per step, at most": (policy_rollouts + explorers) * longest,
        "evaluations": 1 + -(-config.steps // evaluation.every),
        "rollouts per held-out task and evaluation": evaluation.heldout_rollouts,
        "steps between held-out rollouts": evaluation.pass_every,
        "steps between gradient probes, 0 for none": config.probe_every,
    }
