"""The policy's weights at an endpoint: written to a folder that both see, then loaded there by path.

What the servers take and answer, by their sources and issues of 2026:

- SGLang: `POST /update_weights_from_disk {"model_path", "weight_version"}` answers `{"success", "message"}`, 400 where
  it failed, and drops its prefix cache. Completions then carry `metadata.weight_version`.
- vLLM, started with VLLM_ALLOW_RUNTIME_LORA_UPDATING: `POST /v1/load_lora_adapter {"lora_name", "lora_path"}` and
  `POST /v1/unload_lora_adapter {"lora_name"}` answer a line of text, or `{"error": {"message"}}` with its status.
  `load_inplace` would load under the old name, and with it go on with prefixes cached under the old weights
  (vllm-project/vllm issue 42125): so every version has a name of its own.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from echo_cli.config.model import SamplerConfig
from echo_cli.errors import EchoError
from echo_cli.files import TEMPORARY, delete, os_errors
from echo_cli.models.endpoint.client import Completions, Endpoint
from echo_cli.models.endpoint.sampler import EndpointSampler
from echo_cli.models.language_model import LanguageModel
from echo_cli.models.renderer import Renderer
from echo_cli.seeds import derive_seed

_PREFIX = "echo-weights-"

# Nats a token, on average: another dtype or kernel is allowed for, another model is not.
_TOLERANCE = 0.1
# What float32 rounds off, below which logprobs are the same.
_ROUNDING = 1e-3
_PROBE_TEXT = "Once there was"
_PROBE_TOKENS = 32


class WeightSync:
    """Versions of a policy's weights, each in a fresh folder below `folder`, where only the loaded one stays.

    Args:
        model: what the endpoint serves the policy under; of vLLM, what the names of the adapters begin with.
        folder: of this run alone, at the same path for the endpoint.
        write: writes the model, or the adapter, into a folder.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        kind: Literal["sglang", "vllm-lora"],
        model: str,
        folder: Path,
        write: Callable[[Path], None],
    ) -> None:
        self._endpoint = endpoint
        self._kind = kind
        self._model = model
        self._folder = folder.absolute()
        self._write = write
        self._process = secrets.token_hex(4)  # a run that is resumed must not meet its own names of before
        self._count = 0
        self.version = ""
        """What the endpoint has loaded; empty before the first `push`."""

    @property
    def served_as(self) -> str:
        """The model that a request has to name for the version that was pushed last."""
        return self._model if self._kind == "sglang" else f"{self._model}-{self.version}"

    def push(self) -> None:
        """Write the present weights, have the endpoint load them, and delete every other version.

        Raises:
            EchoError: the folder cannot be written, or the endpoint does not load it (exit code 1).
        """
        version = f"{_PREFIX}{self._process}-{self._count}"
        self._count += 1
        path = self._write_version(version)
        try:
            if self._kind == "sglang":
                self._load_model(path, version)
            else:
                self._load_adapter(path, version)
        except EchoError as error:
            delete(path)
            message = (
                f"the new weights did not reach the endpoint, and with the old ones rollouts are off-policy: {error}"
            )
            raise EchoError(message, error.tip, exit_code=1) from error
        self.version = version
        with os_errors(self._folder):
            for other in [*self._folder.glob(f"{_PREFIX}*"), *self._folder.glob(f"{TEMPORARY}{_PREFIX}*")]:
                if other != path:
                    delete(other)

    def _write_version(self, version: str) -> Path:
        path = self._folder / version
        unfinished = self._folder / f"{TEMPORARY}{version}"
        with os_errors(path):
            self._folder.mkdir(parents=True, exist_ok=True)
            unfinished.mkdir()
            try:
                self._write(unfinished)
                unfinished.rename(path)
            except BaseException:
                delete(unfinished)
                raise
        return path

    def _load_model(self, path: Path, version: str) -> None:
        body = {"model_path": str(path), "weight_version": version}
        text = self._endpoint.run(self._endpoint.post("/update_weights_from_disk", body))
        try:
            answer = json.loads(text)
        except ValueError:
            answer = None
        if not isinstance(answer, dict) or answer.get("success") is not True:
            said = answer.get("message", text) if isinstance(answer, dict) else text
            raise EchoError(self._endpoint.line(f"it answers {said}"), "look at the endpoint's log", exit_code=1)

    def _load_adapter(self, path: Path, version: str) -> None:
        if self.version:
            # Before the new one, which would push it out of a cache of one; a server started anew has never had it.
            body = {"lora_name": self.served_as}
            self._endpoint.run(self._endpoint.post("/v1/unload_lora_adapter", body, missing_ok=True))
        body = {"lora_name": f"{self._model}-{version}", "lora_path": str(path)}
        self._endpoint.run(self._endpoint.post("/v1/load_lora_adapter", body))


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
