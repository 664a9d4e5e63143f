"""Small Qwen3 models on disk and the policy seam over them, for tests, with the vocabulary of tiny-base's tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import Qwen3Config, Qwen3ForCausalLM

from echo_cli.config.model import LoraConfig, ModelConfig
from echo_cli.models.architecture import Architecture, model_folder
from echo_cli.models.hf.loading import load_hf_model
from echo_cli.models.hf.model import HfModel
from echo_cli.models.renderer import PlainRenderer
from echo_cli.models.tokenizer import TOKENIZER_FILE, Tokenizer

TOKENIZER = Tokenizer.load(model_folder("tiny-base") / TOKENIZER_FILE)
RENDERER = PlainRenderer(TOKENIZER)
VOCABULARY = TOKENIZER.vocab_size
LORA = LoraConfig(rank=4, alpha=8.0)
CPU = torch.device("cpu")


SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
"""Sizes of a model with two query heads per key head, under transformers' names."""


def qwen3_config(shape: Architecture) -> Qwen3Config:
    """Return transformers' config of a Qwen3 with the given sizes."""
    return Qwen3Config(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        tie_word_embeddings=shape.tied,
        attn_implementation="sdpa",
    )


def make_qwen3(folder: Path, *, tied: bool = True, seed: int = 0, **changes: Any) -> Path:
    """Write a Qwen3 of `SIZES` with weights large enough for every layer to matter."""
    shape = {
        **SIZES,
        "head_dim": 8,
        "max_position_embeddings": 512,
        "tie_word_embeddings": tied,
        "attention_dropout": 0.5,
        "initializer_range": 0.2,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        Qwen3ForCausalLM(Qwen3Config(**{**shape, **changes})).save_pretrained(folder)
    return folder


def load(folder: Path, dtype: torch.dtype = torch.float32, **settings: Any) -> HfModel:
    """Return the policy seam over the model in `folder`; an adapter's second half is non-zero, as after training."""
    config = ModelConfig(kind="hf", path=str(folder), **settings)
    model = load_hf_model(folder, config, CPU, dtype, 0, VOCABULARY)
    stir(model)
    return model


def stir(model: HfModel) -> None:
    """Set the half of a fresh adapter that is initialised to zero to other values."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2, generator=generator)


def dense(model: HfModel, folder: Path, base: Path) -> torch.nn.Module:
    """Save `model` and load it with transformers and peft, an independent implementation of its forward pass."""
    folder.mkdir(exist_ok=True)
    model.save(folder)
    if not isinstance(model.model, PeftModel):
        return Qwen3ForCausalLM.from_pretrained(folder).eval()
    return PeftModel.from_pretrained(Qwen3ForCausalLM.from_pretrained(base), folder, is_trainable=True).eval()
