"""Diagnostics of λ at a step: portable λ, the gradients of the two terms, and a check of the first step."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from echo_cli.errors import EchoError
from echo_cli.objective.batch import RolloutCounts
from echo_cli.objective.loss import StepWeights
from echo_cli.text import counted


def portable_lambda(
    coeff: float, counts: RolloutCounts, weights: StepWeights, advantages_B: Tensor | None
) -> float | None:
    """Return r = (env weight per observation token) / (RL weight per action token · mean |advantage|).

    Weights are means over the tokens of their term; the env weight includes λ and `env_weights`; |advantage| is a mean
    over the rollouts of the RL term. Unlike λ, r is comparable across normalisations and batch shapes. With several
    ranks, r describes this rank's rollouts. The result is None if r is undefined: no RL term, no action or observation
    tokens, or no reward variance.
    """
    if advantages_B is None:
        return None
    action_tokens = counts.actions_B[counts.in_rl_B].sum().double()
    env_tokens = counts.selected_B[counts.in_env_B].sum().double()
    rl_weight = (weights.rl_weight_B * counts.actions_B).sum() / action_tokens
    env_weight = coeff * (weights.env_weight_B * counts.factors_B).sum() / env_tokens
    ratio = float(env_weight / (rl_weight * advantages_B[counts.in_rl_B].abs().double().mean()))
    return ratio if math.isfinite(ratio) else None


@dataclass(frozen=True)
class GradientComparison:
    """Separate gradients of the two terms: L2 norms, ratio env / rl (None if rl is 0), cosine (None if either is 0)."""

    rl_norm: float
    env_norm: float
    ratio: float | None
    cosine: float | None


def gradient_comparison(rl_grads: Iterable[Tensor | None], env_grads: Iterable[Tensor | None]) -> GradientComparison:
    """Compare two gradients given per parameter in the same order; None means zeros (`allow_unused`)."""
    rl_square = env_square = product = 0.0
    for rl_grad, env_grad in zip(rl_grads, env_grads, strict=True):
        if rl_grad is not None:
            rl_square += float(rl_grad.float().square().sum())
        if env_grad is not None:
            env_square += float(env_grad.float().square().sum())
        if rl_grad is not None and env_grad is not None:
            product += float((rl_grad.float() * env_grad.float()).sum())
    rl_norm, env_norm = math.sqrt(rl_square), math.sqrt(env_square)
    return GradientComparison(
        rl_norm=rl_norm,
        env_norm=env_norm,
        ratio=env_norm / rl_norm if rl_norm > 0 else None,
        cosine=product / (rl_norm * env_norm) if rl_norm > 0 and env_norm > 0 else None,
    )


@dataclass(frozen=True)
class Interference:
    """Movement of the step's action tokens by an optimizer step on the env term alone, at the sampling temperature."""

    shift: float
    """Mean change of the logprob, nats per action token; below 0, the env term makes the step's own actions rarer."""
    distance: float
    """Mean absolute change of the logprob, nats per action token."""
    kl: float
    """Estimate of KL(before ‖ after), nats per action token: the mean of exp(d) - d - 1 over the changes d.

    It is unbiased, because the policy before has sampled the tokens, and never negative.
    """


def measure_interference(before_n: Tensor, after_n: Tensor) -> Interference | None:
    """Compare the logprobs of the same action tokens before and after a step; None without tokens."""
    if len(before_n) == 0:
        return None
    change_n = after_n.double() - before_n.double()
    return Interference(
        shift=float(change_n.mean()),
        distance=float(change_n.abs().mean()),
        kl=float((change_n.exp() - change_n - 1).mean()),
    )


def check_first_step(
    step: int, coeff: float, counts: RolloutCounts, env_loss: float, *, end_of_output: bool = False
) -> None:
    """Raise an error if the env term is enabled but has no effect, before the run wastes hours.

    Args:
        step: 0-based index of the step, for the message.
        coeff: λ at the step.
        env_loss: the metric of that name at the step.
        end_of_output: whether the ends of outputs are targets.

    Raises:
        EchoError: λ > 0, and no rollout has a token in the env term, or their loss is not finite or not positive, or
            no output has an end although `end_of_output`.
    """
    if coeff == 0:
        return
    env_tokens = int(counts.selected_B[counts.in_env_B].sum())
    if env_tokens == 0:
        raise EchoError(
            f"the env term has no token at step {step}, with λ = {coeff:g}: {_why_empty(counts)}",
            "see what becomes of actions and payloads: echo-cli env check CONFIG --model; rollout.explorers observe "
            "whatever the policy does; objective.world_model_coeff=0 trains without the env term",
            exit_code=1,
        )
    if not math.isfinite(env_loss):
        raise EchoError(
            f"the env term is {env_loss} at step {step} over {env_tokens} observation tokens",
            "the model's logits are not finite: check its weights and dtype, or try float32",
            exit_code=1,
        )
    if env_loss <= 0:
        raise EchoError(
            f"the env term is {env_loss} at step {step}, with λ = {coeff:g} and {env_tokens} observation tokens",
            "a cross-entropy is positive unless every token is certain: check that targets are shifted by one position",
            exit_code=1,
        )
    if end_of_output and int(counts.ends_B[counts.in_env_B].sum()) == 0:
        raise EchoError(
            f"objective.end_of_output is true, but no output of step {step} is followed by a prompt or scaffold",
            "set environment.prompt or use a chat template; the last output of an episode has no end in a chat "
            "template: raise rollout.explorer_commands; objective.end_of_output=false trains without ends",
            exit_code=1,
        )


def _why_empty(counts: RolloutCounts) -> str:
    """Return why no rollout of a step has a token in the env term."""
    rollouts = len(counts.selected_B)
    observing = int((counts.selected_B > 0).sum())
    if observing:
        filters = "the filters objective.min_*_fraction and max_correct_fraction"
        return f"{filters} exclude every rollout that observes something ({observing})"
    if candidates := int(counts.candidates_B.sum()):
        unselected = counted(candidates, "observation token")
        return f"objective.env_min_action_entropy and env_weights leave out all of {unselected}"
    if bool(counts.observations_B.any()):
        return f"{counted(rollouts, 'rollout')} with warnings and without env_output"
    return f"{counted(rollouts, 'rollout')} without an observation"
