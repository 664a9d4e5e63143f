"""The `rollout` section of a config: the rollouts of a step and their caps."""

from __future__ import annotations

from typing import Literal

from echo_cli.config.section import FreeOnResume, NonNegative, Positive, PositiveFloat, Section


class RolloutConfig(Section):
    """Rollouts of a step. `max_*` are limits in tokens.

    `explorers` is the number of scripted rollouts per step, which contribute to the env term only. `keep` is the number
    of rollouts of each step that are recorded in rollouts.jsonl, the policy's first.
    """

    tasks_per_step: NonNegative = 8
    group_size: Positive = 8
    curriculum: Literal["learnable"] | None = None
    """Whether tasks whose last groups had no reward contrast are drawn less often; null: shuffled epochs."""
    temperature: PositiveFloat = 1.0
    max_action_tokens: Positive = 24
    max_output_tokens: Positive = 256
    max_episode_tokens: Positive = 512
    explorers: NonNegative = 24
    explorer_commands: Positive = 3
    keep: FreeOnResume[NonNegative] = 0
