"""KV cache for transformers models: one row per growing sequence, each written at its own positions.

Shapes: B sequences, N key-value heads, T tokens, C slots, D head width.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers.cache_utils import Cache, CacheLayerMixin


def cache_argument(decoder: nn.Module) -> str:
    """Return the name of a decoder's argument for its cache; `past_key_values` is deprecated since transformers 5.24.

    A model that brings its own code may have either name under any version.
    """
    return "cache" if "cache" in inspect.signature(decoder.forward).parameters else "past_key_values"


class RowCache(Cache):  # type: ignore[misc]
    """A `language_model.Cache` whose rows have different lengths: position p of a sequence is slot p of its row.

    Slots past a sequence's end may hold garbage (from padding): the caller's mask hides them until they are
    overwritten. `place` sets where the next forward pass writes. A layer allocates in its first forward pass and grows
    by only an eighth at a time, because a large cache has to fit the device.
    """

    def __init__(self, layers: int, batch: int, dtype: torch.dtype) -> None:
        super().__init__(layers=[_RowLayer(self, dtype) for _ in range(layers)])
        self.batch = batch
        self.slots_BT = torch.empty(0)
        self.rows_B: Tensor | None = None
        self.length = 0

    def place(self, slots_BT: Tensor, rows_B: Tensor | None, length: int) -> None:
        """Set the next forward pass's token slots, cache rows (None: all) and number of slots to attend to."""
        self.slots_BT, self.rows_B, self.length = slots_BT, rows_B, length

    def keep(self, rows: Tensor) -> None:
        self.batch = len(rows)
        for layer in self.layers:
            if layer.is_initialized:
                layer.keys, layer.values = layer.keys[rows], layer.values[rows]

    def add(self, count: int) -> None:
        self.batch += count
        for layer in self.layers:
            if layer.is_initialized:
                layer.keys, layer.values = (
                    pad(part, (0, 0, 0, 0, 0, 0, 0, count)) for part in (layer.keys, layer.values)
                )


class PassingCache(Cache):  # type: ignore[misc]
    """A cache that stores nothing; passing it instead of None keeps transformers from searching for packed sequences.

    The search synchronises with the GPU once per forward pass, and under torch.compile it always builds a mask, which
    rules out the fused causal attention.
    """

    def __init__(self, layers: int) -> None:
        super().__init__(layers=[_PassingLayer() for _ in range(layers)])


class _FreshLayer(CacheLayerMixin):  # type: ignore[misc]
    """A layer that reports no earlier tokens to transformers, which builds its own mask only if there are none."""

    is_sliding = False

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Do nothing: there is nothing to prepare."""

    def get_seq_length(self) -> int:
        return 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return query_length, 0

    def get_max_length(self) -> int:
        return -1


class _PassingLayer(_FreshLayer):
    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return key_states, value_states


class _RowLayer(_FreshLayer):
    def __init__(self, cache: RowCache, dtype: torch.dtype) -> None:
        super().__init__()
        self.is_initialized = False
        self._cache = cache
        self._dtype = dtype

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write [B, N, T, D] keys and values into their slots; return all of the rows' slots up to `cache.length`."""
        self._reserve(key_states, value_states)
        cache = self._cache
        rows_B = torch.arange(cache.batch, device=key_states.device) if cache.rows_B is None else cache.rows_B
        self.keys[rows_B[:, None], :, cache.slots_BT] = key_states.transpose(1, 2).to(self._dtype)
        self.values[rows_B[:, None], :, cache.slots_BT] = value_states.transpose(1, 2).to(self._dtype)
        chosen = slice(None) if cache.rows_B is None else rows_B
        return self.keys[chosen, :, : cache.length], self.values[chosen, :, : cache.length]

    def _reserve(self, key_states: Tensor, value_states: Tensor) -> None:
        if not self.is_initialized:
            self.keys, self.values = (
                torch.zeros(self._cache.batch, part.shape[1], 0, part.shape[3], device=part.device, dtype=self._dtype)
                for part in (key_states, value_states)
            )
            self.is_initialized = True
        capacity = self.keys.shape[2]
        if self._cache.length > capacity:
            missing = max(self._cache.length - capacity, capacity // 8, 64)
            self.keys, self.values = pad(self.keys, (0, 0, 0, missing)), pad(self.values, (0, 0, 0, missing))
