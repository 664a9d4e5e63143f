"""The interface that the policy and its sampler require of a model, built-in or from Hugging Face.

Shapes: B sequences, T tokens, N positions, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn


class Cache(Protocol):
    """Keys and values of growing sequences, one row each.

    Slots past a sequence's end may hold garbage (from padding): causality hides them until they are overwritten.
    """

    def keep(self, rows: Tensor) -> None:
        """Keep only the sequences `rows`, in the given order."""

    def add(self, count: int) -> None:
        """Append `count` empty sequences."""


class LanguageModel(Protocol):
    """A causal model split into body and head, so that logits are computed only where they are needed."""

    @property
    def max_length(self) -> int:
        """Maximum sequence length, tokens."""

    @property
    def vocab_size(self) -> int:
        """V, the width of the head."""

    def __call__(self, token_ids_BT: Tensor) -> Tensor:
        """Return the final hidden states [B, T, H] of right-padded sequences; padding changes no state before it."""

    def head(self, hidden_NH: Tensor) -> Tensor:
        """Return the logits [N, V] of final hidden states."""

    def new_cache(self, batch: int) -> Cache:
        """Return an empty cache of `batch` sequences for `extend`."""

    def extend(self, token_ids_BT: Tensor, starts_B: Tensor, cache: Any, rows_B: Tensor | None = None) -> Tensor:
        """Return the final hidden states [B, T, H] of new tokens, and store the tokens in `cache`.

        Padding may reach past `max_length`; tokens may not.

        Args:
            starts_B: position of each sequence's first new token, 0-based.
            rows_B: cache row of each sequence; None for all rows, in order.
        """

    def holding_weights(self) -> AbstractContextManager[Any]:
        """Return a context for gradient-free calls with unchanged weights: values derived from a weight are cached."""

    def reference(self) -> LanguageModel:
        """Return a frozen model with the present weights, the reference of a KL penalty."""

    def save(self, folder: Path) -> None:
        """Write weights and architecture into `folder`."""

    def load(self, folder: Path) -> None:
        """Load the weights from a folder that `save` wrote.

        Raises:
            EchoError: a file is damaged or belongs to another architecture.
        """

    def parameters(self) -> Iterator[nn.Parameter]:
        """Iterate over the parameters; a parameter that requires no gradient is not trained."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Iterate over the parameters with their names, in the order of `parameters`."""

    def to(self, device: Any) -> Any:
        """Move the model to `device` and return it."""


@runtime_checkable
class SplitModel(Protocol):
    """A `LanguageModel` whose weights are split over the ranks of a run."""

    def hold_whole(self, whole: bool) -> None:
        """Gather all weights on every rank, or, with `whole` False, keep this rank's part of them alone; a collective.

        With all weights, passes are no collectives, and ranks may take different numbers of them.
        """

    def export(self, folder: Path) -> None:
        """Write the model into `folder` as one process does, on this rank alone, which has all weights."""

    def pass_without_loss(self) -> None:
        """Take part in a forward and backward pass of the other ranks, with a gradient of zero."""
