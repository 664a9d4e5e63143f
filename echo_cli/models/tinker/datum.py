"""A weighed step as a Tinker service takes it: inputs, targets, advantages and logprobs of each sequence.

A service has no cross-entropy beside a policy gradient in one request, and some services normalise weights away. But at
the present policy's own logprob the ratio is 1, and the gradient of -c · ratio is that of c · CE. So observations and
imitated actions are a policy gradient too: their advantage c is minus the derivative of the loss with respect to the
logprob, and their logprob is a fresh one. Actions have the advantage and the sampler's logprob, as in GRPO.

Shapes: B rollouts of the step, V their views (sequences), N targets, T tokens of a view less one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from echo_cli.objective.batch import Targets, collate, targets
from echo_cli.objective.loss import env_loss, imitation_loss
from echo_cli.objective.step import WeighedStep
from echo_cli.trajectory import ContextViews, Role

Floats = NDArray[np.float32]
Reduction = Literal["sum", "sequence_mean"]


@dataclass(frozen=True)
class Datum:
    """A sequence of a request: T inputs, each with the token that follows it."""

    input_ids: NDArray[np.int64]
    target_ids: NDArray[np.int64]
    """Tokens to predict; a placebo's differ from the inputs that follow."""
    advantages: Floats | None = None
    logprobs: Floats | None = None
    """Logprobs in the denominator of the ratio, nats; 0 where the advantage is 0."""

    def __len__(self) -> int:
        return len(self.target_ids)


def sequence(token_ids: Sequence[int]) -> Datum:
    """Return a sequence whose targets are its own next tokens, for a forward pass."""
    ids = np.asarray(token_ids, dtype=np.int64)
    return Datum(ids[:-1], ids[1:].copy())  # a placebo writes into the targets


def step_targets(step: WeighedStep, views: ContextViews) -> Targets:
    """Return the targets of all views of a step: actions, then observations, with `rollout_N` of the step."""
    roles = set(step.settings.target_roles)
    if bool((step.weights.imitation_weight_B > 0).any()):
        roles.add(Role.ACTION)
    micro = collate(views.trajectories, range(len(views.trajectories)), pad_id=0)
    wanted = targets(micro, roles).of_rollouts(views.owners)
    return wanted.replaced(step.misplaced).weighted(step.factors)


def step_sequences(views: ContextViews, wanted: Targets) -> list[Datum]:
    """Return each view with the step's targets, which a placebo has replaced."""
    found = [sequence(view.token_ids) for view in views.trajectories]
    for row, position, token in zip(
        wanted.row_N.tolist(), wanted.position_N.tolist(), wanted.token_ids_N.tolist(), strict=True
    ):
        found[row].target_ids[position] = token
    return found


def needs_fresh(step: WeighedStep, wanted: Targets) -> Tensor:
    """Return a mask [N] of the targets whose advantages, or whose ratio of 1, need the present policy's logprob."""
    is_action_N = wanted.roles_N == Role.ACTION
    weights = step.weights
    env_N = ~is_action_N & (weights.env_weight_B > 0)[wanted.rollout_N] & (step.coeff > 0)
    if wanted.factors_N is not None:
        env_N &= wanted.factors_N > 0
    imitated_N = is_action_N & (weights.imitation_weight_B > 0)[wanted.rollout_N] & bool(step.imitation_coeff)
    learned_N = is_action_N & (weights.rl_weight_B > 0)[wanted.rollout_N]
    return env_N | imitated_N | (learned_N & (step.settings.surrogate == "reinforce"))


def advantages_of(step: WeighedStep, wanted: Targets, fresh_N: Tensor) -> Tensor:
    """Return the advantage of each target, [N] float64: minus the derivative of the step's loss at a ratio of 1.

    Args:
        fresh_N: the present policy's logprobs, nats; read where `needs_fresh`.
    """
    leaf_N = fresh_N.double().requires_grad_()
    loss = 0.0 * leaf_N.sum()
    if step.coeff > 0:
        loss = loss + step.coeff * env_loss(leaf_N, wanted, step.weights, step.settings)
    if step.imitation_coeff:
        loss = loss + step.imitation_coeff * imitation_loss(leaf_N, wanted, step.weights)
    (gradient_N,) = torch.autograd.grad(loss, leaf_N)
    advantages_N = -gradient_N
    if step.advantages_B is not None:
        learned_N = (wanted.roles_N == Role.ACTION) & (step.weights.rl_weight_B > 0)[wanted.rollout_N]
        of_rollout_B = step.weights.rl_weight_B * step.advantages_B
        advantages_N = torch.where(learned_N, of_rollout_B[wanted.rollout_N], advantages_N)
    return advantages_N + 0.0  # no negative zeros on the wire


def weighed(
    sequences: Sequence[Datum], wanted: Targets, advantages_N: Tensor, logprobs_N: Tensor, reduction: Reduction
) -> list[Datum]:
    """Return the sequences with advantages, scaled for the service's reduction, and logprobs where they are not 0."""
    factors = reduction_factors(reduction, [len(of) for of in sequences])
    rows, positions = wanted.row_N.numpy(), wanted.position_N.numpy()
    advantages, logprobs = advantages_N.numpy(), logprobs_N.double().numpy()
    found = []
    for row, (of, factor) in enumerate(zip(sequences, factors, strict=True)):
        mine = np.flatnonzero((rows == row) & (advantages != 0))
        scaled, shifted = np.zeros(len(of), dtype=np.float32), np.zeros(len(of), dtype=np.float32)
        scaled[positions[mine]] = factor * advantages[mine]
        shifted[positions[mine]] = logprobs[mine]
        found.append(Datum(of.input_ids, of.target_ids, scaled, shifted))
    return found


def reduction_factors(reduction: Reduction, lengths: Sequence[int]) -> list[float]:
    """Return the factor of each sequence's advantages that undoes the service's reduction over a step's sequences.

    `sum` adds the tokens' losses. `sequence_mean` divides the sum over a sequence by its number of targets, and the
    gradient by the number of sequences since the last optimizer step.
    """
    return [1.0 if reduction == "sum" else float(length * len(lengths)) for length in lengths]


def gather(outputs: Sequence[Floats], wanted: Targets) -> Tensor:
    """Return the logprobs of the targets, [N] float32, from those of whole views, a row each."""
    rows, positions = wanted.row_N.tolist(), wanted.position_N.tolist()
    return torch.tensor([outputs[row][position] for row, position in zip(rows, positions, strict=True)])
