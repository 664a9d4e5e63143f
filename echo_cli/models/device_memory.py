"""How much memory a device has, and how much of it this process can have."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

_CGROUP = Path("/sys/fs/cgroup")


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
