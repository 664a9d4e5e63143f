"""Where a Hugging Face model lies, and the model that is loaded from there, checked before a run depends on it."""

from __future__ import annotations

import errno
import importlib.util
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from echo_cli.config.model import RANDOM_QWEN3, ModelConfig
from echo_cli.errors import EchoError, first_line
from echo_cli.files import os_errors
from echo_cli.text import escape_unprintable

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from echo_cli.models.hf.model import HfModel

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_TEXT_FILES = ("*.json", "*.jinja", "*.txt", "*.model")

# Of the same computation in two ways, |a - b| / |b|: what rounding does, far below what a wrong mask would.
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1}


@contextmanager
def hf_folder(model: ModelConfig, seed: int, *, weights: bool = True) -> Iterator[Path]:
    """The folder of `model.path`: itself, a snapshot of the hub, or a random model's that is gone after the block.

    Args:
        weights: False fetches what a hub id has but for its weights.

    Raises:
        EchoError: the `hf` extra is not installed, there is no such folder, or the hub does not have it or cannot be
            reached.
    """
    require_hf()
    if model.path == RANDOM_QWEN3:
        from echo_cli.models.hf.random_qwen3 import make_random_qwen3

        with tempfile.TemporaryDirectory(prefix="echo-cli-") as folder:
            with os_errors(Path(folder)):
                make_random_qwen3(Path(folder), seed)
            yield Path(folder)
        return
    path = Path(model.path).expanduser()
    if path.is_dir():
        yield path
    elif not _HUB_ID.fullmatch(model.path) or path.exists() or (len(path.parts) > 1 and path.parent.is_dir()):
        raise EchoError(
            f"no model folder {escape_unprintable(path)}", "model.path is a folder with config.json, or a hub id"
        )
    else:
        yield _snapshot(model, weights)


def load_hf_model(
    folder: Path, model: ModelConfig, device: torch.device, dtype: torch.dtype, seed: int, tokenizer_size: int
) -> HfModel:
    """The model of a folder of `hf_folder`, on `device`: whole, with a fresh adapter, or with the folder's own.

    Args:
        dtype: what matrix products are computed in. What is trained is float32; a frozen base has this dtype.
        tokenizer_size: tokens of the tokenizer that the model is used with.

    Raises:
        EchoError: a file is missing, incomplete or damaged; the architecture is unknown or is not computed as
            `LanguageModel` says; the tokenizer has more tokens than the model; a LoRA target matches nothing.
    """
    require_hf()
    from echo_cli.models.hf.lora import add_adapter, is_adapter, read_adapter, read_adapter_config
    from echo_cli.models.hf.model import HfModel
    from echo_cli.models.hf.weights import random_causal_lm, read_causal_lm

    if model.attention == "flash_attention_2" and dtype == torch.float32:
        tip = "set model.attention=sdpa, or model.dtype=bfloat16 on a GPU that has it"
        raise EchoError("model.attention flash_attention_2 does not compute in float32, and this run does", tip)
    if is_adapter(folder):
        if model.init == "scratch" or model.lora is not None:
            key = "init: scratch" if model.init == "scratch" else "lora"
            tip = "train that adapter further, or name its base in model.path"
            raise EchoError(f"model.{key} has no effect: {escape_unprintable(folder)} holds an adapter", tip)
        base = str(read_adapter_config(folder)["base_model_name_or_path"])
        if base == RANDOM_QWEN3:
            raise EchoError(
                f"the base of the adapter in {escape_unprintable(folder)} was random weights, made on the spot",
                "export it with --merge",
            )
        with hf_folder(model.model_copy(update={"path": base, "revision": None}), seed) as base_folder:
            whole_or_adapted: PreTrainedModel | PeftModel = read_adapter(
                folder, read_causal_lm(base_folder, model, dtype)
            )
    else:
        held = torch.float32 if model.lora is None else dtype
        if model.init == "scratch":
            causal_lm = random_causal_lm(folder, model, held, seed)
        else:
            causal_lm = read_causal_lm(folder, model, held)
        if model.lora is None:
            whole_or_adapted = causal_lm
        else:
            local = model.path != RANDOM_QWEN3 and Path(model.path).expanduser().is_dir()
            base = str(folder.resolve()) if local else model.path
            whole_or_adapted = add_adapter(causal_lm, model.lora, base, seed)
    loaded = HfModel(whole_or_adapted, model, dtype).to(device)
    embedded = loaded.causal_lm.get_input_embeddings().weight.shape[0]
    if tokenizer_size > min(embedded, loaded.vocab_size):
        raise EchoError(
            f"{escape_unprintable(model.path)}: the tokenizer has {tokenizer_size} tokens and the model {embedded}",
            "take both from the same source",
        )
    _check_seam(loaded, device)
    if model.compile:
        _check_compiler(device)
    return loaded


