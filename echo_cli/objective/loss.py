"""The ECHO objective as pure functions on tensors: L = L_RL(actions) + λ · CE(observations).

If traces are imitated, the mean CE of their action tokens is added with its own weight.

Source: ECHO, arXiv 2605.24517, Eq. 3, and OpenEnv RFC 010.

Every denominator is a count over the whole optimizer step, all micro-batches and ranks. Each rollout therefore has
two weights per step, and the loss of a micro-batch is

    Σ rl_weight · surrogate  +  λ · Σ env_weight · CE

The losses and gradients of micro-batches and ranks *add up* to the step's loss and gradient, independent of
micro-batching, packing, padding and ranks. (With a data-parallel wrapper that averages gradients, multiply the loss by
the world size.)

In ten lines:

    counts = count_rollouts(trajectories, settings.selected_roles, use_rl=settings.use_rl)
    weights = step_weights(counts, step_totals(counts), settings)
    advantages_B = step_advantages(trajectories, settings.advantage)
    for indices in bucket(trajectories, token_budget=16_384):
        micro = collate(trajectories, indices, pad_id)
        wanted = targets(micro, settings.target_roles)
        hidden_NH = wanted.gather(model(micro))
        scores = target_logprobs(hidden_NH, model.lm_head, wanted, temperature, env_gradient=coeff > 0)
        loss, metrics = echo_loss(scores.logprobs_N, wanted, advantages_B, weights, settings, coeff)
        loss.backward()

With a selection of targets (`env_weights`, `env_min_action_entropy`), give `target_factors(trajectories, settings)` to
`count_rollouts` and to `wanted.weighted`; `weigh_step` does all of this.

Shape suffixes: B rollouts of the step (on this rank), N targets of the micro-batch, n a subset of these targets.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from echo_cli.config.objective import ObjectiveSettings
from echo_cli.metrics import Metric, Metrics
from echo_cli.objective.batch import RolloutCounts, Targets
from echo_cli.trajectory import Role

__all__ = [
    "ObjectiveSettings",
    "StepTotals",
    "StepWeights",
    "echo_loss",
    "env_loss",
    "imitation_loss",
    "loss_metrics",
    "rl_loss",
    "step_totals",
    "step_weights",
]


@dataclass(frozen=True)
class StepTotals:
    """Counts over the whole step for the denominators. Sum over ranks with `+`, or all-reduce `astuple(totals)`."""

    rl_rollouts: int
    """Number of rollouts with an RL term, including rollouts without action tokens."""
    action_tokens: int
    """Number of action tokens of the rollouts with an RL term."""
    env_rollouts: int
    """Number of rollouts with an env term (B), including rollouts without observations."""
    selected_tokens: int
    """Number of selected tokens, Σ |O'_i|, of the rollouts with an env term."""
    imitation_tokens: int = 0
    """Number of action tokens of the imitated rollouts."""

    def __add__(self, other: StepTotals) -> StepTotals:
        return StepTotals(
            self.rl_rollouts + other.rl_rollouts,
            self.action_tokens + other.action_tokens,
            self.env_rollouts + other.env_rollouts,
            self.selected_tokens + other.selected_tokens,
            self.imitation_tokens + other.imitation_tokens,
        )


@dataclass(frozen=True)
class StepWeights:
    """Weight, per term, of each target of a rollout, float64; 0 if the rollout is not in the term."""

    rl_weight_B: Tensor
    env_weight_B: Tensor
    imitation_weight_B: Tensor


def step_totals(counts: RolloutCounts) -> StepTotals:
    """Return the totals of one rank's rollouts."""
    return StepTotals(
        rl_rollouts=int(counts.in_rl_B.sum()),
        action_tokens=int(counts.actions_B[counts.in_rl_B].sum()),
        env_rollouts=int(counts.in_env_B.sum()),
        selected_tokens=int(counts.selected_B[counts.in_env_B].sum()),
        imitation_tokens=int(counts.actions_B[counts.in_imitation_B].sum()),
    )


