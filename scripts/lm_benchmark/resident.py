"""Memory of this process, from Linux's /proc."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path

# With it, what is freed goes back to the system at once, so that a resident set is what is in use.
EXACT_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def peak_over_now(work: Callable[[], object]) -> int:
    """Bytes by which `work` raises the resident set at most."""
    gc.collect()
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak back: proc(5)
    work()
    return _status("VmHWM") - before


def can_measure() -> bool:
    """Whether this system says it."""
    return Path("/proc/self/clear_refs").exists()


def _status(name: str) -> int:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(lines[name].removesuffix("kB"))
