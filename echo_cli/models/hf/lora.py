"""LoRA adapters: added to a model's linear layers, written to a folder, read from a folder.

Low-rank adaptation is Hu et al. 2021, arXiv 2106.09685; the layers are peft's.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from safetensors.torch import save as safetensors_bytes
from torch import Tensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from echo_cli.config.model import LoraConfig
from echo_cli.errors import EchoError, first_line
from echo_cli.files import Row, read_json
from echo_cli.models.hf.weights import save_whole
from echo_cli.models.weight_files import ADAPTER_FILE, file_shapes
from echo_cli.text import escape_unprintable

ADAPTER_CONFIG = "adapter_config.json"

# Keys of an adapter's config that may have any value. The others name Python modules to import, change the base's
# weights by other methods, or repeat its layers.
_KNOWN = {
    *(
        "peft_type",
        "task_type",
        "base_model_name_or_path",
        "revision",
        "inference_mode",
        "peft_version",
        "auto_mapping",
    ),
    *("r", "lora_alpha", "lora_dropout", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "fan_in_fan_out"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save", "bias"),
    *("target_parameters", "init_lora_weights", "lora_bias", "trainable_token_indices", "ensure_weight_tying"),
    *("megatron_core", "qalora_group_size"),  # without effect while megatron_config and use_qalora are not set
}
_NOTHING: tuple[Any, ...] = (None, False, {}, [])

# Keys of an adapter's config that determine the meaning of its weights.
_MEANING = ("peft_type", "r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "fan_in_fan_out")


def linear_layers(model: PreTrainedModel) -> list[str]:
    """Return the sorted last name components of a model's linear layers, except the head."""
    head = model.get_output_embeddings()
    linear = (torch.nn.Linear, Conv1D)
    names = (name for name, module in model.named_modules() if isinstance(module, linear) and module is not head)
    return sorted({name.rpartition(".")[2] for name in names})


