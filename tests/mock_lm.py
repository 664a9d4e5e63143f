"""A causal language model small enough to check gradients by hand, and episodes to feed it.

Shape suffixes: R rows, T tokens of a row, H hidden, N targets, B rollouts.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from echo_cli.config.objective import ObjectiveSettings
from echo_cli.metrics import Metrics
from echo_cli.objective.advantages import step_advantages
from echo_cli.objective.batch import MicroBatch, count_rollouts, targets
from echo_cli.objective.logprobs import Scores, target_logprobs
from echo_cli.objective.loss import StepTotals, StepWeights, echo_loss, step_totals, step_weights
from echo_cli.objective.selection import target_factors
from echo_cli.trajectory import Role, Segment, Trajectory, Turn

VOCABULARY = 11
PAD_ID = 0

C, A, E, W = Role.CONTEXT, Role.ACTION, Role.ENV_OUTPUT, Role.WARNING


class TinyLM(nn.Module):
    """Embedding → mean over the rollout so far → linear → head. Mixes positions as attention does, so it notices
    padding that leaks, packed neighbours that leak, and the future."""

    def __init__(self, hidden: int = 5, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embedding = nn.Embedding(VOCABULARY, hidden, dtype=torch.float64)
        self.mix = nn.Linear(hidden, hidden, dtype=torch.float64)
        self.lm_head = nn.Linear(hidden, VOCABULARY, bias=False, dtype=torch.float64)

    def forward(self, micro: MicroBatch) -> Tensor:
        """hidden_RTH."""
        rollout_RT = micro.rollout_RT
        same_RTT = (rollout_RT[:, :, None] == rollout_RT[:, None, :]) & (rollout_RT[:, None, :] >= 0)
        weight_RTT = same_RTT.tril().double()
        weight_RTT = weight_RTT / weight_RTT.sum(dim=-1, keepdim=True).clamp(min=1)
        embedded_RTH = self.embedding(micro.token_ids_RT)
        hidden_RTH: Tensor = torch.tanh(self.mix(weight_RTT @ embedded_RTH)) + embedded_RTH
        return hidden_RTH


def episode(
    roles: Sequence[Role],
    *,
    token_ids: Sequence[int] | None = None,
    reward: float | None = 0.0,
    group_id: str = "g",
    world_model_only: bool = False,
    turns: tuple[Turn, ...] = (),
    seed: int = 0,
) -> Trajectory:
    """Return an episode with one segment per token; ids and behaviour logprobs are drawn from `seed` if not given."""
    draw = random.Random(seed)
    ids = token_ids if token_ids is not None else [draw.randrange(VOCABULARY) for _ in roles]
    segments = tuple(
        Segment(role, "", (token_id,), logprobs=(-draw.uniform(0.5, 4.0),) if role is A else None)
        for role, token_id in zip(roles, ids, strict=True)
    )
    return Trajectory("task", group_id, segments, turns, reward, "answered", "policy", world_model_only)


def random_episodes(seed: int, number: int = 5) -> list[Trajectory]:
    """Draw rollouts of two groups, 1 to 12 tokens each, some without actions or observations or world_model_only."""
    draw = random.Random(seed)
    return [
        episode(
            [C, *draw.choices([C, A, A, E, E, W], k=draw.randrange(12))],
            reward=draw.choice([0.0, 0.5, 1.0]),
            group_id=draw.choice("gh"),
            world_model_only=draw.random() < 0.2,
            seed=draw.randrange(1000),
        )
        for _ in range(number)
    ]


def plan_step(
    trajectories: Sequence[Trajectory], settings: ObjectiveSettings, other_ranks: StepTotals | None = None
) -> tuple[Tensor | None, StepWeights]:
    """Return the advantages and weights of a step, which a trainer computes once."""
    factors = target_factors(trajectories, settings)
    counts = count_rollouts(trajectories, settings.selected_roles, use_rl=settings.use_rl, factors=factors)
    totals = step_totals(counts)
    if other_ranks is not None:
        totals = totals + other_ranks
    advantages_B = step_advantages(trajectories, settings.advantage) if settings.use_rl else None
    return advantages_B, step_weights(counts, totals, settings)


def score(model: TinyLM, micro: MicroBatch, settings: ObjectiveSettings, coeff: float, temperature: float) -> Scores:
    wanted = targets(micro, settings.target_roles)
    hidden_NH = wanted.gather(model(micro))
    return target_logprobs(hidden_NH, model.lm_head, wanted, temperature, env_gradient=coeff > 0)


def run_step(
    model: TinyLM,
    micros: Sequence[MicroBatch],
    advantages_B: Tensor | None,
    weights: StepWeights,
    settings: ObjectiveSettings,
    coeff: float,
    temperature: float = 1.0,
    factors: Mapping[int, Sequence[float]] | None = None,
) -> tuple[float, Tensor, list[Metrics]]:
    """Return the loss, the gradient as one flat vector, and the metrics of each micro-batch of a step."""
    model.zero_grad(set_to_none=False)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    total, parts = 0.0, []
    for micro in micros:
        logprobs_N = score(model, micro, settings, coeff, temperature).logprobs_N
        wanted = targets(micro, settings.target_roles).weighted(factors or {})
        reference_N = logprobs_N.detach() - 0.3 if settings.kl_coeff > 0 else None
        loss, metrics = echo_loss(logprobs_N, wanted, advantages_B, weights, settings, coeff, reference_N)
        loss.backward()
        total += float(loss.detach())
        parts.append(metrics)
    return total, flat_gradient(model), parts


def flat_gradient(model: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
