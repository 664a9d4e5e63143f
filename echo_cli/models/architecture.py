"""A model's dimensions, read without its weights and without importing the libraries that load them.

Parameter counts are exact for Llama-style decoders (Llama, Mistral, Qwen2, Qwen3) and for the built-in model.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from echo_cli.config.model import BUILT_IN, RANDOM_QWEN3, ModelConfig

Form = Literal["llama", "qwen2", "qwen3", "tiny"]


@dataclass(frozen=True)
class Architecture:
    """Dimensions of a decoder: embedding, `layers` blocks of attention and MLP, and a head (`tied`: the embedding)."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    """Width of the MLP."""
    vocab: int
    tied: bool
    max_length: int
    """Maximum sequence length, tokens."""
    form: Form = "llama"
    """Parameters beside the matrices: `qwen2` has biases on queries, keys and values; `qwen3` norms on queries, keys.

    `tiny` has a convolution, norms without weights, and an MLP without a gate.
    """
    attention_bias: bool = False
    """Whether all four attention matrices have biases."""
    mlp_bias: bool = False

    @property
    def query_width(self) -> int:
        """Number of features of all query heads together."""
        return self.heads * self.head_dim

    @property
    def key_width(self) -> int:
        """Number of features of all key heads together; the value heads have as many."""
        return self.kv_heads * self.head_dim

    @property
    def linear(self) -> Mapping[str, tuple[int, int]]:
        """Linear layers of one block by name: (features in, features out)."""
        H, Q, K, I = self.hidden, self.query_width, self.key_width, self.intermediate  # noqa: E741
        if self.form == "tiny":
            return {"qkv": (H, 3 * Q), "out": (Q, H), "up": (H, I), "down": (I, H)}
        attention = {"q_proj": (H, Q), "k_proj": (H, K), "v_proj": (H, K), "o_proj": (Q, H)}
        return {**attention, "gate_proj": (H, I), "up_proj": (H, I), "down_proj": (I, H)}

    @property
    def linear_parameters(self) -> int:
        """Number of weights in the linear layers of all blocks."""
        return self.layers * sum(inputs * outputs for inputs, outputs in self.linear.values())

    @property
    def embedding_parameters(self) -> int:
        """Number of weights in the embedding; an untied head has as many."""
        return self.vocab * self.hidden

    @property
    def parameters(self) -> int:
        """Number of all parameters; a tied head counts once."""
        H = self.hidden
        if self.form == "tiny":
            return self.embedding_parameters + self.linear_parameters + self.layers * 3 * H
        block = 2 * H + self._biases + (2 * self.head_dim if self.form == "qwen3" else 0)
        embeddings = self.embedding_parameters * (1 if self.tied else 2)
        return embeddings + self.linear_parameters + self.layers * block + H

    def lora_parameters(self, rank: int, targets: Sequence[str] = ()) -> int:
        """Count the parameters of adapters of `rank` on the linear layers `targets`; empty: on all except the head."""
        chosen = [size for name, size in self.linear.items() if name in (targets or self.linear)]
        return self.layers * rank * sum(inputs + outputs for inputs, outputs in chosen)

    @property
    def _biases(self) -> int:
        H, Q, K, I = self.hidden, self.query_width, self.key_width, self.intermediate  # noqa: E741
        attention = (Q + 2 * K + H) if self.attention_bias else (Q + 2 * K) if self.form == "qwen2" else 0
        return attention + (2 * I + H if self.mlp_bias else 0)


def _qwen3(hidden: int, layers: int, heads: int, intermediate: int, *, tied: bool) -> Architecture:
    return Architecture(hidden, layers, heads, 8, 128, intermediate, 151_936, tied, 40_960, "qwen3")


NAMED: Mapping[str, Architecture] = {
    # From each model's config.json on the hub, as published in April 2025.
    "Qwen/Qwen3-0.6B": _qwen3(1024, 28, 16, 3072, tied=True),
    "Qwen/Qwen3-1.7B": _qwen3(2048, 28, 16, 6144, tied=True),
    "Qwen/Qwen3-4B": _qwen3(2560, 36, 32, 9728, tied=True),
    "Qwen/Qwen3-8B": _qwen3(4096, 36, 32, 12_288, tied=False),
    "Qwen/Qwen3-14B": _qwen3(5120, 40, 40, 17_408, tied=False),
    # Written by models/hf/random_qwen3.py.
    RANDOM_QWEN3: Architecture(128, 3, 4, 2, 32, 384, 1123, True, 2048, "qwen3"),
}
"""Models whose dimensions are known without their files."""

_FORMS: Mapping[str, Form] = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""Form by the `model_type` in config.json."""


