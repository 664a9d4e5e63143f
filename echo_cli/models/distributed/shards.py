"""Files of tensors that are split over the ranks: each rank writes its parts, and any number of processes read them.

They are written and read by torch.distributed.checkpoint, as safetensors whose headers say which part of which tensor
they hold. torch's own format is not used: it has a pickle, and a checkpoint may come from elsewhere.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from echo_cli.errors import EchoError, first_line
from echo_cli.models.distributed.ranks import Ranks
from echo_cli.models.weight_files import Shapes
from echo_cli.text import escape_unprintable

if TYPE_CHECKING:
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

_FILE_BYTES = 2**28
"""Bytes of a file, of which torch puts together two copies in host memory; a rank's part of a tensor may be larger."""


def write_shards(tensors: Mapping[str, Tensor], folder: Path, ranks: Ranks) -> None:
    """Write tensors, by name, into a new folder; a collective.

    Each rank writes the parts that it has; of a tensor that all have whole, one rank writes it. An error of one rank is
    raised on all.

    Raises:
        OSError: the disk is full or not writable.
        EchoError: a rank has ended, or the first rank does not see what all have written (exit code 1).
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    writer = HuggingFaceStorageWriter(str(folder), _file_numbers(tensors, ranks.size), save_distributed=True)
    try:
        with ranks.together():
            save(dict(tensors), storage_writer=writer)
    except CheckpointException as error:  # a BaseException
        raise _cause(error) from error
    ranks.first(lambda: _check_visible(_shapes_of(tensors), folder))


def read_shards(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Read a folder of shards into tensors of its names and shapes, in place; of a split tensor, this rank's part.

    Every process reads for itself: this is no collective.

    Raises:
        EchoError: a file is missing or damaged, or the folder has other tensors.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    if differing := sorted(name for name, _ in shard_shapes(folder).items() ^ _shapes_of(tensors).items()):
        raise _damaged(folder, f"it has other tensors, such as {escape_unprintable(differing[0])}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the warning that this is no collective
            load(dict(tensors), storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)
    except CheckpointException as error:
        raise _damaged(folder, escape_unprintable(first_line(_cause(error)))[:200]) from error


def shard_shapes(folder: Path) -> Shapes:
    """Return the shapes of the whole tensors in a folder of shards. Errors as in `whole_tensors`."""
    return _shapes_of(_empty_tensors(folder))


def whole_tensors(folder: Path, *, empty: bool = False) -> dict[str, Tensor]:
    """Return the tensors of a folder of shards whole, on the CPU, or with `empty` on the meta device, without reading.

    Raises:
        EchoError: a file is missing or damaged.
    """
    tensors = _empty_tensors(folder)
    if not empty:
        tensors = {name: torch.zeros_like(tensor, device="cpu") for name, tensor in tensors.items()}
        read_shards(tensors, folder)
    return tensors


def _empty_tensors(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of a folder of shards, on the meta device, after a check that their parts are complete."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

    try:
        entries: dict[str, Any] = dict(HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata)
        for name, entry in entries.items():
            if not _is_complete(entry):
                raise ValueError(f"{name} is not complete")
        return {
            name: torch.empty(entry.size, dtype=entry.properties.dtype, device="meta")
            for name, entry in entries.items()
        }
    except Exception as error:  # safetensors raises its own type from Rust, and the headers may hold anything
        raise _damaged(folder, escape_unprintable(first_line(error))[:200]) from error


def _shapes_of(tensors: Mapping[str, Tensor]) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _check_visible(shapes: Shapes, folder: Path) -> None:
    """Check that this process sees all parts that the ranks, perhaps on other machines, have written."""
    try:
        seen = shard_shapes(folder) == shapes
    except EchoError:
        seen = False
    if not seen:
        tip = "put output_dir on a file system that all machines share"
        raise EchoError(
            f"rank 0 does not see all files that the ranks wrote to {escape_unprintable(folder)}", tip, exit_code=1
        )


def _is_complete(entry: TensorStorageMetadata) -> bool:
    """Return whether the parts of a tensor, which are rows of it, follow each other without a gap.

    A header may claim any size and place; only the sizes of the parts are backed by bytes in the files.
    """
    if not entry.size:
        return len(entry.chunks) == 1
    row = 0
    for part in sorted(entry.chunks, key=lambda chunk: (chunk.offsets[0], chunk.sizes[0])):
        if part.offsets != (row, *[0] * (len(entry.size) - 1)) or part.sizes[1:] != entry.size[1:]:
            return False
        row += part.sizes[0]
    return row == entry.size[0]


def _file_numbers(tensors: Mapping[str, Tensor], ranks: int) -> dict[str, int]:
    """Return the number of the file, from 1, into which each of the ranks writes its part of a tensor."""
    numbers, total = {}, 0
    for name, tensor in tensors.items():
        numbers[name] = total // (_FILE_BYTES * ranks)
        total += tensor.numel() * tensor.element_size()
    # torch names the files as numbers of the highest one.
    order = {number: place for place, number in enumerate(sorted(set(numbers.values())), start=1)}
    return {name: order[number] for name, number in numbers.items()}


def _cause(error: CheckpointException) -> Exception:
    """Return what went wrong on the first rank with an OSError, else on the first rank."""
    causes = [error.failures[rank][0] for rank in sorted(error.failures)]
    found = next((cause for cause in causes if isinstance(cause, OSError)), causes[0])
    return found if isinstance(found, Exception) else RuntimeError(str(error))


def _damaged(folder: Path, why: str) -> EchoError:
    return EchoError(f"cannot load the tensors in {escape_unprintable(folder)}: {why}", "restore it from its source")
