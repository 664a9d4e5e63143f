"""Files of a model folder, checked before memory is allocated by what they say: sizes, and shapes of the tensors.

A safetensors file begins with a header of names, shapes and offsets, which is read without the values. A folder may
come from elsewhere: its config.json may describe a model of any size, whatever its weights are.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path

from safetensors import safe_open

from echo_cli.errors import EchoError, first_line
from echo_cli.files import read_json
from echo_cli.text import escape_unprintable

WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER_FILE = "adapter_model.safetensors"
SHARDED_WEIGHTS = "weights"
"""Folder, in a checkpoint of a split model, with the weights in parts (`distributed.shards`)."""

Shapes = Mapping[str, tuple[int, ...]]
"""Shapes of tensors by name."""

# Several times the largest of published models: Gemma's tokenizer.json has 33 MB, and a shard some thousand tensors.
_MOST_TEXT_BYTES = 128 * 2**20
_MOST_HEADER_BYTES = 32 * 2**20


def check_text_files(folder: Path, patterns: Iterable[str]) -> None:
    """Check that no text file of a model folder has an absurd size, before it is read.

    Raises:
        EchoError: a file has more than 128 MiB.
    """
    for pattern in patterns:
        for path in folder.glob(pattern):
            if path.is_file() and path.stat().st_size > _MOST_TEXT_BYTES:
                raise EchoError(
                    f"{escape_unprintable(path)} has {path.stat().st_size >> 20} MiB, more than any model's file of "
                    f"this kind: at most {_MOST_TEXT_BYTES >> 20} are read",
                    "restore the folder from its source",
                )


def shards(index: Path) -> list[str]:
    """Return the sorted file names in a model.safetensors.index.json.

    Raises:
        EchoError: the file is not an index, or names a file outside its folder.
    """
    placed = read_json(index).get("weight_map")
    names = set(placed.values()) if isinstance(placed, dict) and all(map(_is_text, placed.values())) else set()
    if not names or any(Path(name).name != name for name in names):
        raise EchoError(
            f"{escape_unprintable(index)} does not list the weights in its folder", "restore the folder from its source"
        )
    return sorted(names)


def folder_shapes(folder: Path) -> Shapes | None:
    """Return the shapes of the tensors in a model folder's weights; None if it has no weights.

    Raises:
        EchoError: a file is missing or damaged.
    """
    check_text_files(folder, [WEIGHTS_INDEX])
    if (folder / WEIGHTS).is_file():
        return file_shapes(folder / WEIGHTS)
    if not (folder / WEIGHTS_INDEX).is_file():
        return None
    return {
        name: size for shard in shards(folder / WEIGHTS_INDEX) for name, size in file_shapes(folder / shard).items()
    }


def file_shapes(path: Path) -> Shapes:
    """Return the shapes of the tensors in a safetensors file.

    Raises:
        EchoError: the file is missing or damaged.
    """
    try:
        with path.open("rb") as file:
            size = struct.unpack("<Q", file.read(8))[0]
        if size > _MOST_HEADER_BYTES:
            raise ValueError(f"its header has {size} bytes")
        with safe_open(path, framework="pt") as tensors:
            return {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    except Exception as error:  # safetensors raises its own type from Rust
        raise EchoError(
            f"cannot load weights from {escape_unprintable(path)}: {escape_unprintable(first_line(error))}",
            "restore the file from its source",
        ) from error


def check_shapes(path: Path, wanted: Shapes) -> None:
    """Check that a safetensors file has exactly the `wanted` tensors.

    Raises:
        EchoError: the file is missing or damaged, or a tensor is missing, unknown or of another shape.
    """
    there = file_shapes(path)
    if differing := sorted(name for name, _ in there.items() ^ wanted.items()):
        name = differing[0]
        says = f"the shape {list(there[name])}" if name in there else "no such tensor"
        needs = f"the shape {list(wanted[name])}" if name in wanted else "none"
        raise EchoError(
            f"cannot load weights from {escape_unprintable(path)}: of {escape_unprintable(name)} it has {says}, the "
            f"model {needs}",
            "restore the file from its source",
        )


def count_elements(shapes: Shapes) -> int:
    """Return the number of values in all tensors."""
    return sum(math.prod(shape) for shape in shapes.values())


def _is_text(value: object) -> bool:
    return isinstance(value, str)
