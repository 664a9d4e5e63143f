"""The device a model runs on: its choice and its dtype, its memory, and what to do where that is not enough."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from echo_cli.errors import EchoError, first_line

Phase = Literal["loading", "rollout", "update", "scoring"]

_TIPS: dict[Phase, str] = {
    "loading": "set model.lora (kind hf), or name a smaller model",
    "rollout": (
        "lower environment.sessions or, with kind hf, sampler.prefill_tokens; in a new run, rollout.tasks_per_step or "
        "rollout.group_size"
    ),
    "update": "lower optim.token_budget or, with kind hf, set model.gradient_checkpointing=true",
    "scoring": "lower optim.token_budget",
}

# What a failed allocation says where it is no torch.OutOfMemoryError: torch's allocator for the CPU, the C++ library,
# and the libraries of CUDA.
_SIGNS = ("DefaultCPUAllocator", "can't allocate memory", "bad_alloc", "CUDA error: out of memory", "ALLOC_FAILED")

_CGROUP = Path("/sys/fs/cgroup")


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


class OutOfMemory(EchoError):
    """An allocation failed (exit code 1). Nothing of the optimizer step that it ended is kept."""


@contextmanager
def naming_memory(phase: Phase) -> Iterator[None]:
    """Around a phase of a run, or as a decorator.

    Raises:
        OutOfMemory: an allocation failed in it.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(
            f"out of memory in the {phase}: {first_line(error)[:200]}", _TIPS[phase], exit_code=1
        ) from error


def is_out_of_memory(error: Exception) -> bool:
    """Whether an allocation failed, on the CPU or on a CUDA device."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)


@dataclass(frozen=True)
class DeviceMemory:
    """Bytes."""

    total: int
    usable: int | None
    """What is free, and what this process holds already; None where the system does not say."""


def device_memory(device: torch.device) -> DeviceMemory:
    """The memory of a CUDA device; for the CPU the machine's, or its container's where that has less."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return DeviceMemory(total, free + torch.cuda.memory_reserved(device))
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    available = _kilobytes(Path("/proc/meminfo"), "MemAvailable")
    if available is None:
        return DeviceMemory(total, None)
    limit, used = _number(_CGROUP / "memory.max"), _number(_CGROUP / "memory.current")
    if limit is not None and used is not None and limit < total:
        total, available = limit, min(available, limit - used)
    return DeviceMemory(total, available + (_kilobytes(Path("/proc/self/status"), "VmRSS") or 0))


def _kilobytes(path: Path, name: str) -> int | None:
    """A line `name: N kB` of a file of Linux, in bytes; None on other systems."""
    if not path.exists():
        return None
    fields = dict(line.split(":", 1) for line in path.read_text(encoding="ascii").splitlines() if ":" in line)
    return 1024 * int(fields[name].split()[0]) if name in fields else None


def _number(path: Path) -> int | None:
    """The number in a file of a control group; None where there is none, or it says `max`."""
    text = path.read_text(encoding="ascii").strip() if path.exists() else ""
    return int(text) if text.isdecimal() else None
