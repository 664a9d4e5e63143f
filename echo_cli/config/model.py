"""The policy's sections of a config: `model`, `conversation` and `sampler`."""

from __future__ import annotations

import os.path
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, PrivateAttr, model_validator

from echo_cli.config.section import (
    NO_GRANTS,
    AbsolutePath,
    FreeOnResume,
    Grants,
    Headers,
    PathText,
    Positive,
    PositiveFloat,
    Seconds,
    Section,
    absolute,
    refuse_credentials,
)
from echo_cli.errors import EchoError

TINY_BASE, TINY_MACHINE = BUILT_IN = ("tiny-base", "tiny-machine")
"""A `model.path`: the models that the package contains, for toy worlds of files and for machines."""
RANDOM_QWEN3 = "random-qwen3"
"""A `model.path`: a small Qwen3 with random weights and its own tokenizer, created on demand."""


_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def is_hub_id(path: str) -> bool:
    """Return whether `path` can only be a hub id: it has the form of one, and is no path that exists in part."""
    local = Path(path).expanduser()
    is_local = path in (*BUILT_IN, RANDOM_QWEN3) or local.exists() or (len(local.parts) > 1 and local.parent.is_dir())
    return not is_local and _HUB_ID.fullmatch(path) is not None


def _name_or_folder(path: str) -> str:
    """Return the path of an existing folder as an absolute path, and any other text, such as a hub id, as it is."""
    named = path in (*BUILT_IN, RANDOM_QWEN3) or not os.path.isdir(os.path.expanduser(path))
    return path if named else absolute(path)


Fetch = Literal["never", "named", "all"]
"""Models to fetch from the hub: none, the config's own, or also the base that an adapter's folder names."""


class LoraConfig(Section):
    """Low-rank adapters on frozen weights (Hu et al. 2021, arXiv 2106.09685), without dropout.

    `targets` are names of linear layers, such as q_proj; empty means all linear layers except the LM head.
    """

    rank: Positive = 16
    alpha: PositiveFloat = 32.0
    targets: tuple[str, ...] = ()


class ModelConfig(Section):
    """The policy's model.

    `kind: tiny` is the built-in model; `path` is `tiny-base`, `tiny-machine` or a folder in the same format.
    `kind: hf` is a Hugging Face causal LM; `path` is a folder, a hub id or `random-qwen3`. All keys other than `kind`,
    `path` and `init` apply only to `hf`.
    `init: scratch` uses the architecture and the tokenizer of `path` with random weights.
    """

    kind: Literal["tiny", "hf"] = "tiny"
    path: Annotated[PathText, AfterValidator(_name_or_folder)] = TINY_BASE
    init: Literal["pretrained", "scratch"] = "pretrained"
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    trust_remote_code: FreeOnResume[bool] = False
    """Whether to run Python code shipped with the model; only the command line sets it, in a file it has no effect."""
    fetch: FreeOnResume[Fetch] = Field(default="never", exclude=True)
    """Models that may be fetched from the hub; only the command line sets it, and no run records it."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Data type of matrix products. Trained weights and their optimizer state are float32."""
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    gradient_checkpointing: FreeOnResume[bool] = False
    compile: bool = False
    chat_template: AbsolutePath | None = None
    """Jinja file that replaces the model's chat template."""
    lora: LoraConfig | None = None

    def fetchable(self) -> ModelConfig:
        """Return the model with leave to fetch it if it is on the hub."""
        named = self.kind == "hf" and self.fetch == "never"
        return self.model_copy(update={"fetch": "named"}) if named else self

    @model_validator(mode="after")
    def _of_its_kind(self) -> ModelConfig:
        if self.kind == "hf" and self.path in BUILT_IN:
            raise EchoError(f"model.kind is hf and model.path is {self.path}", "set model.path to a folder or a hub id")
        if self.kind == "tiny" and self.path == RANDOM_QWEN3:
            raise EchoError(f"model.path is {RANDOM_QWEN3} and model.kind is tiny", "set model.kind=hf")
        if self.kind == "tiny":
            for name in type(self).model_fields.keys() - {"kind", "path", "init"}:
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise EchoError(f"model.{name} has no effect with model.kind: tiny", "it applies only to kind hf")
        return self


