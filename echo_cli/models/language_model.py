"""What the policy and its sampler need of a model, built in or from Hugging Face.

Shapes: B sequences, T tokens, N positions, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn


class Cache(Protocol):
    """Keys and values of growing sequences, one row each.

    Slots past a sequence's end may hold garbage (from padding): causality hides them until they are overwritten.
    """

    def keep(self, rows: Tensor) -> None:
        """Keep only the sequences `rows`, in that order."""

    def add(self, count: int) -> None:
        """Add `count` empty sequences after the others."""


class LanguageModel(Protocol):
    """A causal model in two parts, so that logits are made only where they are wanted."""

    @property
    def max_length(self) -> int:
        """The most tokens that a sequence can have."""

    @property
    def vocab_size(self) -> int:
        """V, the width of the head."""

    def __call__(self, token_ids_BT: Tensor) -> Tensor:
        """Final hidden states [B, T, H] of right-padded sequences. Padding changes no state before it."""

    def head(self, hidden_NH: Tensor) -> Tensor:
        """Logits [N, V] of final hidden states."""

    def new_cache(self, batch: int) -> Cache:
        """An empty cache for `batch` sequences, for `extend`."""

    def extend(self, token_ids_BT: Tensor, starts_B: Tensor, cache: Any, rows_B: Tensor | None = None) -> Tensor:
        """Return the final hidden states [B, T, H] of new tokens, and fill `cache` with them.

        Padding may reach past `max_length`; tokens that count may not.

        Args:
            starts_B: the position of each sequence's first new token.
            rows_B: which rows of the cache the sequences are; None for all of them, in order.
        """

    def holding_weights(self) -> AbstractContextManager[Any]:
        """Around calls without gradients between which no weight changes: what is made of one is made once."""

    def reference(self) -> LanguageModel:
        """The model as it is now, never to change: what a KL penalty is taken to."""

    def save(self, folder: Path) -> None:
        """Write weights and architecture into `folder`."""

    def load(self, folder: Path) -> None:
        """Take the weights of a folder that `save` wrote.

        Raises:
            EchoError: a file is damaged or belongs to another architecture.
        """

    def parameters(self) -> Iterator[nn.Parameter]:
        """The parameters; those that require no gradient are not trained."""

    def to(self, device: Any) -> Any:
        """The model, moved to `device`."""
