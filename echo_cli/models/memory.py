"""Prediction of a run's peak device memory from the model's dimensions and the config.

A step has two phases, and loading on a CPU is a third, in which the mapped files are resident beside the weights; the
peak is the sum of the largest phase. Bytes of each part, with P parameters, of which P_t are
trained; c bytes per value of the compute dtype; L layers; H, Q, K, I and V the widths of hidden state, queries, keys,
MLP and vocabulary; n tokens of a micro-batch; R concurrent rollouts of T tokens each:

| part             | full fine-tuning               | LoRA                  | phase   |
|------------------|--------------------------------|-----------------------|---------|
| libraries        | 0.5 GB on a CPU                | the same              | both    |
| weights          | 4 P                            | c P + 4 P_t           | both    |
| compute copies   | 2 · linear layers, in bfloat16 | 2 P_t, in bfloat16    | both    |
| optimizer        | 8 P_t                          | 8 P_t                 | both    |
| KL reference     | c · linear + 4 · the rest      | 0                     | both    |
| gradients        | 4 P_t + c V H                  | 4 P_t                 | update  |
| activations      | n · bytes saved by L layers    | the same              | update  |
| logits           | 20 V · rows of a chunk + c V H | 20 V · rows           | update  |
| layer            | n · working bytes of one layer | the same              | update  |
| freed blocks     | 0.25 of the update's parts, at most 1.5 GB | 0.75 of them | update |
| KV cache         | 2 c K · R · T · L + one layer with its keys repeated for all heads | the same | rollout |
| prefill          | the widest forward pass over openings and answers                  | the same | rollout |
| sampling         | (24 + 2 c) V · R                                                   | the same | rollout |
| merged adapter   | 0                              | 4 · adapted layers, in float32     | rollout |

Compute copies are the bfloat16 casts that autocast makes of the trained float32 weights. A probe of the two gradients
holds three sets of gradients; with `probe_every`, a scratch step adds copies of weights and moments. c V H is the
head's gradient: the sum over chunks in the row gradients, one chunk's in the row logits. Logits and a layer's working
memory never coincide: the larger counts. Activations are the tensors that autograd saves, counted with
`saved_tensors_hooks` on transformers' Qwen3 with fused attention. With gradient checkpointing a layer saves its input,
and its other activations only while it is recomputed. Other Llama-style models save slightly less.

The prediction for an update, without freed blocks, is 1.0 to 1.25 times the bytes alive at its peak on a CPU
(tests/models/test_memory.py). Freed blocks are what the C library keeps of gradients, activations and logits (or layer)
on a CPU: glibc takes blocks of up to 32 MiB from one heap, which fragments, most of all between the many small tensors
of LoRA; larger blocks, those of a larger model, it returns. The shares are measured: scripts/benchmark-memory compares
the prediction for a run with the peak of its process. A checkpoint is written from the tensors themselves; at most a
copy of the weights comes with it, no more than the gradients of an update.

Not included: on a CUDA device, its context and fragmentation; evaluations with more concurrent rollouts than training.
Every rollout is assumed to reach its caps, and all rollouts, up to `environment.sessions`, to run at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from echo_cli.config.schema import Config
from echo_cli.models.architecture import Architecture

Dtype = Literal["float32", "bfloat16"]
MemoryPhase = Literal["loading", "rollout", "update"]

# Number of logits per chunk of the LM head, by device: 2^25 values are 128 MiB in float32. On a CUDA device each chunk
# also costs a pass over the head's gradient [V, H], which would dominate the time of small chunks.
_CHUNK_LOGITS = {"cpu": 2**25, "cuda": 2**28}

# Resident memory of a process that has imported torch, transformers and peft, with its tasks and pools, bytes.
_LIBRARIES = 500_000_000

_FREED, _FREED_LORA, _FREED_MOST = 0.25, 0.75, 1_500_000_000
"""Freed blocks that the C library keeps: shares of the bytes that an update allocates, and their maximum, bytes."""

_SAVED: Mapping[tuple[Dtype, bool], tuple[int, int, int, int]] = {
    ("float32", False): (24, 16, 16, 16),
    ("bfloat16", False): (26, 10, 10, 8),
    ("float32", True): (16, 12, 12, 16),
    ("bfloat16", True): (18, 10, 8, 8),
}
"""Bytes that a layer saves for the backward pass, by (dtype, LoRA): factors of H, Q, K and I, per token."""


Parts = Mapping[str, int]
"""Bytes by part."""


@dataclass(frozen=True)
class MemoryPrediction:
    """Predicted bytes of each part, by phase."""

    rollout: Mapping[str, int]
    update: Mapping[str, int]
    loading: Mapping[str, int] = field(default_factory=dict)
    """Parts while the weights are loaded; empty on a CUDA device, which receives them from host memory."""

    @property
    def phase(self) -> MemoryPhase:
        """Phase with the peak."""
        sizes: dict[MemoryPhase, int] = {
            "update": sum(self.update.values()),
            "rollout": sum(self.rollout.values()),
            "loading": sum(self.loading.values()),
        }
        return max(sizes, key=lambda phase: sizes[phase])

    @property
    def parts(self) -> Mapping[str, int]:
        """Bytes of each part at the peak."""
        return {"rollout": self.rollout, "update": self.update, "loading": self.loading}[self.phase]

    @property
    def peak(self) -> int:
        """Total bytes at the peak."""
        return sum(self.parts.values())


def chunk_rows(vocab_size: int, device: str) -> int:
    """Return the number of hidden states per chunk of the LM head; `device` is the type of a `torch.device`."""
    return max(256, _CHUNK_LOGITS[device] // vocab_size)


def longest_episode(config: Config) -> int:
    """Return the length of the longest rollout, tokens: its actions end at the cap; an answer has at most 2 outputs."""
    return config.rollout.max_episode_tokens + 2 * config.rollout.max_output_tokens


def longest_trace(shape: Architecture, config: Config) -> int:
    """Return the longest trace's length, tokens, truncated to the context; 0 without traces."""
    return 0 if config.traces is None else min(config.traces.max_tokens or shape.max_length, shape.max_length)


