"""Schedules of λ and of the learning rate."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass

from echo_cli.config.objective import ObjectiveSettings
from echo_cli.config.schema import OptimConfig


@dataclass(frozen=True)
class GradientNorms:
    """State of the `gradient_ratio` schedule: exponential moving averages of the two terms' gradient norms.

    Both averages start at 0 and are updated at the same steps. The bias of this start is therefore the same factor in
    both and cancels in their ratio, which is all that the schedule reads. Norms are averaged, not their logarithms: at
    a step with almost no RL gradient, the average falls by the factor `smoothing` at most, whereas a logarithmic
    average would fall by orders of magnitude.
    """

    rl: float = 0.0
    env: float = 0.0

    def updated(self, rl_norm: float, env_norm: float, smoothing: float) -> GradientNorms:
        """Return the averages after a measurement; the old averages have the weight `smoothing`.

        A measurement with a norm that is 0 (no reward contrast, no observations) or not finite is ignored, so λ is
        unchanged. Letting λ follow the RL gradient to 0 would not protect the policy at such steps: Adam divides by the
        running size of the gradient, so an env term alone in the loss takes a full-size step at any λ. Adam's second
        moments would merely shrink with λ, and the next RL gradient would take an oversized step.
        """
        if not (0 < rl_norm < math.inf and 0 < env_norm < math.inf):
            return self
        return GradientNorms(
            smoothing * self.rl + (1 - smoothing) * rl_norm, smoothing * self.env + (1 - smoothing) * env_norm
        )


def world_model_coeff_at(
    settings: ObjectiveSettings, step: int, total_steps: int, norms: GradientNorms | None = None
) -> float:
    """Return λ at the 0-based optimizer `step` of a run of `total_steps`.

    λ is 0 at steps that `env_every` does not divide, and not rescaled at the others: its mean over the steps is λ /
    `env_every`. `linear` and `cosine` (half a cosine) reach `world_model_coeff_end` at the last
    step, `total_steps - 1`, and are constant afterwards.
    `gradient_ratio` is the λ at which λ · env norm / RL norm equals `gradient_ratio_target`, clamped to its bounds;
    before the first measurement in `norms` it is `base_coeff`.
    """
    if step % settings.env_every:
        return 0.0
    if settings.schedule == "gradient_ratio" and norms is not None and norms.env > 0:
        low, high = settings.gradient_ratio_bounds
        return min(max(settings.gradient_ratio_target * norms.rl / norms.env, low), high)
    if settings.schedule == "step":
        return settings.schedule_values[bisect_right(settings.schedule_steps, step)]
    if settings.world_model_coeff_end is not None:
        # A convex combination instead of start + share · (end - start), so that both ends are exact.
        share = min(step / (total_steps - 1), 1.0) if total_steps > 1 else 1.0
        if settings.schedule == "cosine":
            share = 0.5 * (1 - math.cos(math.pi * share))
        return (1 - share) * settings.base_coeff + share * settings.world_model_coeff_end
    return settings.base_coeff


def measures_gradients(settings: ObjectiveSettings, step: int) -> bool:
    """Return whether the schedule of λ needs the gradient norms of the 0-based `step`."""
    return settings.schedule == "gradient_ratio" and step % settings.gradient_ratio_every == 0


def learning_rate_at(optim: OptimConfig, step: int, total_steps: int) -> float:
    """Return the learning rate at the 0-based optimizer `step`: linear warm-up, then constant, linear or cosine.

    `linear` and `cosine` decay to 0 at the step after the last.
    """
    if step < optim.warmup_steps:
        return optim.lr * (step + 1) / optim.warmup_steps
    share = (step - optim.warmup_steps) / max(total_steps - optim.warmup_steps, 1)
    if optim.lr_schedule == "linear":
        return optim.lr * (1 - share)
    if optim.lr_schedule == "cosine":
        return optim.lr * 0.5 * (1 + math.cos(math.pi * share))
    return optim.lr
