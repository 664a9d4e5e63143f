"""Whether the ranks of a run have a copy of the model each, or split one model among them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

import torch

from echo_cli.config.model import DistributedConfig
from echo_cli.config.schema import Config
from echo_cli.errors import EchoError
from echo_cli.models.architecture import architecture_of
from echo_cli.models.device import DeviceChoice, device_memory
from echo_cli.models.memory import Dtype, predict_memory

REQUESTED = "as requested"
"""Reason of a strategy that the config names."""


@dataclass(frozen=True)
class Strategy:
    """How the model is placed on the ranks, and why, as text for the user."""

    name: Literal["ddp", "fsdp"]
    """ddp: a copy on every rank; fsdp: weights, gradients and optimizer state are split over the ranks."""
    reason: str


def choose_strategy(config: Config, choice: DeviceChoice, ranks: int, usable: int | None) -> Strategy:
    """Choose the strategy of a run by its config or, with `auto`, by the predicted memory of a rank.

    Args:
        usable: usable memory of the rank that has the least, bytes; None if it is unknown.

    Raises:
        EchoError: the model or the objective cannot be trained with `fsdp`.
    """
    wanted = (config.distributed or DistributedConfig()).strategy
    if wanted == "ddp":
        return Strategy("ddp", REQUESTED)
    refusal = _refusal(config)
    if wanted == "fsdp":
        if refusal is not None:
            raise EchoError(f"distributed.strategy is fsdp, and {refusal[0]}", refusal[1])
        return Strategy("fsdp", REQUESTED)
    if config.model.kind == "tiny":
        return Strategy("ddp", "the built-in model is small")
    shape = architecture_of(config.model)
    if shape is None or usable is None:
        return Strategy("ddp", "the memory of a rank cannot be predicted")
    dtype: Dtype = "float32" if choice.dtype == torch.float32 else "bfloat16"
    peak = predict_memory(shape, config, dtype, choice.device.type, ranks).peak
    figures = f"a rank needs {peak / 1e9:.1f} GB, predicted, of {usable / 1e9:.1f} usable"
    if peak <= usable:
        return Strategy("ddp", f"with a copy of the model, {figures}")
    if refusal is not None:
        return Strategy("ddp", f"with a copy of the model, {figures}; it cannot be split: {refusal[0]}")
    split = predict_memory(shape, config, dtype, choice.device.type, ranks, split=True).peak
    return Strategy("fsdp", f"with a copy of the model, {figures}; split, {split / 1e9:.1f} GB")


def usable_by_rank(device: torch.device) -> int | None:
    """Return the memory that this rank can use, bytes: of its CUDA device, or its share of the machine's; None if
    unknown."""
    usable = device_memory(device).usable
    if usable is None or device.type != "cpu":
        return usable
    return usable // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _refusal(config: Config) -> tuple[str, str] | None:
    """Return why a config cannot be trained with a split model, and a tip; None if it can."""
    if config.model.kind == "tiny":
        return "the built-in model is not split", "set distributed.strategy=ddp"
    if config.probe_every > 0 or config.objective.schedule == "gradient_ratio":
        tip = "set probe_every=0 and another objective.schedule, or distributed.strategy=ddp"
        return "the gradients of a split model cannot be compared term by term", tip
    if config.objective.kl_coeff > 0 and config.model.lora is None:
        tip = "set objective.kl_coeff=0 or model.lora, or distributed.strategy=ddp"
        return "a split model has no frozen copy for objective.kl_coeff", tip
    if config.model.compile:
        return "a split model is not compiled", "set model.compile=false, or distributed.strategy=ddp"
    return None