def longest_update(shape: Architecture, config: Config) -> int:
    """Return the length of the longest sequence of an update, a rollout or a trace, tokens."""
    played = 0 if config.environment.none else longest_episode(config)
    return max(played, longest_trace(shape, config))


def trained_parameters(shape: Architecture, config: Config) -> int:
    """Return the number of trained parameters."""
    lora = config.model.lora
    return shape.parameters if lora is None else shape.lora_parameters(lora.rank, lora.targets)


def predict_memory(
    shape: Architecture, config: Config, dtype: Dtype, device: str, ranks: int = 1, *, split: bool = False
) -> MemoryPrediction:
    """Predict the memory of a run with a Hugging Face model, of each rank if there are several.

    Args:
        dtype: dtype of matrix products.
        device: cpu or cuda.
        split: whether the model is split over the ranks; otherwise each has a copy.
    """
    standing: Parts = _standing(shape, config, dtype, device)
    rollout: Parts = _rollout(shape, config, dtype, ranks)
    update: Parts = _update(shape, config, dtype, device)
    if split:
        standing, rollout, update = _split(shape, config, dtype, ranks, standing, rollout, update)
    return MemoryPrediction(
        rollout={**standing, **rollout},
        update={**standing, **update},
        loading=_loading(shape, config, dtype) if device == "cpu" else {},
    )


