"""A policy whose actions an endpoint samples: its present weights go there, and what comes back is held against them.

Shapes: N sampled tokens, V vocabulary.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from echo_cli.config.model import SamplerConfig
from echo_cli.errors import EchoError
from echo_cli.models.endpoint.client import Completions
from echo_cli.models.endpoint.endpoint import Endpoint
from echo_cli.models.endpoint.sampler import EndpointSampler
from echo_cli.models.endpoint.weight_sync import WeightSync
from echo_cli.models.language_model import LanguageModel
from echo_cli.models.renderer import Renderer
from echo_cli.seeds import derive_seed

# Nats a token, on average: another dtype or kernel is allowed for, another model is not.
_TOLERANCE = 0.1
# What float32 rounds off, below which logprobs are the same.
_ROUNDING = 1e-3
_PROBE_TEXT = "Once there was"
_PROBE_TOKENS = 32


class ServedPolicy:
    """A model at the endpoint of `sampler.kind: openai`.

    Raises:
        EchoError: the URL is none, a variable of its headers is not set, or httpx is not installed.
    """

    def __init__(self, config: SamplerConfig, model: LanguageModel, renderer: Renderer, device: torch.device) -> None:
        assert config.url and config.model and config.weights and config.sync
        self.endpoint = Endpoint(config.url, config.headers, concurrency=config.concurrency, timeout_s=config.timeout_s)
        self._model = model
        self._renderer = renderer
        self._device = device
        self._whole = config.sync == "sglang"
        self._weights = WeightSync(self.endpoint, config.sync, config.model, Path(config.weights), self._write)
        self._synced: int | None = None

    def sampler(self, updates: int, batch: int, temperature: float, seed: int) -> EndpointSampler:
        """A sampler of `batch` sequences from the model as it is now.

        Args:
            updates: how often the model's weights have changed; where that is what it was, the endpoint has them.

        Raises:
            EchoError: the endpoint is not available, refuses the weights, or samples from others (exit code 1).
        """
        pushing = updates != self._synced
        if pushing:
            self._synced = None
            self._weights.push()
        completions = Completions(
            self.endpoint,
            self._weights.served_as,
            self._weights.version,
            temperature,
            frozenset(self._renderer.stop_ids),
            self._model.vocab_size,
            ignore_eos=not self._whole,
        )
        if pushing:
            self._check(completions, derive_seed(seed, "check"))
            self._synced = updates
        return EndpointSampler(completions, batch, seed)

    def _write(self, folder: Path) -> None:
        self._model.save(folder)
        if self._whole:
            self._renderer.tokenizer.save(folder)

    @torch.inference_mode()
    def _check(self, completions: Completions, seed: int) -> None:
        """Compare the logprobs of some sampled tokens with the model's own.

        Raises:
            EchoError: they are those of another distribution.
        """
        renderer, temperature = self._renderer, completions.temperature
        frame = renderer.opening()
        before = [token for segment in frame.before for token in segment.token_ids]
        after = [token for segment in frame.after for token in segment.token_ids]
        prompt = [*renderer.start_ids, *before, *renderer.tokenizer.encode(_PROBE_TEXT), *after]
        unstopped = replace(completions, stop_ids=frozenset())
        token_ids, logprobs = self.endpoint.run(unstopped.sample(prompt, _PROBE_TOKENS, seed))

        ids_1T = torch.tensor([[*prompt, *token_ids]], device=self._device)
        logits_NV = self._model.head(self._model(ids_1T)[0, len(prompt) - 1 : -1]).float()
        chosen_N1 = ids_1T[0, len(prompt) :, None]
        served_N = torch.tensor(logprobs, device=self._device)

        def distance(at: float) -> float:
            own_N = torch.log_softmax(logits_NV / at, dim=-1).gather(1, chosen_N1)[:, 0]
            return float((served_N - own_N).abs().mean())

        off = distance(temperature)
        tip = (
            "start vLLM with --logprobs-mode processed_logprobs; else it serves another model than model.path, has not "
            "loaded sampler.weights, or has another tokenizer: see docs/endpoint.md"
        )
        if off > _ROUNDING and distance(1.0) < off / 2:
            message = f"the endpoint's logprobs are those at temperature 1, and it samples at {temperature:g}"
            raise EchoError(f"{message}: {off:.3f} nats a token off", tip, exit_code=1)
        if not off <= _TOLERANCE:
            message = f"the endpoint's logprobs are {off:.3f} nats a token off the policy's, above {_TOLERANCE:g}"
            raise EchoError(f"{message}: it does not sample from the policy", tip, exit_code=1)
