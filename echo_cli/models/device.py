"""Where a model runs and what it computes in, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from echo_cli.errors import EchoError


@dataclass(frozen=True)
class DeviceChoice:
    """A device, the dtype of matrix products on it, and why they were chosen, for the user to read."""

    device: torch.device
    reason: str
    dtype: torch.dtype = torch.float32


def choose_device(wanted: str, dtype: Literal["auto", "float32", "bfloat16"] = "float32") -> DeviceChoice:
    """The device of a config's `auto`, `cpu` or `cuda`, and the dtype on it.

    `auto` as a dtype is bfloat16 on a CUDA device that computes in it, and float32 elsewhere.

    Raises:
        EchoError: CUDA is asked for and not there, or bfloat16 is and the device lacks it.
    """
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise EchoError(
            "device 'cuda' is not available on this machine", "use --device cpu, or install a CUDA build of torch"
        )
    if wanted == "cpu" or not available:
        device, reason = torch.device("cpu"), "as asked" if wanted == "cpu" else "no CUDA device found"
    else:
        device, reason = torch.device("cuda"), torch.cuda.get_device_name()
    native = _computes_bfloat16(device)
    if dtype == "bfloat16" and not native:
        raise EchoError(
            f"model.dtype is bfloat16, which {device.type} ({reason}) does not compute in", "set model.dtype=float32"
        )
    if dtype == "bfloat16" or (dtype == "auto" and device.type == "cuda" and native):
        return DeviceChoice(device, f"{device.type} bfloat16: {reason}", torch.bfloat16)
    if dtype == "auto":
        reason += ", where float32 is the default" if device.type == "cpu" else ", without bfloat16 of its own"
    return DeviceChoice(device, f"{device.type} float32: {reason}")


def _computes_bfloat16(device: torch.device) -> bool:
    """Whether matrix products in bfloat16 are the hardware's own and not emulated or element by element."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # What oneDNN, which torch multiplies with on a CPU, says of itself; not every build and version has it.
    probe = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return probe is not None and bool(probe())
