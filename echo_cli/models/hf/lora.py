"""LoRA adapters: put beside a model's linear layers, written to a folder, and read from one.

Low-rank adaptation is Hu et al. 2021, arXiv 2106.09685; the layers are peft's.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from safetensors.torch import save as safetensors_bytes
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from echo_cli.config.model import LoraConfig
from echo_cli.errors import EchoError, first_line
from echo_cli.files import Row, read_json
from echo_cli.models.hf.weights import save_whole
from echo_cli.text import escape_unprintable

ADAPTER_CONFIG, ADAPTER_FILE = "adapter_config.json", "adapter_model.safetensors"

# Of an adapter's config: what its weights mean something with.
_MEANING = ("peft_type", "r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "fan_in_fan_out")


def linear_layers(model: PreTrainedModel) -> list[str]:
    """The last parts of the names of a model's linear layers, the head left out; sorted."""
    head = model.get_output_embeddings()
    linear = (torch.nn.Linear, Conv1D)
    names = (name for name, module in model.named_modules() if isinstance(module, linear) and module is not head)
    return sorted({name.rpartition(".")[2] for name in names})


def add_adapter(model: PreTrainedModel, lora: LoraConfig, base: str, seed: int) -> PeftModel:
    """`model`, frozen, with a fresh adapter in float32; its first output is that of `model`.

    Args:
        base: what adapter_config.json names as the base.

    Raises:
        EchoError: a target is no linear layer of the model.
    """
    there = linear_layers(model)
    if foreign := [name for name in lora.targets if name not in there]:
        raise EchoError(f"model.lora.targets: the model has no linear layer {foreign[0]}", f"it has {', '.join(there)}")
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


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter."""
    return (folder / ADAPTER_CONFIG).is_file()


def read_adapter_config(folder: Path) -> Row:
    """What adapter_config.json says.

    Raises:
        EchoError: it is missing, is not JSON, is not that of a LoRA adapter, or does not name its target modules.
    """
    path = folder / ADAPTER_CONFIG
    if not path.is_file():
        raise EchoError(f"{escape_unprintable(folder)} has no {ADAPTER_CONFIG}", "name a folder with a LoRA adapter")
    config = read_json(path)
    if config.get("peft_type") != "LORA" or not isinstance(config.get("base_model_name_or_path"), str):
        raise EchoError(f"{escape_unprintable(path)} is not that of a LoRA adapter with a base", "export it again")
    if not config.get("target_modules"):  # peft would take the architecture's default and load a part of the weights
        raise EchoError(
            f"{escape_unprintable(path)} names no target_modules", "name those that the adapter was trained with"
        )
    return config


def read_adapter(folder: Path, model: PreTrainedModel) -> PeftModel:
    """`model`, frozen, with the adapter of a folder; it can be trained further.

    Raises:
        EchoError: the adapter is damaged, or does not fit the model.
    """
    written = read_adapter_config(folder)
    try:
        config = PeftLoraConfig(**{name: value for name, value in written.items() if name != "peft_type"})
        config.inference_mode, config.lora_dropout = False, 0.0
        adapted = _adapted(model, config)
    except (TypeError, ValueError) as error:
        raise _unfit(folder, first_line(error)) from error
    load_adapter(folder, adapted)
    return adapted


def save_adapter(model: PeftModel, folder: Path) -> None:
    """Write adapter_model.safetensors and adapter_config.json, which peft and transformers load."""
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    # Written by Python and not by the library, whose errors do not say that the disk is full.
    (folder / ADAPTER_FILE).write_bytes(safetensors_bytes(tensors, metadata={"format": "pt"}))
    values = {name: sorted(value) if isinstance(value, set) else value for name, value in _settings(model).items()}
    text = json.dumps({**values, "inference_mode": True}, indent=2, sort_keys=True)
    (folder / ADAPTER_CONFIG).write_text(text + "\n", encoding="utf-8")


def save_merged(model: PeftModel, folder: Path) -> None:
    """Write one model of the base and the adapter; `model` is not to be used afterwards."""
    save_whole(model.merge_and_unload(), folder)


def load_adapter(folder: Path, model: PeftModel) -> None:
    """Take the adapter weights of a folder.

    Raises:
        EchoError: they are damaged, or those of another adapter or base.
    """
    written, own = read_adapter_config(folder), _settings(model)
    for name in _MEANING:
        if name in written and written[name] != own.get(name):
            raise _unfit(folder, f"{name} is {written[name]!r} there and {own.get(name)!r} here")
    try:
        state = load_file(folder / ADAPTER_FILE)
    except Exception as error:  # safetensors raises its own type from Rust
        raise EchoError(
            f"cannot load weights from {escape_unprintable(folder / ADAPTER_FILE)}: {first_line(error)}",
            "restore the file from its source",
        ) from error
    shapes = {name: tensor.shape for name, tensor in state.items()}
    expected = get_peft_model_state_dict(model, save_embedding_layers=False)
    differing = shapes.items() ^ {name: tensor.shape for name, tensor in expected.items()}.items()
    if differing:
        raise _unfit(folder, f"{min(name for name, _ in differing)} differs")
    set_peft_model_state_dict(model, state)


def _adapted(model: PreTrainedModel, config: PeftLoraConfig) -> PeftModel:
    base = config.base_model_name_or_path
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about names of transformers that peft uses and the user does not
        adapted = get_peft_model(model, config)
    config.base_model_name_or_path = base  # peft puts the name that the model was loaded under
    return adapted


def _settings(model: PeftModel) -> Row:
    settings: Row = model.peft_config[model.active_adapter].to_dict()
    return settings


def _unfit(folder: Path, why: str) -> EchoError:
    return EchoError(
        f"the adapter in {escape_unprintable(folder)} does not fit the model: {why}", "take the model it was made for"
    )
