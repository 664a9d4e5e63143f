"""The ECHO loss of recorded rollouts, computed from their JSON with torch and transformers alone.

Nothing of echo_cli is imported, and rollouts are neither batched nor padded. The settings are those of the shipped
`toy-files` config: group-normalised advantages, the clipped surrogate, a KL penalty, and token means over the step for
both terms.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

Record = dict[str, Any]
LOW, HIGH = 0.2, 0.28
"""Distances of the ratio's clips from 1, below and above."""
KL_COEFF = 0.1
"""Weight of the KL penalty to the reference."""


@dataclass(frozen=True)
class Loss:
    """Terms of the loss, nats, and the log-probabilities of the actions, by rollout."""

    total: Tensor
    rl: float
    env_ce: float
    action_logprobs: Sequence[Tensor]


def read_step(path: Path, step: int) -> list[Record]:
    """Return the rollouts of a step from rollouts.jsonl."""
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [record for record in records if record["meta"]["step"] == step]


def echo_loss(
    model: nn.Module, records: Sequence[Record], coeff: float, temperature: float, reference: nn.Module | None = None
) -> Loss:
    """Return L = RL term + λ · env term with one forward pass per rollout; `coeff` is λ.

    Args:
        reference: initial policy, to which the KL penalty refers; None if it is the `model`.
    """
    advantages = _advantages(records)
    surrogates: list[Tensor] = []
    env_losses: list[Tensor] = []
    sampled: list[Tensor] = []
    for number, record in enumerate(records):
        ids = [token for segment in record["segments"] for token in segment["token_ids"]]
        logits_TV = model(torch.tensor([ids])).logits[0].float()
        actions_n, outputs_n = (_positions(record, role) for role in ("action", "env_output"))
        env_losses.append(-_logprobs(logits_TV, ids, outputs_n, 1.0))
        if record["source"] != "policy":
            continue
        logprobs_n = _logprobs(logits_TV, ids, actions_n, temperature)
        sampled.append(logprobs_n.detach())
        ratio_n = (logprobs_n - torch.tensor(behaviour_logprobs(record))).exp()
        advantage = advantages[number]
        surrogate_n = -torch.minimum(ratio_n * advantage, ratio_n.clamp(1 - LOW, 1 + HIGH) * advantage)
        if reference is not None:
            with torch.no_grad():
                reference_TV = reference(torch.tensor([ids])).logits[0].float()
            difference_n = _logprobs(reference_TV, ids, actions_n, temperature) - logprobs_n
            surrogate_n = surrogate_n + KL_COEFF * (difference_n.exp() - difference_n - 1)
        surrogates.append(surrogate_n)
    rl, env = torch.cat(surrogates).mean(), torch.cat(env_losses).mean()
    return Loss(rl + coeff * env, float(rl.detach()), float(env.detach()), sampled)


def behaviour_logprobs(record: Record) -> list[float]:
    """Return the logprobs with which a rollout's actions were sampled."""
    return [x for segment in record["segments"] if segment["role"] == "action" for x in segment["logprobs"]]


def gradients(parameters: Iterable[tuple[str, nn.Parameter]]) -> dict[str, Tensor]:
    """Return the gradient of each trained parameter by name, from the adapter's own prefix on."""
    trained = ((name, parameter) for name, parameter in parameters if parameter.requires_grad)
    return {
        name[name.index("base_model.") :]: parameter.grad for name, parameter in trained if parameter.grad is not None
    }


def _positions(record: Record, role: str) -> Tensor:
    """Return the indices of the tokens of a role."""
    roles = [segment["role"] for segment in record["segments"] for _ in segment["token_ids"]]
    return torch.tensor([index for index, each in enumerate(roles) if each == role], dtype=torch.long)


def _logprobs(logits_TV: Tensor, ids: Sequence[int], positions_n: Tensor, temperature: float) -> Tensor:
    """Return log p of the tokens at `positions_n`, each given the tokens before it."""
    chosen_n1 = torch.tensor(ids)[positions_n, None]
    return torch.log_softmax(logits_TV[positions_n - 1] / temperature, dim=-1).gather(1, chosen_n1)[:, 0]


def _advantages(records: Sequence[Record]) -> list[float]:
    """Return (reward - mean) / standard deviation within each group of the policy's rollouts; 0 if all are equal."""
    found = []
    for record in records:
        group = [
            float(other["reward"])
            for other in records
            if other["source"] == "policy" and other["group_id"] == record["group_id"]
        ]
        if record["source"] != "policy" or len(set(group)) == 1:
            found.append(0.0)
            continue
        mean = sum(group) / len(group)
        deviation = (sum((reward - mean) ** 2 for reward in group) / (len(group) - 1)) ** 0.5
        found.append((record["reward"] - mean) / (deviation + 1e-6))
    return found