def step_weights(counts: RolloutCounts, totals: StepTotals, settings: ObjectiveSettings) -> StepWeights:
    """Return the weights of one rank's rollouts, given the totals over all ranks.

    RL denominators count the rollouts with an RL term, env denominators the rollouts with an env term:

    | rl_normalization  | weight of an action token | env_normalization  | weight of a selected token      |
    |-------------------|---------------------------|--------------------|---------------------------------|
    | token_mean        | 1 / Σ_i |A_i|             | token_mean         | 1 / Σ_i |O'_i|                  |
    | sequence_mean     | 1 / (B |A_i|)             | observation_tokens | 1 / (B |O_i|)  (paper, Eq. 3)   |
    | fixed_length      | 1 / (B max_length)        | selected_tokens    | 1 / (B |O'_i|)                  |
    |                   |                           | fixed_length       | 1 / (B max_length)              |

    The weight of an imitated action token is 1 / Σ_i |A_i| over the imitated rollouts.
    """
    denominators_rl = {
        "token_mean": torch.full_like(counts.actions_B, totals.action_tokens),
        "sequence_mean": totals.rl_rollouts * counts.actions_B,
        "fixed_length": torch.full_like(counts.actions_B, totals.rl_rollouts * (settings.max_length or 0)),
    }
    denominators_env = {
        "token_mean": torch.full_like(counts.selected_B, totals.selected_tokens),
        "observation_tokens": totals.env_rollouts * counts.observations_B,
        "selected_tokens": totals.env_rollouts * counts.selected_B,
        "fixed_length": torch.full_like(counts.selected_B, totals.env_rollouts * (settings.max_length or 0)),
    }
    return StepWeights(
        rl_weight_B=_reciprocal(denominators_rl[settings.rl_normalization], counts.in_rl_B),
        env_weight_B=_reciprocal(denominators_env[settings.env_normalization], counts.in_env_B),
        imitation_weight_B=_reciprocal(
            torch.full_like(counts.actions_B, totals.imitation_tokens), counts.in_imitation_B
        ),
    )


def _reciprocal(denominators_B: Tensor, included_B: Tensor) -> Tensor:
    # A denominator of 0 means that the rollout has no such target; any finite weight is correct.
    weights_B = torch.zeros(denominators_B.shape, dtype=torch.float64)
    usable_B = included_B & (denominators_B > 0)
    weights_B[usable_B] = 1 / denominators_B[usable_B].double()
    return weights_B


def rl_loss(
    logprobs_N: Tensor,
    targets: Targets,
    advantages_B: Tensor | None,
    weights: StepWeights,
    settings: ObjectiveSettings,
    reference_logprobs_N: Tensor | None = None,
) -> Tensor:
    """Return the RL term of a micro-batch: clipped surrogate or REINFORCE, plus the KL to a reference if configured.

    With ρ = exp(logp - behaviour logp): -min(ρ A, clip(ρ, 1 - ε_low, 1 + ε_high) A), or -A logp. The KL is the
    non-negative estimate exp(d) - d - 1 with d = reference logp - logp.

    Args:
        logprobs_N: at the sampling temperature, as are the behaviour and reference logprobs.
        advantages_B: None only if `use_rl` is False.

    Returns:
        A scalar connected to the graph of `logprobs_N`; 0 with zero gradients if the term has no target.

    Raises:
        ValueError: `advantages_B` or `reference_logprobs_N` is missing.
    """
    # Targets are selected by index, not multiplied by a mask: 0 · inf would be NaN.
    n = _rl_targets(targets, weights)
    logprobs_n = logprobs_N[n]
    if not settings.use_rl:
        return logprobs_n.sum()
    if advantages_B is None:
        raise ValueError("the RL term needs advantages_B")
    advantages_n = _per_target(advantages_B, targets, n, like=logprobs_n)
    if settings.surrogate == "reinforce":
        losses_n = -advantages_n * logprobs_n
    else:
        ratio_n = (logprobs_n - targets.behaviour_logprobs_N[n].to(logprobs_n.dtype)).exp()
        clipped_n = ratio_n.clamp(1 - settings.clip_low, 1 + settings.clip_high)
        losses_n = -torch.minimum(ratio_n * advantages_n, clipped_n * advantages_n)
    if settings.kl_coeff > 0:
        if reference_logprobs_N is None:
            raise ValueError("kl_coeff > 0 needs reference_logprobs_N")
        difference_n = reference_logprobs_N[n] - logprobs_n
        losses_n = losses_n + settings.kl_coeff * (difference_n.exp() - difference_n - 1)
    return (_per_target(weights.rl_weight_B, targets, n, like=logprobs_n) * losses_n).sum()


