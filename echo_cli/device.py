"""Where a model runs, and why there."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from echo_cli.error import EchoError


@dataclass(frozen=True)
class DeviceChoice:
    """A device and why it was chosen, for the user to read."""

    device: torch.device
    reason: str


def choose_device(wanted: str) -> DeviceChoice:
    """The device of a config's `auto`, `cpu` or `cuda`.

    Raises:
        EchoError: CUDA is asked for and not there.
    """
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise EchoError(
            "device 'cuda' is not available on this machine", "use --device cpu, or install a CUDA build of torch"
        )
    if wanted == "cpu" or not available:
        reason = "as asked" if wanted == "cpu" else "no CUDA device found"
        return DeviceChoice(torch.device("cpu"), f"cpu float32: {reason}")
    return DeviceChoice(torch.device("cuda"), f"cuda float32: {torch.cuda.get_device_name()}, tiny model")
