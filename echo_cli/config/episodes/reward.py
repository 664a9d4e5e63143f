"""The `reward` section of an environment: what an episode is worth."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import model_validator

from echo_cli.config.section import Section
from echo_cli.errors import EchoError


class FinalAction(Section):
    """An action that the harness sends when an episode ends; the transcript omits it."""

    action: dict[str, Any]
    counts: bool = True
    """Whether the action's reward is part of the episode's reward."""
    unless_done: bool = True
    """Whether to skip the action if the environment has ended the episode."""


class RewardConfig(Section):
    """Episode reward: the sum of the step rewards, the last step reward, or the reward of the `final` actions.

    `none: skip` ignores null rewards and excludes an episode with only null rewards from the RL term; `none: zero`
    counts a null reward as 0.
    """

    mode: Literal["sum", "last", "final"] = "sum"
    none: Literal["skip", "zero"] = "skip"
    final: tuple[FinalAction, ...] = ()

    @model_validator(mode="after")
    def _has_final(self) -> RewardConfig:
        if self.mode == "final" and not any(final.counts for final in self.final):
            raise EchoError(
                "reward.mode is final and reward.final has no action with counts: true", "add one to reward.final"
            )
        return self
