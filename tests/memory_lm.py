"""A language model that has memorised sequences: after a prefix of a sequence, it is certain of the next token.

Shapes: B sequences, T tokens, V vocabulary; a hidden state is the logits themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


class Rows:
    """The tokens of growing sequences, one list per row."""

    def __init__(self, batch: int) -> None:
        self.rows: list[list[int]] = [[] for _ in range(batch)]

    def keep(self, rows: Tensor) -> None:
        self.rows = [self.rows[row] for row in rows.tolist()]

    def add(self, count: int) -> None:
        self.rows += [[] for _ in range(count)]


class MemoryModel(nn.Module):
    """Model that predicts the token `otherwise` after an unknown prefix."""

    def __init__(self, sequences: Iterable[Sequence[int]], vocab_size: int, otherwise: int, max_length: int = 4096):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))
        self.vocab_size = vocab_size
        self.max_length = max_length
        self._otherwise = otherwise
        self._next: dict[tuple[int, ...], int] = {}
        for ids in sequences:
            for end in range(1, len(ids)):
                self._next.setdefault(tuple(ids[:end]), ids[end])

    def new_cache(self, batch: int) -> Rows:
        return Rows(batch)

    def extend(self, token_ids_BT: Tensor, starts_B: Tensor, cache: Rows, rows_B: Tensor | None = None) -> Tensor:
        rows = range(len(token_ids_BT)) if rows_B is None else rows_B.tolist()
        logits_BTV = torch.zeros(*token_ids_BT.shape, self.vocab_size)
        for place, row in enumerate(rows):
            known = cache.rows[row][: int(starts_B[place])]
            for at, token in enumerate(token_ids_BT[place].tolist()):
                known.append(token)
                assert len(known) <= self.max_length
                logits_BTV[place, at, self._next.get(tuple(known), self._otherwise)] = 20.0
            cache.rows[row] = known
        return logits_BTV

    def head(self, hidden_NH: Tensor) -> Tensor:
        return hidden_NH

    def holding_weights(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def reference(self) -> MemoryModel:
        return self

    def save(self, folder: Path) -> None:
        raise AssertionError("a memory is not saved")

    def load(self, folder: Path) -> None:
        raise AssertionError("a memory is not loaded")
