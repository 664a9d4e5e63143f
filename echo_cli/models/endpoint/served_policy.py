"""Synchronisation of an endpoint with the policy's weights, which it loads by path from a shared folder.

The servers' requests and responses, as of their 2026 sources and issues:

- SGLang: `POST /update_weights_from_disk {"model_path", "weight_version"}` returns `{"success", "message"}`, status 400
  on failure, and drops the prefix cache. Completions then contain `metadata.weight_version`.
- vLLM, started with VLLM_ALLOW_RUNTIME_LORA_UPDATING: `POST /v1/load_lora_adapter {"lora_name", "lora_path"}` and
  `POST /v1/unload_lora_adapter {"lora_name"}` return a line of text, or `{"error": {"message"}}` with an error status.
  `load_inplace` would load under the old name and reuse prefixes cached under the old weights (vllm-project/vllm issue
  42125): therefore every version has its own name.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from echo_cli.config.model import SamplerConfig
from echo_cli.errors import EchoError
from echo_cli.files import TEMPORARY, delete, os_errors, unfinished_beside
from echo_cli.models.endpoint.client import Completions, Endpoint
from echo_cli.models.endpoint.sampler import EndpointSampler
from echo_cli.models.language_model import LanguageModel, SplitModel
from echo_cli.models.renderer import Renderer
from echo_cli.seeds import derive_seed
from echo_cli.symlinks import make_folder

_PREFIX = "echo-weights-"

# Maximum mean difference of logprobs, nats per token: tolerates another dtype or kernel, but not another model.
_TOLERANCE = 0.1
# Rounding error of float32, nats per token; logprobs that differ by less count as equal.
_ROUNDING = 1e-3
_PROBE_TEXT = "Once there was"
_PROBE_TOKENS = 32


class WeightSync:
    """Versions of a policy's weights, each in a new subfolder of `folder`; only the loaded version is kept.

    Args:
        model: name under which the endpoint serves the policy; for vLLM, the prefix of the adapters' names.
        folder: a folder for this run only, at the same path on the endpoint's machine.
        write: writes the model or the adapter into a folder.
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
        self._process = secrets.token_hex(4)  # a resumed run must not reuse its earlier names
        self._count = 0
        self.version = ""
        """Name of the version that the endpoint has loaded; empty before the first `push`."""

    def served_as(self, version: str) -> str:
        """Return the model name in requests for a version."""
        return self._model if self._kind == "sglang" else f"{self._model}-{version}"

    def push(self) -> None:
        """Write the present weights, load them at the endpoint, and delete all other versions.

        Raises:
            EchoError: the folder cannot be written, or the endpoint does not load the weights (exit code 1).
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
            message = f"the new weights did not reach the endpoint, so rollouts would be off-policy: {error}"
            raise EchoError(message, error.tip, exit_code=1) from error
        self.version = version
        with os_errors(self._folder):
            for other in [*self._folder.glob(f"{_PREFIX}*"), *self._folder.glob(f"{TEMPORARY}{_PREFIX}*")]:
                if other != path:
                    delete(other)

    def _write_version(self, version: str) -> Path:
        path = self._folder / version
        unfinished = unfinished_beside(path)
        with os_errors(path):
            make_folder(self._folder)
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
            raise EchoError(self._endpoint.line(f"it answers {said}"), "check the endpoint's log", exit_code=1)

    def _load_adapter(self, path: Path, version: str) -> None:
        if self.version:
            # Unload the old adapter first: a cache of size one evicts it. A restarted server does not have it (404).
            body = {"lora_name": self.served_as(self.version)}
            self._endpoint.run(self._endpoint.post("/v1/unload_lora_adapter", body, missing_ok=True))
        body = {"lora_name": f"{self._model}-{version}", "lora_path": str(path)}
        self._endpoint.run(self._endpoint.post("/v1/load_lora_adapter", body))


class ServedPolicy:
    """The policy at the endpoint of `sampler.kind: openai`.

    Raises:
        EchoError: the URL is invalid, an environment variable of the headers is not set, or httpx is not installed.
    """

    def __init__(self, config: SamplerConfig, model: LanguageModel, renderer: Renderer, device: torch.device) -> None:
        assert config.url and config.model and config.weights and config.sync
        self.endpoint = Endpoint(
            config.url,
            config.headers,
            concurrency=config.concurrency,
            timeout_s=config.timeout_s,
            plain_http=config.grants.plain_http,
        )
        self._model = model
        self._renderer = renderer
        self._device = device
        self._whole = config.sync == "sglang"
        self._weights = WeightSync(self.endpoint, config.sync, config.model, Path(config.weights), self._write)
        self._synced: int | None = None

    def synced(self, updates: int, temperature: float, seed: int) -> str:
        """Give the endpoint the model's present weights, and return the name of their version.

        Args:
            updates: number of changes of the model's weights so far; if it is unchanged, nothing is synced.

        Raises:
            EchoError: the endpoint is not available, refuses the weights, or samples from other weights (exit code 1).
        """
        if updates != self._synced:
            self._synced = None
            self._weights.push()
            self._check(self._completions(self._weights.version, temperature), derive_seed(seed, "check"))
            self._synced = updates
        return self._weights.version

    def sampler(self, version: str, rollouts: Sequence[int], temperature: float, seed: int) -> EndpointSampler:
        """Return a sampler of `rollouts`, a sequence each, from a version of the weights (`synced`)."""
        return EndpointSampler(self._completions(version, temperature), rollouts, seed)

    def _completions(self, version: str, temperature: float) -> Completions:
        return Completions(
            self.endpoint,
            self._weights.served_as(version),
            version,
            temperature,
            frozenset(self._renderer.stop_ids),
            self._model.vocab_size,
            ignore_eos=not self._whole,
        )

    def _write(self, folder: Path) -> None:
        # The first rank writes alone: `save` of a split model is a collective, and writes parts.
        self._model.export(folder) if isinstance(self._model, SplitModel) else self._model.save(folder)
        if self._whole:
            self._renderer.tokenizer.save(folder)

    @torch.inference_mode()
    def _check(self, completions: Completions, seed: int) -> None:
        """Compare the logprobs of `_PROBE_TOKENS` sampled tokens with the model's own.

        Raises:
            EchoError: the endpoint samples from another distribution (exit code 1).
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
            "start vLLM with --logprobs-mode processed_logprobs; otherwise check that it serves model.path with the "
            "same tokenizer and has loaded sampler.weights: see docs/endpoint.md"
        )
        if off > _ROUNDING and distance(1.0) < off / 2:
            message = f"the endpoint samples at temperature {temperature:g} but returns logprobs at temperature 1"
            raise EchoError(f"{message}: they are off by {off:.3f} nats per token", tip, exit_code=1)
        if not off <= _TOLERANCE:
            message = f"the endpoint's logprobs differ from the policy's by {off:.3f} nats per token"
            raise EchoError(
                f"{message}, more than {_TOLERANCE:g}: it does not sample from the policy", tip, exit_code=1
            )
