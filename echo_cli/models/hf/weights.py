"""Loading of a transformers causal LM from a folder, with a one-line error for every failure."""

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

# Dropout is off: rollout and update need the same distribution, and so do both passes of a checkpointed layer.
_DROPOUT = ("dropout", "pdrop", "layerdrop", "dropout_prob", "jitter_noise")


def read_config(folder: Path, *, trust_remote_code: bool) -> PreTrainedConfig:
    """Read the config.json of a folder, with dropout set to 0.

    Raises:
        EchoError: config.json is missing, or names an unknown architecture or one that needs untrusted code.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise EchoError(
            f"{escape_unprintable(folder)} has no {CONFIG_FILE}",
            "set model.path to a folder written by save_pretrained",
        )
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
    except Exception as error:  # half a dozen types, one of them huggingface_hub's own
        text = str(error)
        if "trust_remote_code" in text:
            message = f"{escape_unprintable(folder)} contains Python code that the model needs"
            raise EchoError(message, "review the code, then set model.trust_remote_code=true") from error
        tip = "choose another model or a newer transformers; for a folder of the built-in model, set model.kind=tiny"
        raise EchoError(
            f"{escape_unprintable(path)}: {escape_unprintable(' '.join(text.split())[:300])}", tip
        ) from error
    for part in (config, config.get_text_config()):
        for name, value in vars(part).items():
            if name.endswith(_DROPOUT) and isinstance(value, (int, float)):
                setattr(part, name, 0.0)
    return config


def read_causal_lm(folder: Path, model: ModelConfig, dtype: torch.dtype, *, empty: bool = False) -> PreTrainedModel:
    """Load the model of a folder that `save_pretrained` wrote, on the CPU.

    Args:
        empty: whether to leave the model on the meta device: of the weights, only names and shapes are read.

    Raises:
        EchoError: the architecture is unknown or not a causal LM, or the weights are missing, incomplete or damaged.
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
            ignore_mismatched_sizes=True,  # reported below instead of in a table on stderr
            device_map="meta" if empty else None,
        )
    except Exception as error:  # safetensors raises its own type from Rust
        raise _refused(folder, model, error) from error
    # transformers would continue with random weights instead.
    if missing := sorted(info["missing_keys"]):
        raise EchoError(
            f"the weights in {escape_unprintable(folder)} lack {len(missing)} of the model's tensors, "
            f"such as {missing[0]}",
            "restore the folder from its source",
        )
    if info["mismatched_keys"]:
        name, there, wanted = min((name, list(a), list(b)) for name, a, b in info["mismatched_keys"])
        raise EchoError(
            f"the weights in {escape_unprintable(folder)} do not match {CONFIG_FILE}: {name} has the shape {there}, "
            f"not {wanted}",
            "use files from a single source",
        )
    return _prepared(causal_lm)


def empty_causal_lm(folder: Path, model: ModelConfig, dtype: torch.dtype) -> PreTrainedModel:
    """Create the model of a folder on the meta device, with the checks of `read_causal_lm`.

    A hub snapshot may be fetched without weights, so only those of a folder that the user names are checked.

    Raises:
        EchoError: as in `read_causal_lm`.
    """
    if Path(model.path).expanduser().is_dir():
        with torch.device("cpu"):  # transformers refuses to load within `torch.device("meta")`
            return read_causal_lm(folder, model, dtype, empty=True)
    with torch.device("meta"):
        return random_causal_lm(folder, model, dtype, 0)


def random_causal_lm(folder: Path, model: ModelConfig, dtype: torch.dtype, seed: int) -> PreTrainedModel:
    """Create a model of a folder's architecture with its own random initialisation, on the CPU.

    Raises:
        EchoError: the architecture is unknown or not a causal LM.
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
    """Write the model in the format of `from_pretrained`; the weights get the other files' read permissions.

    Raises:
        OSError: the disk is full or fails. It has an errno, which safetensors gives only in its message.
    """
    try:
        causal_lm.save_pretrained(folder)
    except SafetensorError as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
    for file in folder.glob("*.safetensors"):
        shutil.copymode(folder / CONFIG_FILE, file)  # safetensors makes them readable by their owner only


def _refused(folder: Path, model: ModelConfig, error: Exception) -> EchoError:
    text = first_line(error)
    if "Unrecognized configuration class" in text:
        return EchoError(f"{escape_unprintable(folder)} is not a causal LM", "choose a decoder-only language model")
    if isinstance(error, ImportError) and model.attention == "flash_attention_2":
        return EchoError(f"model.attention={model.attention} is not available: {text}", "set model.attention=sdpa")
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
        except ValueError:  # it is never used here, but save_pretrained would reject it
            causal_lm.generation_config = GenerationConfig.from_model_config(causal_lm.config)
    return causal_lm
