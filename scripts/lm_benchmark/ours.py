"""Our step: `CachedSampler` over a model's KV cache, and `TorchPolicy`'s update."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import torch

from echo_cli.config.model import RANDOM_QWEN3, LoraConfig, ModelConfig, SamplerConfig
from echo_cli.config.schema import OptimConfig
from echo_cli.models.hf.lora import add_adapter
from echo_cli.models.hf.model import HfModel
from echo_cli.models.language_model import LanguageModel
from echo_cli.models.policy import TorchPolicy
from echo_cli.models.renderer import Renderer
from echo_cli.models.sampler import CachedSampler, Sample
from echo_cli.objective.step import weigh_step
from echo_cli.trajectory import Trajectory
from lm_benchmark.workload import COEFF, SETTINGS, Script, Workload


def language_model(
    causal_lm: Any,
    dtype: torch.dtype = torch.float32,
    *,
    lora: bool = False,
    gradient_checkpointing: bool = False,
) -> LanguageModel:
    """Wrap a `transformers` causal LM for the policy: trained whole, or frozen in `dtype` beside an adapter."""
    adapter = LoraConfig() if lora else None
    settings = ModelConfig(kind="hf", path=RANDOM_QWEN3, lora=adapter, gradient_checkpointing=gradient_checkpointing)
    if adapter is not None:
        causal_lm = add_adapter(causal_lm.to(dtype), adapter, RANDOM_QWEN3, seed=0)
    return HfModel(causal_lm, settings, dtype)


class Ours:
    """Contender: a policy, the step's rollouts, and the episodes to play."""

    def __init__(
        self,
        model: LanguageModel,
        played: Sequence[Script],
        trajectories: Sequence[Trajectory],
        workload: Workload,
        token_budget: int,
        device: torch.device,
    ) -> None:
        # The attributes of a renderer that a policy uses here: no text is rendered or parsed.
        bare = SimpleNamespace(tokenizer=SimpleNamespace(pad_id=0), stop_ids=())
        optim = OptimConfig(token_budget=token_budget)
        self.policy = TorchPolicy(model, cast(Renderer, bare), optim, device)
        self._played, self._trajectories, self._workload = played, trajectories, workload

    def rollout(self) -> None:
        """Play the episodes."""
        play(self.policy.model, self._played, self._workload, seed=0)

    def forward_backward(self, coeff: float = COEFF) -> float:
        """Accumulate the gradient of the step's loss and return the loss."""
        step = weigh_step(self._trajectories, SETTINGS, coeff, temperature=1.0)
        return self.policy.forward_backward(step)["loss"].total

    def optim_step(self) -> float:
        """Run AdamW with learning rate 0, which is full work on unchanged weights; return the gradient norm."""
        return self.policy.optim_step(lr=0.0)

    def parameters(self) -> int:
        """Return the number of trained parameters, each of which has a gradient."""
        return sum(part.numel() for part in self.policy.model.parameters() if part.requires_grad)


def play(model: LanguageModel, played: Sequence[Script], workload: Workload, seed: int) -> list[list[Sample]]:
    """Sample the actions of each episode: finished episodes leave the batch, waiting ones join, the cache is kept."""
    samples: list[list[Sample]] = [[] for _ in played]
    waiting, seated = deque(range(len(played))), list[int]()
    limits = SamplerConfig()
    sampler = None
    while waiting or seated:
        joining = [waiting.popleft() for _ in range(min(len(waiting), workload.sessions - len(seated)))]
        if sampler is None:
            sampler = CachedSampler(model, joining, 1.0, (), seed, limits.refill, limits.prefill_tokens)
        else:
            sampler.add(joining)
        seated += joining
        sampler.append([played[episode].follows(len(samples[episode])) for episode in seated])
        for episode, sample in zip(seated, sampler.sample(workload.action), strict=True):
            assert sample is not None  # without stop tokens all rows end together
            samples[episode].append(sample)
        staying = [row for row, episode in enumerate(seated) if len(samples[episode]) < len(played[episode].replies)]
        sampler.keep(staying)
        seated = [seated[row] for row in staying]
    return samples
