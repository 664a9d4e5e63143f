"""Locating and loading Hugging Face models, with checks before a run depends on them."""

from __future__ import annotations

import errno
import importlib.util
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from echo_cli.config.model import RANDOM_QWEN3, ModelConfig, is_hub_id
from echo_cli.errors import EchoError, first_line, missing_package
from echo_cli.files import os_errors
from echo_cli.models.architecture import hub_folder
from echo_cli.models.weight_files import ADAPTER_FILE, WEIGHTS, WEIGHTS_INDEX, shards
from echo_cli.terminal import put
from echo_cli.text import escape_unprintable

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from echo_cli.models.hf.model import HfModel

TOKENIZER_CONFIG_FILE, GGUF = "tokenizer_config.json", ".gguf"

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_TEXT_FILES = ("*.json", "*.jinja", "*.txt", "*.model")

# Tolerated |a - b| / |b| of one computation done in two ways: above rounding errors, far below a wrong mask's error.
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1}


class NotFetched(EchoError):
    """A hub model that this machine has not fetched, where nothing may be fetched."""


@contextmanager
def hf_folder(model: ModelConfig, seed: int, *, weights: bool = True) -> Iterator[Path]:
    """Yield the folder of `model.path`: the path, a hub snapshot, or a random model's folder, deleted after the block.

    A hub snapshot on this machine is used as it is; only with `model.fetch: all` is the hub asked for a newer one. A
    line on stderr says what is fetched, and whose Python code may run.

    Args:
        weights: whether the weights of a hub model are needed.

    Raises:
        NotFetched: the hub model has no local snapshot, and `model.fetch` does not allow to fetch it.
        EchoError: the `hf` extra is not installed, the folder does not exist, or the hub does not have the model or is
            unreachable.
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
    if path.suffix == GGUF or (any(path.glob(f"*{GGUF}")) and not any(path.glob("*.json"))):
        message = f"model.path: {escape_unprintable(path)} is in the GGUF format, which cannot be trained"
        raise EchoError(message, "set model.path to the original model: a folder with config.json or a hub id")
    if path.is_dir():
        yield _announced(path, model)
    elif not is_hub_id(model.path):
        raise EchoError(
            f"no model folder at {escape_unprintable(path)}", "set model.path to a folder with config.json or a hub id"
        )
    else:
        snapshot = None if model.fetch == "all" else hub_folder(model.path, model.revision or "main")
        if snapshot is None or not _is_complete(snapshot, model, weights):
            if model.fetch == "never":
                raise _not_fetched(model)
            snapshot = _snapshot(model, weights)
        yield _announced(snapshot, model)


def _is_complete(snapshot: Path, model: ModelConfig, weights: bool) -> bool:
    """Return whether a hub snapshot has the files that are needed: an interrupted download leaves some of them."""
    if not (snapshot / TOKENIZER_CONFIG_FILE).is_file():
        return False
    if model.trust_remote_code and not any(snapshot.glob("*.py")):
        return False
    if not weights or any((snapshot / name).is_file() for name in (ADAPTER_FILE, WEIGHTS)):
        return True
    index = snapshot / WEIGHTS_INDEX
    return index.is_file() and all((snapshot / name).is_file() for name in shards(index))


def _not_fetched(model: ModelConfig) -> NotFetched:
    name, at = escape_unprintable(model.path), "" if model.revision is None else f" --revision {model.revision}"
    return NotFetched(
        f"the hub model {name} is not on this machine, and nothing here is fetched unasked",
        f"fetch it with `hf download {name}{escape_unprintable(at)}`, or with --fetch-model where the command has it",
    )


def _announced(folder: Path, model: ModelConfig) -> Path:
    """Return the folder, after a line on stderr if the Python code in it may run."""
    if model.trust_remote_code and any(folder.glob("*.py")):
        put(f"the Python code in {folder} runs: --trust-remote-code", err=True)
    return folder


def load_hf_model(
    folder: Path, model: ModelConfig, device: torch.device, dtype: torch.dtype, seed: int, tokenizer_size: int
) -> HfModel:
    """Load the model in a folder from `hf_folder` onto `device`: whole, with a fresh adapter, or with its own adapter.

    Args:
        dtype: dtype of matrix products and of a frozen base; trained weights are float32.
        tokenizer_size: number of tokens of the tokenizer that the model is used with.

    Raises:
        EchoError: a file is missing, incomplete or damaged; the architecture is unknown or does not compute what
            `LanguageModel` specifies; the tokenizer has more tokens than the model; a LoRA target matches nothing.
    """
    loaded = _assembled(folder, model, dtype, seed, tokenizer_size).to(device)
    _check_seam(loaded, device)
    if model.compile:
        _check_compiler(device)
    return loaded


def check_hf_model(folder: Path, model: ModelConfig, dtype: torch.dtype, seed: int, tokenizer_size: int) -> None:
    """Check what `load_hf_model` checks before it reads weights; of a local folder's weights, check names and shapes.

    Raises:
        NotFetched: the base of the folder's adapter is a hub model without a local snapshot.
        EchoError: as in `load_hf_model`.
    """
    with torch.device("meta"):
        _assembled(folder, model, dtype, seed, tokenizer_size, empty=True)


def _assembled(
    folder: Path, model: ModelConfig, dtype: torch.dtype, seed: int, tokenizer_size: int, *, empty: bool = False
) -> HfModel:
    """Return the model of a folder on the CPU, or with `empty` on the meta device, without reading weights."""
    require_hf()
    from echo_cli.models.hf.lora import add_adapter, is_adapter, read_adapter, read_adapter_config
    from echo_cli.models.hf.model import HfModel
    from echo_cli.models.hf.weights import empty_causal_lm, random_causal_lm, read_causal_lm

    read = empty_causal_lm if empty else read_causal_lm
    if model.attention == "flash_attention_2" and dtype == torch.float32:
        tip = "set model.attention=sdpa, or model.dtype=bfloat16 on a GPU that supports it"
        raise EchoError("model.attention=flash_attention_2 does not support float32, this run's dtype", tip)
    if is_adapter(folder):
        if model.init == "scratch" or model.lora is not None:
            key = "init: scratch" if model.init == "scratch" else "lora"
            tip = f"omit model.{key} to train the adapter further, or set model.path to the adapter's base"
            raise EchoError(f"model.{key} has no effect: {escape_unprintable(folder)} contains an adapter", tip)
        base = str(read_adapter_config(folder)["base_model_name_or_path"])
        if base == RANDOM_QWEN3:
            raise EchoError(
                f"the base of the adapter in {escape_unprintable(folder)} is {RANDOM_QWEN3}, whose random weights were "
                "not kept",
                "export the run with --merge",
            )
        # The person named the adapter, and the adapter its base: a base is fetched only if that was asked for.
        fetch = "all" if model.fetch == "all" else "never"
        with hf_folder(model.model_copy(update={"path": base, "revision": None, "fetch": fetch}), seed) as base_folder:
            if is_adapter(base_folder):
                raise EchoError(
                    f"the base of the adapter in {escape_unprintable(folder)} is another adapter",
                    "merge the other adapter into its own base",
                )
            whole_or_adapted: PreTrainedModel | PeftModel = read_adapter(folder, read(base_folder, model, dtype))
    else:
        held = torch.float32 if model.lora is None else dtype
        if model.init == "scratch":
            causal_lm = random_causal_lm(folder, model, held, seed)
        else:
            causal_lm = read(folder, model, held)
        if model.lora is None:
            whole_or_adapted = causal_lm
        else:
            local = model.path != RANDOM_QWEN3 and Path(model.path).expanduser().is_dir()
            base = str(folder.resolve()) if local else model.path
            whole_or_adapted = add_adapter(causal_lm, model.lora, base, seed)
    loaded = HfModel(whole_or_adapted, model, dtype)
    embedded = loaded.causal_lm.get_input_embeddings().weight.shape[0]
    if tokenizer_size > min(embedded, loaded.vocab_size):
        raise EchoError(
            f"{escape_unprintable(model.path)}: the tokenizer has {tokenizer_size} tokens and the model {embedded}",
            "use the tokenizer and the model from the same source",
        )
    return loaded


def _snapshot(model: ModelConfig, weights: bool) -> Path:
    """Return the local snapshot of a hub model, downloading missing files."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    patterns = [*_TEXT_FILES, *(["*.safetensors"] if weights else []), *(["*.py"] if model.trust_remote_code else [])]
    name = escape_unprintable(model.path)
    if not _is_offline():
        put(f"fetching {model.path} from {constants.ENDPOINT}", err=True)
    constants.HF_HUB_OFFLINE = _is_offline()
    try:
        return Path(snapshot_download(model.path, revision=model.revision, allow_patterns=patterns))
    except GatedRepoError as error:
        raise EchoError(
            f"{name} is gated on the hub", "accept its terms on the model's page, then log in: hf auth login"
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        tip = "set model.path to a folder with config.json or a hub id; for a private model, log in: hf auth login"
        raise EchoError(f"{name} is neither a model folder nor a model on the hub", tip) from error
    except RevisionNotFoundError as error:
        raise EchoError(
            f"{name} has no revision {escape_unprintable(str(model.revision))} on the hub",
            "choose one of its branches, tags or commits",
        ) from error
    except Exception as error:  # the HTTP client's errors share no base class, and the server may not be a hub
        if isinstance(error, OSError) and (error.filename is not None or error.errno in _DISK_FULL):
            message = (
                f"cannot fetch {name}: cannot write {escape_unprintable(constants.HF_HUB_CACHE)}: {error.strerror}"
            )
            tip, exit_code = "free some space or set HF_HOME to another folder", 1 if error.errno in _DISK_FULL else 2
            raise EchoError(message, tip, exit_code=exit_code) from error
        tip = "check the network and HF_ENDPOINT, or download the model elsewhere and set model.path to its folder"
        said = escape_unprintable(first_line(error))
        raise EchoError(
            f"cannot fetch {name}: the hub is unreachable or does not respond like a hub ({said})", tip
        ) from error
    finally:
        constants.HF_HUB_OFFLINE = True


def _is_offline() -> bool:
    """Return whether the user has switched off all requests to the hub."""
    said = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    return said.upper() in ("1", "ON", "YES", "TRUE")


@torch.no_grad()
def _check_seam(model: HfModel, device: torch.device) -> None:
    """Check that logits equal `head` of the final hidden states, and that `extend` equals a whole forward pass.

    Raises:
        EchoError: a check fails, for example with softcaps, logit scales, or layers without causal attention.
    """
    ids_BT = (torch.arange(2 * 8, device=device).view(2, 8) * 7 + 1) % model.vocab_size
    name = type(model.causal_lm).__name__
    # Scaling the logits by a thousand reveals any operation after the head.
    hook = model.causal_lm.get_output_embeddings().register_forward_hook(lambda _, __, output: 1e3 * output)
    try:
        hidden_BTH = model(ids_BT)
        with model.holding_weights():
            logits_BTV = model.causal_lm(input_ids=ids_BT, use_cache=False).logits
        if not _close(logits_BTV, model.head(hidden_BTH), model.dtype):
            raise EchoError(f"{name} changes the logits after its head, by a cap or a scale", "choose another model")
    finally:
        hook.remove()
    cache, starts_B = model.new_cache(2), torch.tensor([0, 0], device=device)
    try:
        parts = [model.extend(ids_BT[:, :3], starts_B, cache), model.extend(ids_BT[:, 3:], starts_B + 3, cache)]
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise EchoError(
            f"{name} cannot continue from a KV cache: {first_line(error)}", "choose another model"
        ) from error
    if not _close(torch.cat(parts, dim=1), hidden_BTH, model.dtype):
        raise EchoError(f"{name} is not a causal model with a KV cache in all layers", "choose another model")


def _close(one: Tensor, other: Tensor, dtype: torch.dtype) -> bool:
    one, other = one.double(), other.double()
    return bool((one - other).norm() <= _TOLERANCE[dtype] * other.norm())


def _check_compiler(device: torch.device) -> None:
    """Run torch.compile once: without a compiler it would fail only at its first call, deep in a run."""
    try:
        torch.compile(torch.square)(torch.ones(4, device=device))
    except Exception as error:  # the errors share no base class
        raise EchoError(f"torch.compile fails here: {first_line(error)}", "set model.compile=false") from error


def require_hf(what: str = "model.kind: hf") -> None:
    """Check that the `hf` extra is installed, silence its libraries' progress bars and logs, and close the hub to them.

    The libraries ask the hub for whatever a model's files name: another model's code, a converted file, the kernels of
    a layer. In this process only `_snapshot` reaches the hub.

    Args:
        what: the feature that needs the extra, for the message.

    Raises:
        EchoError: a library of the extra is not installed.
    """
    for name in ("transformers", "peft", "huggingface_hub"):
        if importlib.util.find_spec(name) is None:
            raise missing_package(what, name, "hf")
    os.environ["USE_HUB_KERNELS"] = "NO"  # read when transformers is imported
    from huggingface_hub import constants
    from huggingface_hub.utils import disable_progress_bars
    from transformers.utils import logging

    constants.HF_HUB_OFFLINE = True

    disable_progress_bars()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
