"""A straightforward step: the transcript is encoded again at each turn, with full logits and a padded batch.

Shapes: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from echo_cli.models.hf.kv_cache import cache_argument
from echo_cli.models.sampler import Sample
from echo_cli.objective.advantages import step_advantages
from echo_cli.trajectory import Role, Trajectory
from lm_benchmark.workload import COEFF, SETTINGS, Script, Workload


class Reference:
    """A `transformers` causal LM with AdamW."""

    def __init__(
        self,
        causal_lm: Any,
        played: Sequence[Script],
        trajectories: Sequence[Trajectory],
        workload: Workload,
        rows: int,
        device: torch.device,
    ) -> None:
        self._lm = causal_lm.to(device)
        self._played, self._trajectories, self._workload, self._rows = played, trajectories, workload, rows
        self._device = device
        self._generator = torch.Generator(device).manual_seed(0)
        self._optimizer = torch.optim.AdamW(causal_lm.parameters(), lr=0.0, fused=True)

    def rollout(self) -> None:
        """Play the episodes in batches of `workload.sessions`, each to its end."""
        for start in range(0, len(self._played), self._workload.sessions):
            batch = self._played[start : start + self._workload.sessions]
            play(self._lm, batch, self._workload, self._generator)

    def forward_backward(self) -> float:
        """Accumulate the gradient of the step's loss, `rows` rollouts at a time, and return the loss."""
        advantages_B = step_advantages(self._trajectories, SETTINGS.advantage).tolist()
        total = 0.0
        for start in range(0, len(self._trajectories), self._rows):
            rows = slice(start, start + self._rows)
            loss = step_loss(self._lm, self._trajectories[rows], advantages_B[rows]) / len(self._trajectories)
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        return total

    def optim_step(self) -> float:
        norm = float(torch.nn.utils.clip_grad_norm_(self._lm.parameters(), 1.0))
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return norm

    def parameters(self) -> int:
        """Return the number of trained parameters, each of which has a gradient."""
        return sum(part.numel() for part in self._lm.parameters() if part.requires_grad)


@torch.inference_mode()
def play(
    causal_lm: Any, played: Sequence[Script], workload: Workload, generator: torch.Generator
) -> list[list[Sample]]:
    """Sample the actions of each episode, with a new cache per action."""
    transcripts: list[list[int]] = [[] for _ in played]
    samples: list[list[Sample]] = [[] for _ in played]
    for turn in range(max(len(script.replies) for script in played)):
        unfinished = [episode for episode, script in enumerate(played) if turn < len(script.replies)]
        for episode in unfinished:
            transcripts[episode] += played[episode].follows(turn)
        prompts = [transcripts[episode] for episode in unfinished]
        for episode, sample in zip(unfinished, _generate(causal_lm, prompts, workload.action, generator), strict=True):
            transcripts[episode] += sample[0]
            samples[episode].append(sample)
    return samples


def _generate(causal_lm: Any, prompts: Sequence[Sequence[int]], count: int, generator: torch.Generator) -> list[Sample]:
    width = max(map(len, prompts))
    device = generator.device
    ids_BT = torch.tensor([[*[0] * (width - len(prompt)), *prompt] for prompt in prompts], device=device)
    mask_BT = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    chosen: list[Tensor] = []
    logprobs: list[Tensor] = []
    name, cache = cache_argument(causal_lm), None
    for _ in range(count):
        positions_BT = (mask_BT.cumsum(dim=-1) - 1).clamp(min=0)[:, -ids_BT.shape[1] :]
        out = causal_lm(
            input_ids=ids_BT,
            attention_mask=mask_BT,
            position_ids=positions_BT,
            use_cache=True,
            logits_to_keep=1,
            **{name: cache},
        )
        cache = getattr(out, name)
        logprobs_BV = out.logits[:, -1].float().log_softmax(dim=-1)
        ids_BT = torch.multinomial(logprobs_BV.exp(), 1, generator=generator)
        mask_BT = torch.cat([mask_BT, torch.ones_like(ids_BT)], dim=1)
        chosen.append(ids_BT)
        logprobs.append(logprobs_BV.gather(1, ids_BT))
    ids, values = torch.cat(chosen, dim=1).tolist(), torch.cat(logprobs, dim=1).tolist()
    return list(zip(ids, values, strict=True))


def step_loss(causal_lm: Any, rollouts: Sequence[Trajectory], advantages: Sequence[float]) -> Tensor:
    """Return the loss summed over rollouts: GRPO's surrogate, mean over actions, + λ · CE, mean over observations.

    An independent implementation of the objective, from float32 logits [B, T, V] and masks.
    """
    device = next(causal_lm.parameters()).device
    width = max(map(len, rollouts))
    ids_BT = torch.zeros(len(rollouts), width, dtype=torch.int64)
    behaviour_BT = torch.zeros(len(rollouts), width)
    action_BT, observation_BT = torch.zeros(len(rollouts), width), torch.zeros(len(rollouts), width)
    for row, rollout in enumerate(rollouts):
        roles = torch.tensor(rollout.roles)
        ids_BT[row, : len(rollout)] = torch.tensor(rollout.token_ids)
        action_BT[row, : len(rollout)] = (roles == Role.ACTION).float()
        observation_BT[row, : len(rollout)] = (roles == Role.ENV_OUTPUT).float()
        behaviour = [value for s in rollout.segments for value in s.logprobs or (0.0,) * len(s.token_ids)]
        behaviour_BT[row, : len(rollout)] = torch.tensor(behaviour)
    ids_BT, behaviour_BT = ids_BT.to(device), behaviour_BT.to(device)
    action_BT, observation_BT = action_BT.to(device)[:, 1:], observation_BT.to(device)[:, 1:]

    logits_BTV = causal_lm(input_ids=ids_BT, use_cache=False).logits.float()
    logprobs_BT = logits_BTV[:, :-1].log_softmax(dim=-1).gather(-1, ids_BT[:, 1:, None])[..., 0]
    ratio_BT = (logprobs_BT - behaviour_BT[:, 1:]).exp()
    clipped_BT = ratio_BT.clamp(1 - SETTINGS.clip_low, 1 + SETTINGS.clip_high)
    advantage_B1 = torch.tensor(advantages, device=device, dtype=torch.float32)[:, None]
    surrogate_BT = -torch.minimum(ratio_BT * advantage_B1, clipped_BT * advantage_B1)
    rl_B = (torch.where(action_BT > 0, surrogate_BT, 0.0)).sum(-1) / action_BT.sum(-1)
    env_B = -(logprobs_BT * observation_BT).sum(-1) / observation_BT.sum(-1)
    loss: Tensor = (rl_B + COEFF * env_B).sum()
    return loss
