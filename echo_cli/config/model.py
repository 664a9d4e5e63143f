"""The sections of a config about the policy: its model, how conversations are written for it, and who samples."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from echo_cli.config.section import FreeOnResume, Headers, PathText, Positive, PositiveFloat, Seconds, Section
from echo_cli.errors import EchoError

RANDOM_QWEN3 = "random-qwen3"
"""A `model.path`: a small Qwen3 of random weights with a tokenizer of its own, made on the spot."""


class LoraConfig(Section):
    """Low-rank adapters beside frozen weights (Hu et al. 2021, arXiv 2106.09685), without dropout.

    `targets` are names of linear layers, such as q_proj; empty means all of them but the LM head.
    """

    rank: Positive = 16
    alpha: PositiveFloat = 32.0
    targets: tuple[str, ...] = ()


class ModelConfig(Section):
    """`kind: tiny` is the built-in model: `path` is `tiny-base` or a folder of its own form.

    `kind: hf` is a causal LM of Hugging Face: `path` is a folder, a hub id or `random-qwen3`. The other keys are its.
    `init: scratch` takes the architecture and the tokenizer of `path`, and random weights.
    """

    kind: Literal["tiny", "hf"] = "tiny"
    path: PathText = "tiny-base"
    init: Literal["pretrained", "scratch"] = "pretrained"
    revision: str | None = None
    """Of a hub id: a branch, tag or commit."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """What matrix products are computed in. Weights that are trained, and their optimizer's state, are float32."""
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    gradient_checkpointing: FreeOnResume[bool] = False
    compile: bool = False
    chat_template: PathText | None = None
    """A Jinja file to take instead of the model's own template."""
    lora: LoraConfig | None = None

    @model_validator(mode="after")
    def _of_its_kind(self) -> ModelConfig:
        if self.kind == "hf" and self.path == "tiny-base":
            raise EchoError("model.kind is hf and model.path is tiny-base", "name a folder or a hub id in model.path")
        if self.kind == "tiny" and self.path == RANDOM_QWEN3:
            raise EchoError(f"model.path is {RANDOM_QWEN3} and model.kind is tiny", "set model.kind=hf")
        if self.kind == "tiny":
            for name in type(self).model_fields.keys() - {"kind", "path", "init"}:
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise EchoError(f"model.{name} has no effect with model.kind: tiny", "it is for kind hf")
        return self


class ConversationConfig(Section):
    """How an episode is written for a chat model (`model.kind: hf`).

    - `renderer`: `auto` takes the family of the model's own template; `plain` writes none, for base models.
    - `system`: the system message; null has none, or the template's own.
    - `reply_as`: the role of the environment's answers. `auto` is the family's own for tools.
    - `thinking`: `keep` leaves it in the transcript; `drop` takes it out of what later turns see; `forbid` opens each
      action with an empty block, and an action that thinks all the same is none.
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
                        f"conversation.{name} has no effect with conversation.renderer: plain", "it is for chat models"
                    )
        return self


class SamplerConfig(Section):
    """Who samples the policy's actions.

    - `torch`: this process, with a KV cache that is kept across turns.
    - `openai`: an endpoint of vLLM or SGLang at `url` that returns token ids and logprobs. After every optimizer step
      the weights are written to `weights`, a folder that both see, and `sync` says how the endpoint is told.
    """

    kind: Literal["torch", "openai"] = "torch"
    refill: Annotated[float, Field(gt=0, le=1)] = 0.25
    """Of torch with kind hf: the share of a batch that has to finish before the environments are asked again."""
    prefill_tokens: FreeOnResume[Positive] = 16_384
    """Of torch with kind hf: tokens, padding included, of one forward pass over openings and answers."""
    url: FreeOnResume[Annotated[str, Field(pattern=r"^https?://[^\s/]+\S*$")] | None] = None
    model: FreeOnResume[str | None] = None
    """Of openai: the name that the endpoint serves the policy under."""
    headers: FreeOnResume[Headers] = Field(default={})
    """Of openai: HTTP headers; values name environment variables as `${NAME}` and are stored so."""
    sync: Literal["sglang", "vllm-lora"] | None = None
    weights: FreeOnResume[PathText | None] = None
    concurrency: FreeOnResume[Positive] = 64
    timeout_s: FreeOnResume[Seconds] = 600.0

    @model_validator(mode="after")
    def _endpoint(self) -> SamplerConfig:
        needed = ("url", "model", "sync", "weights")
        if self.kind == "torch":
            for name in (*needed, "headers", "concurrency", "timeout_s"):
                if getattr(self, name) != type(self).model_fields[name].get_default():
                    raise EchoError(f"sampler.{name} has no effect with sampler.kind: torch", "it is for kind openai")
            return self
        if self.sync is None:
            raise EchoError(
                "sampler.sync is missing: the endpoint would go on with the weights it was started with, so that from "
                "the second step on every rollout is off-policy",
                "sampler.sync=sglang, or vllm-lora for a LoRA run; sampler.kind=torch needs no endpoint",
            )
        for name in needed:
            if getattr(self, name) is None:
                raise EchoError(f"sampler.kind is openai and sampler.{name} is missing", "set it")
        return self
