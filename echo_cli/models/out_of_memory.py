"""Allocations that fail: one line that names the phase of a run and the setting to lower."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
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
