"""Tensors that are split over the ranks: whole ones, and the parts of whole ones that are read.

Nothing is split in a run of one process, nor in one whose ranks have a copy of the model each; torch's type of split
tensors, which takes a while to import, is needed only where one exists.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from echo_cli.models.distributed.ranks import is_split


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor whole, on its device; a collective if it is split."""
    split: Any = tensor
    return split.full_tensor() if is_split(tensor) else tensor


def split_like(value: Tensor, other: Tensor) -> Tensor:
    """Return a whole tensor that all ranks have, split and placed as `other` is; unchanged if that is not split."""
    if not is_split(other):
        return value
    from torch.distributed.tensor import distribute_tensor

    split: Any = other
    return distribute_tensor(value.to(other.device), split.device_mesh, split.placements, src_data_rank=None)
