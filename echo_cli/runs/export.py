"""Export of a checkpoint as a standalone model folder."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from echo_cli.config.effects import service_effects
from echo_cli.config.model import RANDOM_QWEN3
from echo_cli.config.schema import Config
from echo_cli.errors import EchoError
from echo_cli.files import delete, left_beside, os_errors, unfinished_beside
from echo_cli.models.optimizer_state import SHARDED_STATE, TRAINER_FILE
from echo_cli.models.tinker.policy import STATE_FILE
from echo_cli.models.weight_files import ADAPTER_FILE, SHARDED_WEIGHTS
from echo_cli.runs.directory import open_run
from echo_cli.runs.origin import NO_CONSENT, Consent
from echo_cli.symlinks import make_folder
from echo_cli.text import escape_unprintable

_OF_THE_RUN = {TRAINER_FILE, SHARDED_STATE, "meta.json", STATE_FILE}

# peft's file name, defined here because a full model is exported without peft.
_ADAPTER_CONFIG = "adapter_config.json"


@dataclass(frozen=True)
class Export:
    """Result of an export."""

    folder: Path
    step: int
    kind: Literal["model", "adapter", "merged"]
    files: tuple[str, ...]


def export_checkpoint(
    run_path: Path,
    which: str | int,
    folder: Path,
    *,
    merge: bool = False,
    overrides: Sequence[str] = (),
    consent: Consent = NO_CONSENT,
) -> Export:
    """Write the model of a run's checkpoint ("best", "latest" or a step), with its tokenizer, to `folder`.

    The export has the form in which the model was trained: a full model, or a LoRA adapter that refers to its base.
    With `merge`, the adapter is merged into the base's weights, as one model in float32.

    Args:
        overrides: overrides of the run's config, for loading the base.
        consent: rule by which the Tinker service of a run may be used.

    Raises:
        EchoError: the run or the checkpoint does not exist, is damaged or contains a link, `folder` is a file or not
            empty, there is no adapter to merge, or the base of an adapter cannot be loaded; the disk is full (exit
            code 1).
    """
    run = open_run(run_path)
    config = run.read_config(overrides).granted(consent.grants)
    checkpoint, meta = run.load_checkpoint(which)
    _check_no_link(checkpoint)
    # A run without model.lora also has an adapter if it continued to train an adapter in model.path.
    adapted = config.service is not None or (checkpoint / _ADAPTER_CONFIG).is_file()
    if merge and not adapted:
        raise EchoError(f"--merge has no effect: {escape_unprintable(run_path)} trained a full model", "omit --merge")
    if adapted and not merge:
        made = config.model.path == RANDOM_QWEN3 or config.model.init == "scratch"
        if made:
            message = (
                f"the adapter of {escape_unprintable(run_path)} has a base of random weights, which only the run can "
                "create"
            )
            raise EchoError(message, "export base and adapter as one model with --merge")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise EchoError(f"{escape_unprintable(folder)} already exists", "choose another --output")
    consent.obtain(service_effects(config), run_path)
    unfinished = unfinished_beside(folder)
    with os_errors(folder):
        make_folder(folder.parent)
        for left in left_beside(folder):
            delete(left)
        unfinished.mkdir()
        try:
            _write(config, checkpoint, unfinished, merge=merge)
            if folder.is_dir():
                folder.rmdir()
            unfinished.rename(folder)
        except BaseException:
            delete(unfinished)
            raise
    kind: Literal["model", "adapter", "merged"] = "merged" if merge else "adapter" if adapted else "model"
    return Export(folder, meta["step"], kind, tuple(sorted(entry.name for entry in folder.iterdir())))


def _check_no_link(checkpoint: Path) -> None:
    """Reject a link, whose target, any file of this user, would become part of a model that may be published."""
    for entry in checkpoint.rglob("*"):
        if entry.is_symlink():
            raise EchoError(
                f"{escape_unprintable(entry)} is a link: it may name a file that is not part of the model",
                "replace it by a copy of the file if the checkpoint is yours",
            )


def _copy(checkpoint: Path, folder: Path, leave_out: set[str]) -> None:
    for entry in checkpoint.iterdir():
        if entry.name not in leave_out:
            (shutil.copytree if entry.is_dir() else shutil.copyfile)(entry, folder / entry.name)


def _write_whole(config: Config, checkpoint: Path, folder: Path) -> None:
    """Write the model of a checkpoint that has its weights in parts."""
    from echo_cli.models.hf.loading import require_hf

    require_hf()
    from echo_cli.models.hf.weights import read_causal_lm, save_whole

    model = config.model.model_copy(update={"attention": "sdpa"})
    save_whole(read_causal_lm(checkpoint, model, torch.float32), folder)


def _write(config: Config, checkpoint: Path, folder: Path, *, merge: bool) -> None:
    if config.service is not None:
        _write_from_service(config, checkpoint, folder, merge=merge)
    elif merge:
        _write_merged(config, checkpoint, folder)
    else:
        if (checkpoint / SHARDED_WEIGHTS).is_dir():
            _write_whole(config, checkpoint, folder)
        _copy(checkpoint, folder, leave_out={*_OF_THE_RUN, SHARDED_WEIGHTS})


def _write_from_service(config: Config, checkpoint: Path, folder: Path, *, merge: bool) -> None:
    """Write the adapter of a checkpoint at a Tinker service, or its base with the adapter merged."""
    from echo_cli.models.tinker.archive import write_adapter

    if not merge:
        _copy(checkpoint, folder, leave_out=_OF_THE_RUN)
        write_adapter(config, checkpoint, folder)
        return
    with tempfile.TemporaryDirectory(prefix="echo-cli-") as temporary:
        adapter = Path(temporary)
        _copy(checkpoint, adapter, leave_out=_OF_THE_RUN)
        write_adapter(config, checkpoint, adapter)
        # The service's adapter has its own alpha: it is loaded from its folder, not into one of the config's.
        own = config.model_copy(update={"model": config.model.model_copy(update={"lora": None})})
        _write_merged(own, adapter, folder)


def _write_merged(config: Config, checkpoint: Path, folder: Path) -> None:
    from echo_cli.models.hf.loading import hf_folder, load_hf_model

    # An adapter that was trained further needs its base, not its earlier state.
    path = {} if config.model.lora is not None else {"path": str(checkpoint), "revision": None}
    plain = {"compile": False, "gradient_checkpointing": False, "attention": "sdpa"}
    model = config.model.model_copy(update={**plain, **path})
    with hf_folder(model, config.seed) as base:
        adapted = load_hf_model(base, model, torch.device("cpu"), torch.float32, config.seed, tokenizer_size=0)
    from echo_cli.models.hf.lora import save_merged

    adapted.load(checkpoint)
    save_merged(adapted.model, folder)
    _copy(checkpoint, folder, leave_out={*_OF_THE_RUN, _ADAPTER_CONFIG, ADAPTER_FILE})
