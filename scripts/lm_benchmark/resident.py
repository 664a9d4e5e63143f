"""Memory of this process, from Linux's /proc."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path

# Returns freed memory to the system at once, so that the resident set is the memory in use.
EXACT_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def peak_over_now(work: Callable[[], object]) -> int:
    """Return the peak by which `work` raises the resident set, bytes."""
    gc.collect()
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak: proc(5)
    work()
    return _status("VmHWM") - before


def can_measure() -> bool:
    """Return whether this system can measure the peak."""
    return Path("/proc/self/clear_refs").exists()


def _status(name: str) -> int:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(lines[name].removesuffix("kB"))
