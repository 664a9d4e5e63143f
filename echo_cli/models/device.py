"""The device of a model: choice of device and dtype, available memory, and out-of-memory errors."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from echo_cli.errors import EchoError, first_line

Phase = Literal["loading", "rollout", "update", "scoring"]

_TIPS: dict[Phase, str] = {
    "loading": "set model.lora (with model.kind=hf) or choose a smaller model",
    "rollout": (
        "lower environment.sessions or, with model.kind=hf, sampler.prefill_tokens; in a new run also "
        "rollout.tasks_per_step or rollout.group_size"
    ),
    "update": "lower optim.token_budget or, with model.kind=hf, set model.gradient_checkpointing=true",
    "scoring": "lower optim.token_budget",
}

# Messages of failed allocations that are not a torch.OutOfMemoryError: from torch's CPU allocator, the C++ library and
# the CUDA libraries.
_SIGNS = ("DefaultCPUAllocator", "can't allocate memory", "bad_alloc", "CUDA error: out of memory", "ALLOC_FAILED")

_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class DeviceChoice:
    """A device, the dtype of its matrix products, and the reason for the choice, as text for the user."""

    device: torch.device
    reason: str
    dtype: torch.dtype = torch.float32


def choose_device(wanted: str, dtype: Literal["auto", "float32", "bfloat16"] = "float32") -> DeviceChoice:
    """Choose the device for a config's `auto`, `cpu` or `cuda`, and the dtype on it.

    The dtype `auto` is bfloat16 on a CUDA device with native bfloat16, and float32 elsewhere.

    Raises:
        EchoError: CUDA is requested but not available, or bfloat16 is requested but the device lacks it.
    """
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise EchoError(
            "device 'cuda' is not available on this machine", "use --device cpu or install a CUDA build of torch"
        )
    if wanted == "cpu" or not available:
        device, reason = torch.device("cpu"), "as requested" if wanted == "cpu" else "no CUDA device found"
    else:
        device, reason = torch.device("cuda"), torch.cuda.get_device_name()
    native = _computes_bfloat16(device)
    if dtype == "bfloat16" and not native:
        raise EchoError(
            f"model.dtype=bfloat16: {device.type} ({reason}) has no native bfloat16", "set model.dtype=float32"
        )
    if dtype == "bfloat16" or (dtype == "auto" and device.type == "cuda" and native):
        return DeviceChoice(device, f"{device.type} bfloat16: {reason}", torch.bfloat16)
    if dtype == "auto":
        reason += _exact(bfloat16_instructions()) if device.type == "cpu" else ", without native bfloat16"
    return DeviceChoice(device, f"{device.type} float32: {reason}")


def bfloat16_instructions() -> Sequence[str]:
    """Return the names of this CPU's instruction sets that multiply bfloat16 matrices, as torch reports them."""
    report = getattr(torch.cpu, "get_capabilities", None)  # since torch 2.11
    if report is None:
        return ["avx512_bf16"] if torch.cpu._is_avx512_bf16_supported() else []
    return sorted(name for name, there in report().items() if "bf16" in name and there is True)


def _exact(instructions: Sequence[str]) -> str:
    """Say why `auto` is float32 on a CPU with the given bfloat16 instructions, and how to choose bfloat16."""
    if not instructions:
        return "; this CPU has no bfloat16 instructions"
    return (
        f"; auto is exact on a CPU, and this one also has {' and '.join(instructions)}: "
        "model.dtype=bfloat16 is faster and rounds"
    )


def _computes_bfloat16(device: torch.device) -> bool:
    """Return whether matrix products in bfloat16 are native, not emulated or computed element by element."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # oneDNN multiplies matrices on a CPU; not every build and version of torch has this query.
    probe = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return probe is not None and bool(probe())


class OutOfMemory(EchoError):
    """A failed allocation (exit code 1). The interrupted optimizer step leaves no changes."""


@contextmanager
def naming_memory(phase: Phase) -> Iterator[None]:
    """Turn a failed allocation into an error that names the phase; a context manager and a decorator.

    Raises:
        OutOfMemory: an allocation failed in the body.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(
            f"out of memory during {phase}: {first_line(error)[:200]}", _TIPS[phase], exit_code=1
        ) from error


def is_out_of_memory(error: Exception) -> bool:
    """Return whether `error` is a failed allocation, on the CPU or on a CUDA device."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)


@dataclass(frozen=True)
class DeviceMemory:
    """Memory of a device, bytes."""

    total: int
    usable: int | None
    """Free bytes plus the bytes that this process holds; None if the system does not report them."""


def device_memory(device: torch.device) -> DeviceMemory:
    """Return the memory of a CUDA device; for the CPU, the machine's or the container's, whichever is less."""
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
    """Return the value of the line `name: N kB` in a Linux /proc file, bytes; None if there is none."""
    if not path.exists():
        return None
    fields = dict(line.split(":", 1) for line in path.read_text(encoding="ascii").splitlines() if ":" in line)
    return 1024 * int(fields[name].split()[0]) if name in fields else None


def _number(path: Path) -> int | None:
    """Return the number in a control group's file; None if the file does not exist or says `max`."""
    text = path.read_text(encoding="ascii").strip() if path.exists() else ""
    return int(text) if text.isdecimal() else None
