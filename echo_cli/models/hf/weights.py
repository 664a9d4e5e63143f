"""Loading of a transformers causal LM from a folder, with a one-line error for every failure."""

from __future__ import annotations

import copy
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedConfig, PreTrainedModel

from echo_cli.config.model import ModelConfig
from echo_cli.errors import EchoError, first_line
from echo_cli.files import read_json
from echo_cli.models.device import device_memory
from echo_cli.models.distributed.shards import shard_shapes, whole_tensors
from echo_cli.models.weight_files import SHARDED_WEIGHTS, check_text_files, count_elements, folder_shapes
from echo_cli.text import escape_unprintable

CONFIG_FILE = "config.json"
TRUST_TIP = "review the code, then add --trust-remote-code to the command: in a file the key has no effect"

# Dropout is off: rollout and update need the same distribution, and so do both passes of a checkpointed layer.
_DROPOUT = ("dropout", "pdrop", "layerdrop", "dropout_prob", "jitter_noise")

# Keys of config.json that count modules or are widths. Published models have at most 200 layers, 30,000 experts in all
# of them together, and a vocabulary of 300,000.
_LAYERS = re.compile(r"(^|_)(layers?|blocks|depths?)$")
_PER_LAYER = re.compile(r"(^|_)(experts|heads|codebooks|groups)$")
_WIDTHS = re.compile(r"(^|_)(size|dim|width|embd|model|inner)$")
_FRACTIONS = re.compile(r"(rotary_factor|rotary_pct)$")
_MOST_LAYERS, _MOST_MODULES, _MOST_WIDTH = 2048, 65_536, 2**21
_MOST_TABLE_BYTES = 2**28


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
    check_config_file(folder)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
    except Exception as error:  # half a dozen types, one of them huggingface_hub's own
        text = str(error)
        if "trust_remote_code" in text:
            message = f"{escape_unprintable(folder)} contains Python code that the model needs"
            raise EchoError(message, TRUST_TIP) from error
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
    _check_parameters(folder, config)
    # Without values first: transformers would allocate tables and tensors of any size that config.json describes.
    try:
        with torch.device("meta"):
            _check_tables(folder, _drawn(config, model))
    except (ValueError, ImportError, KeyError) as error:
        raise _refused(folder, model, error) from error
    causal_lm = _assembled(folder, copy.deepcopy(config), model, dtype, empty=True)
    return _prepared(causal_lm if empty else _assembled(folder, config, model, dtype, empty=False))


def _assembled(
    folder: Path, config: PreTrainedConfig, model: ModelConfig, dtype: torch.dtype, *, empty: bool
) -> PreTrainedModel:
    options: dict[str, Any] = {
        "config": config,
        "dtype": dtype,
        "attn_implementation": model.attention,
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,  # reported below instead of in a table on stderr
        "device_map": "meta" if empty else None,
    }
    own = {"trust_remote_code": model.trust_remote_code, "use_safetensors": True, "local_files_only": True}
    try:
        if (folder / SHARDED_WEIGHTS).is_dir():
            with torch.device("meta"):
                kind = type(_drawn(config, model))
            whole = whole_tensors(folder / SHARDED_WEIGHTS, empty=empty)
            causal_lm, info = kind.from_pretrained(None, state_dict=whole, **options)
        else:
            causal_lm, info = AutoModelForCausalLM.from_pretrained(folder, **options, **own)
    except EchoError:
        raise
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
    loaded: PreTrainedModel = causal_lm
    return loaded


def check_config_file(folder: Path) -> None:
    """Check the sizes in a folder's config.json, by which transformers makes lists, tables and modules.

    Raises:
        EchoError: the file is not a JSON object, or describes more layers, experts or heads than any model has, or a
            width above two million.
    """
    path = folder / CONFIG_FILE
    check_text_files(folder, [CONFIG_FILE])
    sizes = list(_sizes(read_json(path)))
    layers = max(1, *(min(size, _MOST_LAYERS) for key, size in sizes if _LAYERS.search(key)), 1)
    limits = {_LAYERS: _MOST_LAYERS, _PER_LAYER: _MOST_MODULES / layers, _WIDTHS: _MOST_WIDTH, _FRACTIONS: 1}
    for kind, most in limits.items():
        if found := next(((key, size) for key, size in sizes if kind.search(key) and size > most), None):
            raise EchoError(
                f"{escape_unprintable(path)}: {escape_unprintable(found[0])} is {found[1]:.15g}, more than any model "
                "has",
                "restore the folder from its source",
            )