def model_folder(path: str) -> Path:
    """Return the folder of a built-in model: `path` is its name, or the folder itself."""
    return Path(__file__).parent / path.replace("-", "_") if path in BUILT_IN else Path(path)


def architecture_of(model: ModelConfig) -> Architecture | None:
    """Return the dimensions of the config's model from its folder, the local hub cache, or `NAMED`.

    Return None if they are unknown without a download, or if the architecture has none of the `Form`s. A damaged folder
    also gives None; loading the model reports the error.
    """
    if model.kind == "tiny":
        return _read(model_folder(model.path) / "config.json", _tiny_shape)
    folder = Path(model.path).expanduser()
    if model.path == RANDOM_QWEN3 or not folder.is_dir():
        cached = hub_folder(model.path, model.revision or "main")
        found = None if cached is None else _read(cached / "config.json", _decoder_shape)
        return found or (NAMED.get(model.path) if model.revision is None else None)
    return _read(folder / "config.json", _decoder_shape)


def _read(path: Path, parse: Any) -> Architecture | None:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        shape: Architecture | None = parse(values) if isinstance(values, dict) else None
    except (OSError, ValueError, KeyError, TypeError, ArithmeticError, RecursionError):
        return None
    return shape


def _tiny_shape(values: Mapping[str, Any]) -> Architecture:
    hidden, heads = int(values["hidden"]), int(values["heads"])
    sizes = (hidden, int(values["layers"]), heads, heads, hidden // heads, 4 * hidden, int(values["vocab_size"]))
    return Architecture(*sizes, True, int(values["max_length"]), "tiny")


def _decoder_shape(values: Mapping[str, Any]) -> Architecture | None:
    """Read the dimensions from a transformers config.json; None for an unknown `model_type`."""
    form = _FORMS.get(values.get("model_type", ""))
    if form is None:
        return None
    hidden, heads = int(values["hidden_size"]), int(values["num_attention_heads"])
    return Architecture(
        hidden=hidden,
        layers=int(values["num_hidden_layers"]),
        heads=heads,
        kv_heads=int(values.get("num_key_value_heads") or heads),
        head_dim=int(values.get("head_dim") or (128 if form == "qwen3" else hidden // heads)),
        intermediate=int(values["intermediate_size"]),
        vocab=int(values["vocab_size"]),
        tied=bool(values.get("tie_word_embeddings", False)),
        max_length=int(values["max_position_embeddings"]),
        form=form,
        attention_bias=values["model_type"] in ("llama", "qwen3") and bool(values.get("attention_bias", False)),
        mlp_bias=values["model_type"] == "llama" and bool(values.get("mlp_bias", False)),
    )


def hub_folder(path: str, revision: str) -> Path | None:
    """Return the snapshot folder of a hub id and revision in the local hub cache, or None."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "huggingface"
    home = Path(os.environ.get("HF_HOME") or home).expanduser()
    cache = Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser()
    stored = cache / f"models--{path.replace('/', '--')}"
    try:
        commit = (stored / "refs" / revision).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        commit = revision
    folder = stored / "snapshots" / commit
    return folder if folder.is_dir() else None
