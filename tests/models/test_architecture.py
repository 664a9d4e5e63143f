"""Sizes computed from an architecture equal the real models', and an architecture is read from any kind of model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_models import qwen3_config
from peft import LoraConfig as PeftLoraConfig
from peft import get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, Qwen3ForCausalLM

from echo_cli.config.model import RANDOM_QWEN3, LoraConfig, ModelConfig
from echo_cli.models.architecture import NAMED, Architecture, architecture_of
from echo_cli.models.tiny import TinyConfig, TinyModel

SMALL = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 96,
    "max_position_embeddings": 128,
}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("qwen3", {"head_dim": 16, "tie_word_embeddings": True}),
    ("qwen3", {"head_dim": 20, "tie_word_embeddings": False, "attention_bias": True}),
    ("qwen2", {"tie_word_embeddings": True}),
    ("llama", {"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True}),
    ("llama", {"head_dim": 16, "tie_word_embeddings": True}),
    ("mistral", {"tie_word_embeddings": False}),
]


def _hf(path: str, **keys: Any) -> ModelConfig:
    return ModelConfig(kind="hf", path=path, **keys)


@pytest.mark.parametrize(("model_type", "keys"), CASES)
def test_the_parameters_are_those_of_the_model_that_transformers_builds(
    model_type: str, keys: dict[str, Any], tmp_path: Path
) -> None:
    config = AutoConfig.for_model(model_type, **SMALL, **keys)
    config.save_pretrained(tmp_path)
    shape = architecture_of(_hf(str(tmp_path)))
    assert shape is not None
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert shape.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert shape.linear.keys() == {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head"
    }
    for targets in ("all-linear", ["q_proj", "down_proj"]):
        with torch.device("meta"):
            fresh = AutoModelForCausalLM.from_config(config)
            adapted = get_peft_model(fresh, PeftLoraConfig(r=5, target_modules=targets))
        trained = sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)
        assert shape.lora_parameters(5, () if targets == "all-linear" else targets) == trained


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        # From the models' pages on the hub, with a tied head counted once.
        ("Qwen/Qwen3-0.6B", 596_049_920),
        ("Qwen/Qwen3-1.7B", 1_720_574_976),
        ("Qwen/Qwen3-4B", 4_022_468_096),
        ("Qwen/Qwen3-8B", 8_190_735_360),
        ("Qwen/Qwen3-14B", 14_768_307_200),
    ],
)
def test_a_named_model_has_its_published_size(name: str, parameters: int) -> None:
    shape = NAMED[name]
    with torch.device("meta"):
        model = Qwen3ForCausalLM(qwen3_config(shape))
    assert shape.parameters == parameters == sum(parameter.numel() for parameter in model.parameters())


def test_the_random_model_is_what_the_table_says(tmp_path: Path) -> None:
    from echo_cli.models.hf.random_qwen3 import make_random_qwen3

    make_random_qwen3(tmp_path, seed=0)
    assert architecture_of(_hf(str(tmp_path))) == architecture_of(_hf(RANDOM_QWEN3))


def test_the_built_in_model_has_a_shape_too(tmp_path: Path) -> None:
    for model, config in ((ModelConfig(), TinyConfig(1024)), (None, TinyConfig(300, 64, 2, 2, 512))):
        if model is None:
            (tmp_path / "config.json").write_text(json.dumps(config.to_json()))
            model = ModelConfig(path=str(tmp_path))
        shape = architecture_of(model)
        assert shape is not None
        assert shape.parameters == sum(parameter.numel() for parameter in TinyModel(config).parameters())
        assert (shape.max_length, shape.vocab) == (config.max_length, config.vocab_size)


def test_a_small_shape_by_hand() -> None:
    shape = Architecture(4, 2, 2, 1, 3, 5, 7, True, 16, "qwen3")
    # A block: q 4 × 6, k and v 4 × 3 each, o 6 × 4, three matrices 4 × 5, two norms of 4 and two of 3.
    block = 24 + 12 + 12 + 24 + 60 + 8 + 6
    assert shape.parameters == 7 * 4 + 2 * block + 4
    assert shape.lora_parameters(2, ["k_proj"]) == 2 * 2 * (4 + 3)


def test_a_hub_id_is_read_from_the_hubs_own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert architecture_of(_hf("Qwen/Qwen3-0.6B")) == NAMED["Qwen/Qwen3-0.6B"]
    assert architecture_of(_hf("someone/model")) is None
    stored = tmp_path / "models--someone--model"
    for folder in ("refs", "snapshots/abc", "snapshots/def"):
        (stored / folder).mkdir(parents=True)
    (stored / "refs" / "main").write_text("abc")
    for commit, layers in (("abc", 3), ("def", 4)):
        config = {"model_type": "llama", **SMALL, "num_hidden_layers": layers}
        (stored / "snapshots" / commit / "config.json").write_text(json.dumps(config))
    for revision, layers in ((None, 3), ("main", 3), ("def", 4)):
        shape = architecture_of(_hf("someone/model", revision=revision))
        assert shape is not None and shape.layers == layers
    assert architecture_of(_hf("someone/model", revision="v2")) is None
    assert architecture_of(_hf("Qwen/Qwen3-0.6B", revision="v2")) is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"model_type": "mamba"}', '{"model_type": "qwen3"}'])
def test_what_is_not_of_the_form_has_no_shape(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    assert architecture_of(_hf(str(tmp_path), lora=LoraConfig())) is None
    assert architecture_of(ModelConfig(path=str(tmp_path))) is None
