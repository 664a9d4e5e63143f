"""Exact number of tensor bytes alive at once, in contrast to a process's peak memory."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class LiveTensors(TorchDispatchMode):
    """Counts the storages of tensors that operations take and return, for as long as they live."""

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self._known: dict[int, weakref.finalize[Any, Any]] = {}

    def reset_peak(self) -> None:
        self.peak = self.live

    def count(self, *tensors: torch.Tensor) -> None:
        for tensor in tensors:
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key not in self._known:
                size = storage.nbytes()
                self.live += size
                self.peak = max(self.peak, self.live)
                self._known[key] = weakref.finalize(storage, self._forget, key, size)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.count(*(leaf for leaf in tree_iter((args, kwargs, result)) if isinstance(leaf, torch.Tensor)))
        return result

    def _forget(self, key: int, size: int) -> None:
        self.live -= size
        del self._known[key]
