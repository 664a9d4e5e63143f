"""Qwen3 models (grouped-query attention, QK-norm, tied embeddings) with random weights, which do not affect speed.

Imports no echo_cli, because TRL's interpreter imports it too.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Architecture:
    """Sizes of a Qwen3. The two real architectures are from the `config.json` of Qwen/Qwen3-0.6B and Qwen/Qwen3-4B."""

    name: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int

    @property
    def layer_parameters(self) -> int:
        """Number of parameters of the matrices in all layers, without norms."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def head_parameters(self) -> int:
        """Number of parameters of the LM head, which is tied to the embedding."""
        return self.hidden * self.vocab

    def without_layers(self) -> Architecture:
        """Return the architecture with embedding, norm and LM head alone, so that a step computes only logits."""
        return replace(self, name=f"{self.name} without layers", layers=0)


TINY = Architecture("tiny", 32, 2, 4, 2, 8, 64, vocab=512)
SMALL = Architecture("small", 256, 8, 8, 4, 32, 768, vocab=32_768)
QWEN3_600M = Architecture("qwen3-0.6b", 1024, 28, 16, 8, 128, 3072, vocab=151_936)
QWEN3_4B = Architecture("qwen3-4b", 2560, 36, 32, 8, 128, 9728, vocab=151_936)
ARCHITECTURES = {one.name: one for one in (TINY, SMALL, QWEN3_600M, QWEN3_4B)}


def random_model(architecture: Architecture, seed: int, device: str = "cpu") -> Any:
    """Create a float32 `transformers` causal LM on `device`."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=architecture.vocab,
        hidden_size=architecture.hidden,
        intermediate_size=architecture.intermediate,
        num_hidden_layers=architecture.layers,
        num_attention_heads=architecture.heads,
        num_key_value_heads=architecture.kv_heads,
        head_dim=architecture.head_dim,
        tie_word_embeddings=True,
        max_position_embeddings=8192,
        attn_implementation="sdpa",
        bos_token_id=None,
        eos_token_id=None,
    )
    torch.manual_seed(seed)
    with torch.device(device):
        return Qwen3ForCausalLM(config)


def load_model(folder: Path) -> Any:
    """Load the model that `random_model(...).save_pretrained(folder)` wrote, in float32 on the CPU."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