def add_adapter(model: PreTrainedModel, lora: LoraConfig, base: str, seed: int) -> PeftModel:
    """Freeze `model` and add a fresh float32 adapter, which does not change the output at first.

    Args:
        base: name of the base in adapter_config.json.

    Raises:
        EchoError: a target is not a linear layer of the model.
    """
    there = linear_layers(model)
    if foreign := [name for name in lora.targets if name not in there]:
        raise EchoError(
            f"model.lora.targets: the model has no linear layer {foreign[0]}", f"choose from {', '.join(there)}"
        )
    if lora.rank > (most := _most_rank(model)):
        raise EchoError(
            f"model.lora.rank is {lora.rank}, and no matrix of the model has a rank above {most}", f"set at most {most}"
        )
    config = PeftLoraConfig(
        task_type="CAUSAL_LM",
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=0.0,
        target_modules=list(lora.targets) or there,
        base_model_name_or_path=base,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _adapted(model, config)


def _most_rank(model: PreTrainedModel) -> int:
    """Return the highest rank of a linear layer's matrix, beyond which an adapter gains nothing."""
    linear = (module for module in model.modules() if isinstance(module, (torch.nn.Linear, Conv1D)))
    return max((min(layer.weight.shape) for layer in linear), default=0)


def is_adapter(folder: Path) -> bool:
    """Return whether a folder holds an adapter."""
    return (folder / ADAPTER_CONFIG).is_file()


def read_adapter_config(folder: Path) -> Row:
    """Read adapter_config.json.

    Raises:
        EchoError: the file is missing, not JSON, not a LoRA adapter's config, or names no target modules.
    """
    path = folder / ADAPTER_CONFIG
    if not path.is_file():
        raise EchoError(f"{escape_unprintable(folder)} has no {ADAPTER_CONFIG}", "choose a folder with a LoRA adapter")
    config = read_json(path)
    if config.get("peft_type") != "LORA" or not isinstance(config.get("base_model_name_or_path"), str):
        raise EchoError(
            f"{escape_unprintable(path)} is not the config of a LoRA adapter with a base", "export the adapter again"
        )
    if not config.get("target_modules"):  # peft would use the architecture's default and load only some weights
        raise EchoError(
            f"{escape_unprintable(path)} has no target_modules", "add the modules that the adapter was trained on"
        )
    if unknown := sorted(name for name, value in config.items() if name not in _KNOWN and value not in _NOTHING):
        raise EchoError(
            f"{escape_unprintable(path)} sets {escape_unprintable(unknown[0])}, which is not read here",
            "merge the adapter into its base with the program that trained it",
        )
    return config


def read_adapter(folder: Path, model: PreTrainedModel) -> PeftModel:
    """Freeze `model` and add the adapter of a folder, which can be trained further.

    Raises:
        EchoError: the adapter is damaged, or does not fit the model.
    """
    written = read_adapter_config(folder)
    ranks, most = [written.get("r"), *_values(written.get("rank_pattern"))], _most_rank(model)
    if not all(isinstance(rank, int) and 0 < rank <= most for rank in ranks):
        raise _unfit(folder, f"its rank is not from 1 to {most}")
    try:
        config = PeftLoraConfig(**{name: value for name, value in written.items() if name != "peft_type"})
        config.inference_mode, config.lora_dropout = False, 0.0
        adapted = _adapted(model, config)
    except Exception as error:  # the values may have any type
        raise _unfit(folder, escape_unprintable(first_line(error))) from error
    load_adapter(folder, adapted)
    return adapted


def save_adapter(model: PeftModel, folder: Path, weights: Mapping[str, Tensor] | None = None) -> None:
    """Write adapter_model.safetensors and adapter_config.json, which peft and transformers load.

    Args:
        weights: the model's weights, by name, if its own state cannot be read.
    """
    own = None if weights is None else dict(weights)
    state = get_peft_model_state_dict(model, own, save_embedding_layers=False)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    # Written by Python because the library's errors do not say that the disk is full.
    (folder / ADAPTER_FILE).write_bytes(safetensors_bytes(tensors, metadata={"format": "pt"}))
    values = {name: sorted(value) if isinstance(value, set) else value for name, value in _settings(model).items()}
    text = json.dumps({**values, "inference_mode": True}, indent=2, sort_keys=True)
    (folder / ADAPTER_CONFIG).write_text(text + "\n", encoding="utf-8")


def save_merged(model: PeftModel, folder: Path) -> None:
    """Write a model that merges the adapter into the base; `model` is unusable afterwards."""
    save_whole(model.merge_and_unload(), folder)


class MergedAdapter:
    """Weights of a float32 model's adapted layers with the adapter added, in copies beside the base's weights.

    An adapter costs three matrix products per layer and token, its merged weights one.
    """

    def __init__(self, model: PeftModel) -> None:
        self._layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
        self._changed_by = [part for layer in self._layers for part in layer.parameters()]
        self._merged: list[Tensor] = []
        self._versions: list[int] = []

    @classmethod
    def of(cls, model: PeftModel) -> MergedAdapter | None:
        """Return the merged weights of `model`; None if a merged layer would not compute the same up to rounding.

        In bfloat16 the sum would lose what the adapter has learned so far: a weight has 8 significant bits.
        """
        embedding = model.get_base_model().get_input_embeddings().weight
        found = cls(model)
        plain = all(
            isinstance(layer, LoraLinear) and layer.weight is not embedding and layer.weight.dtype == torch.float32
            for layer in found._layers
        )
        return found if plain else None

    def release(self) -> None:
        """Free the merged weights."""
        self._merged = []

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Compute with the merged weights in the block, without gradients; the base's weights are unchanged after it.

        The weights are merged again only if the adapter has changed.
        """
        base = [part.data for part in self._base_parameters()]
        versions = [part._version for part in self._changed_by]
        try:
            if self._merged and versions == self._versions:
                for part, merged in zip(self._base_parameters(), self._merged, strict=True):
                    part.data = merged
                for layer in self._layers:
                    layer.merged_adapters.extend(layer.active_adapters)
            else:
                self.release()
                with torch.inference_mode(False), torch.no_grad():
                    for part in self._base_parameters():
                        part.data = part.data.clone()
                    for layer in self._layers:
                        layer.merge()
                self._merged, self._versions = [part.data for part in self._base_parameters()], versions
            yield
        finally:
            for part, own in zip(self._base_parameters(), base, strict=True):
                part.data = own
            for layer in self._layers:
                layer.merged_adapters.clear()

    def _base_parameters(self) -> Iterator[torch.nn.Parameter]:
        for layer in self._layers:
            yield from layer.get_base_layer().parameters()


def load_adapter(folder: Path, model: PeftModel) -> None:
    """Load the adapter weights of a folder into `model`.

    Raises:
        EchoError: the weights are damaged, or belong to another adapter or base.
    """
    written, own = read_adapter_config(folder), _settings(model)
    for name in _MEANING:
        if name in written and written[name] != own.get(name):
            raise _unfit(folder, f"{name} is {written[name]!r} in the adapter and {own.get(name)!r} in the model")
    shapes = file_shapes(folder / ADAPTER_FILE)
    expected = get_peft_model_state_dict(model, save_embedding_layers=False)
    differing = shapes.items() ^ {name: tuple(tensor.shape) for name, tensor in expected.items()}.items()
    if differing:
        raise _unfit(folder, f"{escape_unprintable(min(name for name, _ in differing))} differs")
    try:
        state = load_file(folder / ADAPTER_FILE)
    except Exception as error:  # safetensors raises its own type from Rust
        raise EchoError(
            f"cannot load weights from {escape_unprintable(folder / ADAPTER_FILE)}: {first_line(error)}",
            "restore the file from its source",
        ) from error
    set_peft_model_state_dict(model, state)


def _adapted(model: PreTrainedModel, config: PeftLoraConfig) -> PeftModel:
    base = config.base_model_name_or_path
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecation warnings for transformers names that only peft uses
        adapted = get_peft_model(model, config)
    config.base_model_name_or_path = base  # peft overwrites it with the name that the model was loaded under
    return adapted


def _values(pattern: Any) -> list[Any]:
    return list(pattern.values()) if isinstance(pattern, dict) else []


def _settings(model: PeftModel) -> Row:
    settings: Row = model.peft_config[model.active_adapter].to_dict()
    return settings


def _unfit(folder: Path, why: str) -> EchoError:
    return EchoError(
        f"the adapter in {escape_unprintable(folder)} does not fit the model: {why}",
        "choose the model that the adapter was trained on",
    )