def _split(
    shape: Architecture, config: Config, dtype: Dtype, ranks: int, standing: Parts, rollout: Parts, update: Parts
) -> tuple[Parts, Parts, Parts]:
    """Return the parts of a rank with a model that FSDP splits: standing, of a rollout, of an update.

    Trained weights, their gradients and moments are split; an adapter is not. An update gathers two layers at a time,
    one of them in advance, and holds the embeddings, the head and the last norm, which are float32; a rollout gathers
    all weights.
    """
    c, whole = _bytes(dtype), config.model.lora is None
    root = shape.embedding_parameters * (1 if shape.tied else 2) + shape.hidden
    layers = shape.parameters - root
    outside = (4 if whole else c) * root + (2 * shape.embedding_parameters if dtype == "bfloat16" else 0)
    trained = trained_parameters(shape, config)
    weights = 4 * shape.parameters // ranks if whole else c * shape.parameters // ranks + 4 * trained
    kept = {**standing, "weights": weights, "compute copies": 0}
    gathered = 2 * c * layers // shape.layers + outside
    if whole:
        kept["optimizer"] = 8 * trained // ranks
        gradients = {"gradients": 4 * trained // ranks}
        # Whole gradients of the layer in its backward pass, as computed and as float32 to be added, and of the root.
        gathered += (c + 4) * layers // shape.layers + 4 * root
    else:
        gradients = {}
    return (
        kept,
        {**rollout, "gathered weights": c * layers + outside},
        {**update, **gradients, "gathered weights": gathered},
    )


def _loading(shape: Architecture, config: Config, dtype: Dtype) -> dict[str, int]:
    """Return the bytes held while the weights are loaded, by part; files are taken to have the dtype of the weights."""
    held = (4 if config.model.lora is None else _bytes(dtype)) * shape.parameters
    return {"libraries": _LIBRARIES, "weights": held, "files": held}


def _standing(shape: Architecture, config: Config, dtype: Dtype, device: str) -> dict[str, int]:
    """Return the bytes held in both phases, by part."""
    c, trained = _bytes(dtype), trained_parameters(shape, config)
    linear = shape.linear_parameters + (0 if shape.tied else shape.embedding_parameters)
    rest = shape.parameters - linear
    if config.model.lora is not None:
        weights, cast, reference = c * shape.parameters + 4 * trained, trained, 0
    else:
        # A tied head is cast as a whole although the embedding is not.
        weights, cast = 4 * trained, shape.linear_parameters + shape.embedding_parameters
        reference = c * linear + 4 * rest if config.objective.kl_coeff > 0 else 0
    return {
        **({"libraries": _LIBRARIES} if device == "cpu" else {}),
        "weights": weights,
        "compute copies": 2 * cast if dtype == "bfloat16" else 0,
        "optimizer": 8 * trained,
        "KL reference": reference,
    }


def _update(shape: Architecture, config: Config, dtype: Dtype, device: str) -> dict[str, int]:
    c, trained = _bytes(dtype), trained_parameters(shape, config)
    # Weights, gradient and both moments of the step that a probe undoes; or three sets of gradients.
    sets = 4 if config.probe_every > 0 else 3 if config.objective.schedule == "gradient_ratio" else 1
    whole = config.model.lora is None
    in_flight = c * shape.embedding_parameters if whole else 0
    tokens = max(longest_update(shape, config), config.optim.token_budget)
    saved = saved_by_layer(shape, config, dtype)
    # Gradients of intermediate values in a layer's backward pass.
    working = 8 * (shape.intermediate + shape.hidden)
    if config.model.gradient_checkpointing:
        saved, working = (4 if whole else c) * shape.hidden, working + saved
    logits = 20 * shape.vocab * min(chunk_rows(shape.vocab, device), tokens) + in_flight
    layer = tokens * working
    allocated = {
        "gradients": 4 * trained * sets + in_flight,
        # 16 H: the last norm and the gathered states.
        "activations": tokens * (shape.layers * saved + 16 * shape.hidden),
        **({"logits": logits} if logits > layer else {"layer": layer}),
    }
    if device != "cpu":
        return allocated
    freed = int((_FREED if whole else _FREED_LORA) * sum(allocated.values()))
    return {**allocated, "freed blocks": min(freed, _FREED_MOST)}


def saved_by_layer(shape: Architecture, config: Config, dtype: Dtype) -> int:
    """Return the bytes per token that one layer saves for the backward pass."""
    lora, c = config.model.lora, _bytes(dtype)
    widths = (shape.hidden, shape.query_width, shape.key_width, shape.intermediate)
    saved = sum(factor * width for factor, width in zip(_SAVED[dtype, lora is not None], widths, strict=True))
    # One number per norm and per softmax row.
    saved += 8 + 8 * shape.heads + 4 * shape.kv_heads
    if lora is not None:
        saved += c * lora.rank * len(lora.targets or shape.linear)
    if config.model.attention == "eager":
        saved += (4 + c) * shape.heads * longest_update(shape, config)
    return saved


def _rollout(shape: Architecture, config: Config, dtype: Dtype, ranks: int) -> dict[str, int]:
    """Return the bytes of a rollout, by part; zero if an endpoint samples."""
    if config.sampler.kind != "torch":
        return {"KV cache": 0, "prefill": 0, "sampling": 0, "merged adapter": 0}
    c, longest = _bytes(dtype), longest_episode(config)
    rollouts = -(-config.rollout.tasks_per_step // ranks) * config.rollout.group_size
    rollouts = min(rollouts, config.environment.sessions or rollouts)
    H, I, Q, K = shape.hidden, shape.intermediate, shape.query_width, shape.key_width  # noqa: E741
    layer = 2 * c * K * rollouts * longest
    repeated = 2 * c * Q * rollouts * longest if Q > K else 0
    cells = min(max(config.sampler.prefill_tokens, longest), rollouts * longest)
    # The mask over visible positions, boolean and numeric; attention and MLP of one layer.
    prefill = cells * ((1 + c) * longest + 8 * (I + 2 * H) + 2 * c * (Q + 2 * K))
    return {
        "KV cache": layer * (shape.layers + 1) + repeated,
        "prefill": prefill,
        "sampling": (24 + 2 * c) * shape.vocab * rollouts,
        "merged adapter": _merged(shape, config, dtype),
    }


def _merged(shape: Architecture, config: Config, dtype: Dtype) -> int:
    """Return the bytes of the weights with the adapter added; a bfloat16 model samples with its adapter beside them."""
    lora = config.model.lora
    if lora is None or dtype == "bfloat16":
        return 0
    return (
        4 * shape.layers * sum(i * o for name, (i, o) in shape.linear.items() if name in (lora.targets or shape.linear))
    )


def _bytes(dtype: Dtype) -> int:
    return 4 if dtype == "float32" else 2
