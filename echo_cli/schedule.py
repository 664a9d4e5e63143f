"""What changes over the steps of a run: λ and the learning rate."""

from __future__ import annotations

import math
from bisect import bisect_right

from echo_cli.config import OptimConfig
from echo_cli.preset import ObjectiveSettings


def world_model_coeff_at(settings: ObjectiveSettings, step: int, total_steps: int) -> float:
    """λ at the 0-based optimizer `step` of a run of `total_steps`.

    `linear` reaches `world_model_coeff_end` at the last step, `total_steps - 1`, and stays there. An unknown schedule
    cannot get here: ObjectiveSettings refuses it.
    """
    if settings.schedule == "step":
        return settings.schedule_values[bisect_right(settings.schedule_steps, step)]
    if settings.schedule == "linear" and settings.world_model_coeff_end is not None:
        # A convex combination, not start + share · (end - start), so that both ends are exact.
        share = min(step / (total_steps - 1), 1.0) if total_steps > 1 else 1.0
        return (1 - share) * settings.base_coeff + share * settings.world_model_coeff_end
    return settings.base_coeff


def learning_rate_at(optim: OptimConfig, step: int, total_steps: int) -> float:
    """The learning rate at the 0-based optimizer `step`: linear warm-up, then constant, linear or cosine to zero.

    `linear` and `cosine` would reach zero at the step after the last.
    """
    if step < optim.warmup_steps:
        return optim.lr * (step + 1) / optim.warmup_steps
    share = (step - optim.warmup_steps) / max(total_steps - optim.warmup_steps, 1)
    if optim.lr_schedule == "linear":
        return optim.lr * (1 - share)
    if optim.lr_schedule == "cosine":
        return optim.lr * 0.5 * (1 + math.cos(math.pi * share))
    return optim.lr
