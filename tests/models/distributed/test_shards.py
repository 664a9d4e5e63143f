"""Files of split tensors: what a folder of them has to hold to be read, whoever wrote it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from echo_cli.errors import EchoError
from echo_cli.models.distributed.shards import read_shards, shard_shapes, whole_tensors

WHOLE = torch.arange(12.0).view(4, 3)


def write(file: Path, tensors: dict[str, torch.Tensor], offsets: dict[str, list[int]]) -> None:
    said = {name: {"saved_offsets": offset} for name, offset in offsets.items()}
    save_file(tensors, file, {"DCP_SHARDING_INFO": json.dumps(said), "format": "pt"})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tensor in two parts of different sizes, and one that is not split."""
    write(tmp_path / "1.safetensors", {"a": WHOLE[:3].clone(), "b": torch.tensor(7.0)}, {"a": [0, 0], "b": []})
    write(tmp_path / "2.safetensors", {"a": WHOLE[3:].clone()}, {"a": [3, 0]})
    return tmp_path


def test_parts_are_put_together(folder: Path) -> None:
    assert shard_shapes(folder) == {"a": (4, 3), "b": ()}
    tensors = whole_tensors(folder)
    assert torch.equal(tensors["a"], WHOLE) and tensors["b"] == 7
    assert whole_tensors(folder, empty=True)["a"].is_meta


def test_a_folder_with_other_tensors_is_refused(folder: Path) -> None:
    for wanted in ({"a": torch.zeros(4, 3)}, {"a": torch.zeros(3, 4), "b": torch.zeros(())}):
        with pytest.raises(EchoError, match="it has other tensors, such as"):
            read_shards(wanted, folder)


def test_missing_and_damaged_files_are_refused(folder: Path) -> None:
    (folder / "1.safetensors").rename(folder / "1")
    with pytest.raises(EchoError, match="a is not complete"):
        whole_tensors(folder)
    # A header may claim any size, for which no memory is taken.
    write(folder / "1.safetensors", {"a": WHOLE[:3].clone()}, {"a": [10**15, 0]})
    with pytest.raises(EchoError, match="a is not complete"):
        whole_tensors(folder)
    (folder / "1.safetensors").write_bytes(b"no tensors")
    with pytest.raises(EchoError, match="cannot load the tensors in"):
        whole_tensors(folder)
    with pytest.raises(EchoError, match="cannot load the tensors in"):
        whole_tensors(folder / "none")


def test_parts_that_overlap_are_refused(folder: Path) -> None:
    write(folder / "1.safetensors", {"a": WHOLE[:2].clone(), "b": torch.tensor(7.0)}, {"a": [0, 0], "b": []})
    write(folder / "3.safetensors", {"a": WHOLE[:1].clone()}, {"a": [0, 0]})
    with pytest.raises(EchoError, match="a is not complete"):
        whole_tensors(folder)