def _sizes(values: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield the numbers of a config by key, with the numbers of its parts."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _sizes(value)
        elif isinstance(value, (int, float)):
            yield key, value


def _check_parameters(folder: Path, config: PreTrainedConfig) -> None:
    """Check that a folder's weights can be those of all layers in its config.json, each as wide as the hidden state.

    Raises:
        EchoError: a file of weights is damaged, or the weights have too few values.
    """
    sharded = folder / SHARDED_WEIGHTS
    shapes = shard_shapes(sharded) if sharded.is_dir() else folder_shapes(folder)
    text = config.get_text_config()
    layers, width = (getattr(text, name, None) for name in ("num_hidden_layers", "hidden_size"))
    if shapes is None or not isinstance(layers, int) or not isinstance(width, int):
        return
    if layers * width > (there := count_elements(shapes)):
        raise EchoError(
            f"the weights in {escape_unprintable(folder)} do not match {CONFIG_FILE}: they have {there} values, and "
            f"{layers} layers of width {width} have more",
            "use files from a single source",
        )


def _check_tables(folder: Path, causal_lm: PreTrainedModel) -> None:
    """Check that the tables that a model computes at its start, such as positions, are no larger than its weights.

    Raises:
        EchoError: they are, and larger than 256 MiB.
    """
    tables, weights = (_bytes(tensors) for tensors in (causal_lm.buffers(), causal_lm.parameters()))
    if tables > max(weights, _MOST_TABLE_BYTES):
        raise EchoError(
            f"{escape_unprintable(folder / CONFIG_FILE)} describes tables of {tables / 1e9:.3g} GB, more than the "
            f"weights' {weights / 1e9:.3g}",
            "restore the folder from its source",
        )


def _check_memory(folder: Path, causal_lm: PreTrainedModel) -> None:
    """Check that this machine's memory can hold a model that is not read from a file.

    Raises:
        EchoError: it cannot.
    """
    needed = _bytes(causal_lm.parameters()) + _bytes(causal_lm.buffers())
    memory = device_memory(torch.device("cpu")).total
    if needed > memory:
        raise EchoError(
            f"{escape_unprintable(folder / CONFIG_FILE)} describes a model of {needed / 1e9:.3g} GB, more than this "
            f"machine's memory of {memory / 1e9:.3g}",
            "choose a smaller architecture",
        )


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


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
        try:
            with torch.device("meta"):
                _check_memory(folder, _drawn(config, model))
            torch.manual_seed(seed)
            return _prepared(_drawn(config, model).to(dtype))
        except (ValueError, ImportError, KeyError) as error:
            raise _refused(folder, model, error) from error


def _drawn(config: PreTrainedConfig, model: ModelConfig) -> PreTrainedModel:
    """Create a model with random weights; within `torch.device("meta")`, without memory."""
    causal_lm: PreTrainedModel = AutoModelForCausalLM.from_config(
        copy.deepcopy(config), attn_implementation=model.attention, trust_remote_code=model.trust_remote_code
    )
    return causal_lm


def save_whole(causal_lm: PreTrainedModel, folder: Path, weights: Mapping[str, Any] | None = None) -> None:
    """Write the model in the format of `from_pretrained`; the weights get the other files' read permissions.

    Args:
        weights: the weights to write, by name, in place of the model's own; none, if they are written elsewhere.

    Raises:
        OSError: the disk is full or fails. It has an errno, which safetensors gives only in its message.
    """
    try:
        causal_lm.save_pretrained(folder, state_dict=None if weights is None else dict(weights))
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
