"""A causal LM of transformers from a folder, with every way in which that can fail said in one line."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedConfig, PreTrainedModel

from echo_cli.config.model import ModelConfig
from echo_cli.errors import EchoError, first_line
from echo_cli.text import escape_unprintable

CONFIG_FILE = "config.json"

# Sampling and update have to see the same distribution, and a checkpointed layer the same twice.
_DROPOUT = ("dropout", "pdrop", "layerdrop", "dropout_prob", "jitter_noise")


def read_config(folder: Path, *, trust_remote_code: bool) -> PreTrainedConfig:
    """The architecture in a folder, without dropout.

    Raises:
        EchoError: config.json is missing, or names an architecture that is unknown or that is code of its own.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise EchoError(
            f"{escape_unprintable(folder)} has no {CONFIG_FILE}", "model.path is a folder that save_pretrained wrote"
        )
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
    except Exception as error:  # of half a dozen types, one of them huggingface_hub's own
        text = str(error)
        if "trust_remote_code" in text:
            message = f"{escape_unprintable(folder)} brings Python code of its own"
            raise EchoError(message, "read the code, then set model.trust_remote_code=true") from error
        tip = "another model, or a newer transformers; for the built-in model's own form set model.kind=tiny"
        raise EchoError(
            f"{escape_unprintable(path)}: {escape_unprintable(' '.join(text.split())[:300])}", tip
        ) from error
    for part in (config, config.get_text_config()):
        for name, value in vars(part).items():
            if name.endswith(_DROPOUT) and isinstance(value, (int, float)):
                setattr(part, name, 0.0)
    return config


def read_causal_lm(folder: Path, model: ModelConfig, dtype: torch.dtype) -> PreTrainedModel:
    """The model of a folder that `save_pretrained` wrote, on the CPU.

    Raises:
        EchoError: the architecture is unknown or no causal LM, or weights are missing, incomplete or damaged.
    """
    config = read_config(folder, trust_remote_code=model.trust_remote_code)
    try:
        causal_lm, info = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            attn_implementation=model.attention,
            trust_remote_code=model.trust_remote_code,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # to name them here, and not in a table on stderr
        )
    except Exception as error:  # safetensors raises its own type from Rust
        raise _refused(folder, model, error) from error
    # transformers would go on with random weights in their place.
    if missing := sorted(info["missing_keys"]):
        raise EchoError(
            f"the weights in {escape_unprintable(folder)} are incomplete: {len(missing)} tensors are missing, "
            f"such as {missing[0]}",
            "restore the folder from its source",
        )
    if info["mismatched_keys"]:
        name, there, wanted = min((name, list(a), list(b)) for name, a, b in info["mismatched_keys"])
        raise EchoError(
            f"the weights in {escape_unprintable(folder)} are not those of its {CONFIG_FILE}: {name} is {there}, "
            f"not {wanted}",
            "take all files from the same source",
        )
    return _prepared(causal_lm)


def random_causal_lm(folder: Path, model: ModelConfig, dtype: torch.dtype, seed: int) -> PreTrainedModel:
    """A model of the architecture in a folder with weights of its own initialisation, on the CPU.

    Raises:
        EchoError: the architecture is unknown or no causal LM.
    """
    config = read_config(folder, trust_remote_code=model.trust_remote_code)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            causal_lm = AutoModelForCausalLM.from_config(
                config, attn_implementation=model.attention, trust_remote_code=model.trust_remote_code
            )
        except (ValueError, ImportError, KeyError) as error:
            raise _refused(folder, model, error) from error
    return _prepared(causal_lm.to(dtype))


def save_whole(causal_lm: PreTrainedModel, folder: Path) -> None:
    """Write what `from_pretrained` loads; who may read the folder's other files may read its weights.

    Raises:
        OSError: the disk is full, or fails; with its number, which safetensors has in its text alone.
    """
    try:
        causal_lm.save_pretrained(folder)
    except SafetensorError as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
    for file in folder.glob("*.safetensors"):
        shutil.copymode(folder / CONFIG_FILE, file)  # safetensors makes them readable to their owner alone


def _refused(folder: Path, model: ModelConfig, error: Exception) -> EchoError:
    text = first_line(error)
    if "Unrecognized configuration class" in text:
        return EchoError(f"{escape_unprintable(folder)} is no causal LM", "name a decoder-only language model")
    if isinstance(error, ImportError) and model.attention == "flash_attention_2":
        return EchoError(f"model.attention {model.attention} is not available: {text}", "set model.attention=sdpa")
    return EchoError(
        f"cannot load weights from {escape_unprintable(folder)}: {text}", "restore the folder from its source"
    )


def _prepared(causal_lm: PreTrainedModel) -> PreTrainedModel:
    for module in causal_lm.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    generation: Any = getattr(causal_lm, "generation_config", None)
    if generation is not None:
        try:
            generation.validate(strict=True)
        except ValueError:  # nothing here generates with it, and save_pretrained would refuse to write it
            causal_lm.generation_config = GenerationConfig.from_model_config(causal_lm.config)
    return causal_lm
