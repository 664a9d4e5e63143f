"""The `backend` section of a config: what holds the policy's weights, and what a Tinker service cannot carry."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PrivateAttr, model_validator

from echo_cli.config.episodes.rollout import RolloutConfig
from echo_cli.config.model import ModelConfig, SamplerConfig
from echo_cli.config.objective import ObjectiveSettings
from echo_cli.config.section import NO_GRANTS, FreeOnResume, Grants, Positive, Seconds, Section, is_secret
from echo_cli.errors import EchoError

SERVICE_ALPHA = 32.0
"""LoRA's alpha at every Tinker service; the protocol has no field for it."""

_URL = r"^https?://[^\s/]+\S*$"


class BackendConfig(Section):
    """Where the policy's weights are.

    - `torch`: in this process.
    - `tinker`: at the service at `url`, which samples the actions and trains a LoRA adapter by the Tinker protocol.
    """

    _grants: Grants = PrivateAttr(default=NO_GRANTS)
    """Permissions of this command line; see `Config.granted`."""
    kind: Literal["torch", "tinker"] = "torch"
    url: FreeOnResume[Annotated[str, Field(pattern=_URL)] | None] = None
    base_model: str | None = None
    """Name of the base model at the service; null: `model.path` if the service has it, else its only model."""
    lora_rank: Positive | None = None
    """Rank of the adapter; null: `model.lora.rank`."""
    reduction: FreeOnResume[Literal["auto", "sum", "sequence_mean"]] = "auto"
    """How the service reduces the losses of tokens; `auto` measures it before the first step."""
    api_key_env: FreeOnResume[Annotated[str, Field(pattern=r"^\w+$")] | None] = None
    """Environment variable with the API key; null sends none."""
    timeout_s: FreeOnResume[Seconds] = 600.0
    """Maximum wait for one request, seconds."""

    def rank(self, model: ModelConfig) -> int:
        """Return the rank of the adapter that the service trains."""
        assert self.lora_rank or model.lora
        return self.lora_rank or (0 if model.lora is None else model.lora.rank)

    @property
    def grants(self) -> Grants:
        return self._grants

    def granted(self, grants: Grants) -> BackendConfig:
        """Return the section with permissions of this command line."""
        section = self.model_copy()
        section._grants = grants
        return section

    @model_validator(mode="after")
    def _of_its_kind(self) -> BackendConfig:
        if self.kind == "torch":
            for name, field in type(self).model_fields.items():
                if name != "kind" and getattr(self, name) != field.default:
                    raise EchoError(f"backend.{name} has no effect with backend.kind: torch", "set backend.kind=tinker")
            return self
        if self.url is None:
            raise EchoError(
                "backend.kind is tinker and backend.url is missing", "set it, such as http://127.0.0.1:8000"
            )
        if is_secret("", self.url):
            raise EchoError("backend.url contains credentials", "name their variable in backend.api_key_env")
        return self


def check_service(
    service: BackendConfig,
    model: ModelConfig,
    sampler: SamplerConfig,
    objective: ObjectiveSettings,
    rollout: RolloutConfig,
    *,
    distributed: bool,
    probe_every: int,
) -> None:
    """Reject the settings of a run that the Tinker protocol cannot carry.

    Args:
        distributed: whether the section of that name is set.

    Raises:
        EchoError: a setting needs a model, a term, a measurement or a sampler that a service does not have.
    """
    if model.kind != "hf":
        raise EchoError(
            "backend.kind is tinker and model.kind is tiny, which no service has",
            "set model.kind=hf, and model.path to a folder or hub id with the tokenizer of the service's model",
        )
    _check_adapter(service, model)
    if objective.use_rl and rollout.temperature != 1:
        raise EchoError(
            f"rollout.temperature is {rollout.temperature:g}, and a Tinker service computes logprobs at temperature 1",
            "set rollout.temperature=1, or backend.kind=torch",
        )
    is_set = {
        "model.init: scratch": model.init == "scratch",
        "model.compile": model.compile,
        "sampler.kind: openai": sampler.kind == "openai",
        "distributed": distributed,
        "objective.kl_coeff": objective.kl_coeff > 0,
        f"objective.clip_high below {_LEAST_CLIP:g}": (
            objective.surrogate == "clipped" and objective.clip_high < _LEAST_CLIP
        ),
        "objective.schedule: gradient_ratio": objective.schedule == "gradient_ratio",
        "probe_every": probe_every > 0,
    }
    for name, (why, tip) in _IMPOSSIBLE.items():
        if is_set[name]:
            raise EchoError(f"{name} is not possible with backend.kind: tinker: {why}", tip)


def _check_adapter(service: BackendConfig, model: ModelConfig) -> None:
    """Reject full weights, two ranks, and layers chosen by name."""
    rank, lora = service.lora_rank, model.lora
    if lora is None and rank is None:
        raise EchoError(
            "backend.kind is tinker and model.lora is null: a Tinker service trains adapters, not full weights",
            "set backend.lora_rank, such as 16",
        )
    if lora is not None and rank not in (None, lora.rank):
        raise EchoError(f"backend.lora_rank is {rank} and model.lora.rank is {lora.rank}", "set one of them")
    if lora is not None and lora.targets:
        raise EchoError(
            "model.lora.targets is not possible with backend.kind: tinker: the protocol cannot name layers",
            "set model.lora.targets=[], which is every linear layer but the head",
        )


_LEAST_CLIP = 0.01
_NO_GRADIENT = "a service returns no gradients to compare"
_IMPOSSIBLE = {
    "model.init: scratch": ("the service has the weights", "set model.init=pretrained"),
    "model.compile": ("the service computes the model", "set model.compile=false"),
    "sampler.kind: openai": ("the service samples", "set sampler.kind=torch, the default"),
    "distributed": ("one process sends the requests", "set distributed=null: the service divides the work"),
    "objective.kl_coeff": (
        "the service keeps no reference weights",
        "set objective.kl_coeff=0, or backend.kind=torch",
    ),
    f"objective.clip_high below {_LEAST_CLIP:g}": (
        "it would clip observations, whose ratio is 1 up to the service's rounding",
        "set a higher objective.clip_high, or objective.surrogate=reinforce",
    ),
    "objective.schedule: gradient_ratio": (_NO_GRADIENT, "set another objective.schedule, or backend.kind=torch"),
    "probe_every": (_NO_GRADIENT, "set probe_every=0, or backend.kind=torch"),
}
"""Settings without a counterpart in the protocol: the reason, and a tip."""