def env_loss(logprobs_N: Tensor, targets: Targets, weights: StepWeights, settings: ObjectiveSettings) -> Tensor:
    """Return the env term of a micro-batch, before λ: the weighted cross-entropy of selected observation targets.

    With `env_loss_clip` c and `env_stop_at` p, a token's cross-entropy is limited to [-log p, c]; beyond the limits it
    has no gradient. The denominators count all selected tokens nevertheless. `Targets.factors_N` multiplies a token's
    cross-entropy and leaves the denominators alone; a token with the factor 0 is not selected.

    Args:
        logprobs_N: at temperature 1 for observations.

    Returns:
        A scalar, nats; 0 if the term has no target.
    """
    n = _env_targets(targets, weights)
    logprobs_n = logprobs_N[n]
    if settings.env_loss_clip is not None:
        logprobs_n = logprobs_n.clamp(min=-settings.env_loss_clip)
    if settings.env_stop_at is not None:
        logprobs_n = logprobs_n.clamp(max=math.log(settings.env_stop_at))
    weights_n = _per_target(weights.env_weight_B, targets, n, like=logprobs_N)
    if targets.factors_N is not None:
        weights_n = weights_n * targets.factors_N[n].to(logprobs_N.dtype)
    return -(weights_n * logprobs_n).sum()


def imitation_loss(logprobs_N: Tensor, targets: Targets, weights: StepWeights) -> Tensor:
    """Return the imitation term of a micro-batch, before its coefficient: weighted cross-entropy of imitated actions.

    Args:
        logprobs_N: at temperature 1 for imitated actions.

    Returns:
        A scalar, nats; 0 if the term has no target.
    """
    n = _imitation_targets(targets, weights)
    return -(_per_target(weights.imitation_weight_B, targets, n, like=logprobs_N) * logprobs_N[n]).sum()


def echo_loss(
    logprobs_N: Tensor,
    targets: Targets,
    advantages_B: Tensor | None,
    weights: StepWeights,
    settings: ObjectiveSettings,
    coeff: float,
    reference_logprobs_N: Tensor | None = None,
    imitation_coeff: float | None = None,
) -> tuple[Tensor, Metrics]:
    """Return the loss of a micro-batch, RL term + `coeff` · env term, and its metrics. Arguments as in `rl_loss`.

    If `coeff` is 0, the env term is excluded from the graph, so the gradient is bitwise equal to plain GRPO's. If
    `imitation_coeff` is not None, `imitation_coeff` · imitation term is added (excluded from the graph at 0), and the
    metrics include `imitation_loss` (token mean before the coefficient, nats) and `imitation_tokens`.
    """
    rl = rl_loss(logprobs_N, targets, advantages_B, weights, settings, reference_logprobs_N)
    env = env_loss(logprobs_N, targets, weights, settings)
    loss = rl + coeff * env if coeff > 0 else rl
    if imitation_coeff:
        loss = loss + imitation_coeff * imitation_loss(logprobs_N, targets, weights)
    metrics = loss_metrics(loss, rl, env, logprobs_N, targets, advantages_B, weights, settings)
    if imitation_coeff is not None:
        n = _imitation_targets(targets, weights)
        metrics["imitation_loss"] = Metric(-float(logprobs_N.detach()[n].sum()), len(n))
        metrics["imitation_tokens"] = Metric(len(n), 1)
    return loss, metrics


def _rl_targets(targets: Targets, weights: StepWeights) -> Tensor:
    weighted_N = (weights.rl_weight_B > 0).to(targets.rollout_N.device)[targets.rollout_N]
    return ((targets.roles_N == Role.ACTION) & weighted_N).nonzero().squeeze(-1)


def _env_targets(targets: Targets, weights: StepWeights) -> Tensor:
    weighted_N = (weights.env_weight_B > 0).to(targets.rollout_N.device)[targets.rollout_N]
    if targets.factors_N is not None:
        weighted_N &= targets.factors_N > 0
    return ((targets.roles_N != Role.ACTION) & weighted_N).nonzero().squeeze(-1)