def _snapshot(model: ModelConfig, weights: bool) -> Path:
    """The hub's files of a model, fetched if they are not here yet."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    patterns = [*_TEXT_FILES, *(["*.safetensors"] if weights else []), *(["*.py"] if model.trust_remote_code else [])]
    name = escape_unprintable(model.path)
    try:
        return Path(snapshot_download(model.path, revision=model.revision, allow_patterns=patterns))
    except GatedRepoError as error:
        raise EchoError(
            f"{name} asks for an agreement on the hub", "accept it there and log in: hf auth login"
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        tip = "model.path is a folder with config.json, or a hub id; a private model needs hf auth login"
        raise EchoError(f"no model folder {name}, and the hub has no such model", tip) from error
    except RevisionNotFoundError as error:
        raise EchoError(
            f"{name} has no revision {escape_unprintable(str(model.revision))} on the hub", "see its branches"
        ) from error
    except Exception as error:  # its HTTP client's errors share no base, and what answers may be no hub
        if isinstance(error, OSError) and (error.filename is not None or error.errno in _DISK_FULL):
            message = (
                f"cannot fetch {name}: cannot write {escape_unprintable(constants.HF_HUB_CACHE)}: {error.strerror}"
            )
            tip, exit_code = "free some space, or name another place in HF_HOME", 1 if error.errno in _DISK_FULL else 2
            raise EchoError(message, tip, exit_code=exit_code) from error
        tip = "check the network and HF_ENDPOINT, or download the model elsewhere and name its folder in model.path"
        said = escape_unprintable(first_line(error))
        raise EchoError(
            f"cannot fetch {name}: the hub cannot be reached, or does not answer as one ({said})", tip
        ) from error


@torch.no_grad()
def _check_seam(model: HfModel, device: torch.device) -> None:
    """See that logits are `head` of the final hidden states, and that `extend` computes what a whole pass does.

    Raises:
        EchoError: they are not: softcaps, scales, layers that are not attention or look ahead.
    """
    ids_BT = (torch.arange(2 * 8, device=device).view(2, 8) * 7 + 1) % model.vocab_size
    name = type(model.causal_lm).__name__
    # What comes after the head shows on logits a thousand times as large.
    hook = model.causal_lm.get_output_embeddings().register_forward_hook(lambda _, __, output: 1e3 * output)
    try:
        hidden_BTH = model(ids_BT)
        with model.holding_weights():
            logits_BTV = model.causal_lm(input_ids=ids_BT, use_cache=False).logits
        if not _close(logits_BTV, model.head(hidden_BTH), model.dtype):
            raise EchoError(f"{name} changes the logits after its head, by a cap or a scale", "name another model")
    finally:
        hook.remove()
    cache, starts_B = model.new_cache(2), torch.tensor([0, 0], device=device)
    try:
        parts = [model.extend(ids_BT[:, :3], starts_B, cache), model.extend(ids_BT[:, 3:], starts_B + 3, cache)]
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise EchoError(f"{name} cannot go on from a KV cache: {first_line(error)}", "name another model") from error
    if not _close(torch.cat(parts, dim=1), hidden_BTH, model.dtype):
        raise EchoError(f"{name} is not a causal model with a KV cache in all layers", "name another model")


def _close(one: Tensor, other: Tensor, dtype: torch.dtype) -> bool:
    one, other = one.double(), other.double()
    return bool((one - other).norm() <= _TOLERANCE[dtype] * other.norm())


def _check_compiler(device: torch.device) -> None:
    """torch.compile fails at its first call, deep in a run, where its compiler is missing."""
    try:
        torch.compile(torch.square)(torch.ones(4, device=device))
    except Exception as error:  # its errors share no base
        raise EchoError(f"torch.compile does not work here: {first_line(error)}", "set model.compile=false") from error


def require_hf(what: str = "model.kind: hf") -> None:
    """Make sure that the extra is here, and that its libraries leave the terminal to us.

    Args:
        what: what needs it, for the message.

    Raises:
        EchoError: a library of it is not installed.
    """
    for name in ("transformers", "peft", "huggingface_hub"):
        if importlib.util.find_spec(name) is None:
            raise EchoError(f"{what} needs {name}, which is not installed", "pip install 'echo-cli[hf]'")
    from huggingface_hub.utils import disable_progress_bars
    from transformers.utils import logging

    disable_progress_bars()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