class ConversationConfig(Section):
    """Chat format of an episode (`model.kind: hf`).

    - `renderer`: `auto` selects the family of the model's chat template; `plain` uses no template, for base models.
    - `system`: system message; null means the template's default, or no system message if it has none.
    - `reply_as`: message role of the environment's output. `auto` is the family's role for tool output.
    - `thinking`: `keep` leaves thinking in the transcript; `drop` removes it from the context of later turns; `forbid`
      starts each action with an empty thinking block if the template knows thinking, and an action that contains a
      thinking tag is invalid.
    """

    renderer: Literal["auto", "chatml", "llama3", "plain"] = "auto"
    system: str | None = None
    reply_as: Literal["auto", "tool", "user"] = "auto"
    thinking: Literal["keep", "drop", "forbid"] = "keep"

    @model_validator(mode="after")
    def _has_turns(self) -> ConversationConfig:
        if self.renderer == "plain":
            for name in ("system", "reply_as", "thinking"):
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise EchoError(
                        f"conversation.{name} has no effect with conversation.renderer: plain",
                        "it applies only to chat models",
                    )
        return self


class SamplerConfig(Section):
    """The sampler of the policy's actions.

    - `torch`: this process, with a KV cache that persists across turns.
    - `openai`: a vLLM or SGLang endpoint at `url` that returns token ids and logprobs. After every optimizer step the
      weights are written to `weights`, a folder that both processes can read, and `sync` selects how the endpoint
      loads them.
    """

    _grants: Grants = PrivateAttr(default=NO_GRANTS)
    """Permissions of this command line; see `Config.granted`."""
    kind: Literal["torch", "openai"] = "torch"
    refill: Annotated[float, Field(gt=0, le=1)] = 0.25
    """Fraction of a batch that must finish before the environments are stepped (torch, model kind hf)."""
    prefill_tokens: FreeOnResume[Positive] = 16_384
    """Size of one prefill forward pass, tokens including padding (torch, model kind hf)."""
    url: FreeOnResume[Annotated[str, Field(pattern=r"^https?://[^\s/]+\S*$")] | None] = None
    model: FreeOnResume[str | None] = None
    """Name under which the endpoint serves the policy (openai)."""
    headers: FreeOnResume[Headers] = Field(default={})
    """HTTP headers (openai); values refer to environment variables as `${NAME}`, also when stored."""
    sync: Literal["sglang", "vllm-lora"] | None = None
    weights: FreeOnResume[AbsolutePath | None] = None
    concurrency: FreeOnResume[Positive] = 64
    timeout_s: FreeOnResume[Seconds] = 600.0

    @property
    def grants(self) -> Grants:
        return self._grants

    def granted(self, grants: Grants) -> SamplerConfig:
        """Return the section with permissions of this command line."""
        section = self.model_copy()
        section._grants = grants
        return section

    @model_validator(mode="after")
    def _endpoint(self) -> SamplerConfig:
        refuse_credentials("sampler.url", self.url)
        needed = ("url", "model", "sync", "weights")
        if self.kind == "torch":
            for name in (*needed, "headers", "concurrency", "timeout_s"):
                if getattr(self, name) != type(self).model_fields[name].get_default():
                    raise EchoError(
                        f"sampler.{name} has no effect with sampler.kind: torch", "it applies only to kind openai"
                    )
            return self
        if self.sync is None:
            raise EchoError(
                "sampler.sync is missing: the endpoint would keep its initial weights, and every rollout from the "
                "second step on would be off-policy",
                "set sampler.sync=sglang, or vllm-lora for a LoRA run; sampler.kind=torch needs no endpoint",
            )
        for name in needed:
            if getattr(self, name) is None:
                raise EchoError(f"sampler.kind is openai and sampler.{name} is missing", "set it")
        return self


class DistributedConfig(Section):
    """How the ranks that torchrun starts share the model.

    `strategy` is `ddp` (a copy of the model on every rank), `fsdp` (weights, gradients and optimizer state split over
    the ranks), or `auto`, which splits the model only if a copy does not fit a rank's memory, as predicted.
    """

    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