def _imitation_targets(targets: Targets, weights: StepWeights) -> Tensor:
    weighted_N = (weights.imitation_weight_B > 0).to(targets.rollout_N.device)[targets.rollout_N]
    return ((targets.roles_N == Role.ACTION) & weighted_N).nonzero().squeeze(-1)


def _per_target(values_B: Tensor, targets: Targets, n: Tensor, like: Tensor) -> Tensor:
    # Convert the dtype first: not every device has float64.
    return values_B.to(like.dtype).to(like.device)[targets.rollout_N[n]]


def loss_metrics(
    loss: Tensor,
    rl: Tensor,
    env: Tensor,
    logprobs_N: Tensor,
    targets: Targets,
    advantages_B: Tensor | None,
    weights: StepWeights,
    settings: ObjectiveSettings,
) -> Metrics:
    """Return the metrics of a micro-batch; the keys depend on the settings alone.

    - `loss`, `rl_loss`, `env_loss`: totals; `env_loss` is before λ.
    - `env_ce`: mean cross-entropy of all env_output targets, including filtered rollouts and tokens that are not
      selected, nats per token.
    - `end_ce`: the same of all end targets; `end_tokens`: number of end targets in the env term. Only with
      `end_of_output`.
    - `action_tokens`, `env_tokens`: number of targets in the RL term and in the env term, ends included.
    - `ratio`, `clip_fraction`: mean ρ, and fraction of clipped tokens, over RL action tokens; a token is clipped if the
      clip removes its gradient.
    - `zero_advantage_fraction`: fraction of the rollouts with RL action tokens whose advantage is 0.
    """
    with torch.no_grad():
        n = _rl_targets(targets, weights)
        ratio_n = (logprobs_N[n] - targets.behaviour_logprobs_N[n].to(logprobs_N.dtype)).exp()
        advantages_B = torch.zeros_like(weights.rl_weight_B) if advantages_B is None else advantages_B
        advantages_n = _per_target(advantages_B, targets, n, like=logprobs_N)
        clipped_n = ((advantages_n > 0) & (ratio_n > 1 + settings.clip_high)) | (
            (advantages_n < 0) & (ratio_n < 1 - settings.clip_low)
        )
        clipped = clipped_n.sum() if settings.surrogate == "clipped" else 0.0
        present_B = torch.zeros(len(advantages_B), dtype=torch.bool)
        present_B[targets.rollout_N[n].cpu()] = True
        zero_advantages = (advantages_B.cpu()[present_B] == 0).sum()
        ce_n = -logprobs_N[targets.roles_N == Role.ENV_OUTPUT]
        env_roles_n = targets.roles_N[_env_targets(targets, weights)]
        sums: dict[str, tuple[Tensor | float, float]] = {
            "loss": (loss.detach(), 1),
            "rl_loss": (rl.detach(), 1),
            "env_loss": (env.detach(), 1),
            "env_ce": (ce_n.sum(), len(ce_n)),
            "action_tokens": (len(n), 1),
            "env_tokens": (len(env_roles_n), 1),
            "ratio": (ratio_n.sum(), len(n)),
            "clip_fraction": (clipped, len(n)),
            "zero_advantage_fraction": (zero_advantages, float(present_B.sum())),
        }
        if settings.end_of_output:
            end_ce_n = -logprobs_N[targets.roles_N == Role.END]
            sums["end_ce"] = (end_ce_n.sum(), len(end_ce_n))
            sums["end_tokens"] = ((env_roles_n == Role.END).sum(), 1)
        return {name: Metric(float(total), count) for name, (total, count) in sums.items()}


def env_ce_by_name(names_B: Sequence[str], targets: Targets, logprobs_N: Tensor) -> Metrics:
    """Return `NAME/env_ce` of a micro-batch, as `env_ce`, for each name among the step's rollouts; "" is none."""
    found: Metrics = {}
    for name in sorted({*names_B} - {""}):
        own_B = torch.tensor([each == name for each in names_B], device=logprobs_N.device)
        ce_n = -logprobs_N.detach()[own_B[targets.rollout_N] & (targets.roles_N == Role.ENV_OUTPUT)]
        found[f"{name}/env_ce"] = Metric(float(ce_n.sum()), len(ce_n))
    return found
