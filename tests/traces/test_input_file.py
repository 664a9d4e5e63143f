"""Compressed inputs: whole, in several parts, cut and damaged; and without the extra."""

from __future__ import annotations

import bz2
import gzip
import importlib.util
import lzma
from collections.abc import Callable
from pathlib import Path

import pytest

from echo_cli.errors import EchoError
from echo_cli.traces.input_file import input_file

TEXT = b"".join(b"line %d of a file that is long enough\n" % number for number in range(20_000))


def _zstd(data: bytes) -> bytes:
    packed: bytes = pytest.importorskip("zstandard").compress(data)
    return packed


COMPRESS = {"gzip": gzip.compress, "bzip2": bz2.compress, "xz": lzma.compress, "zstd": _zstd}


@pytest.mark.parametrize("name", COMPRESS)
def test_a_compressed_file_is_read_whatever_its_name_and_its_parts(name: str, tmp_path: Path) -> None:
    compress: Callable[[bytes], bytes] = COMPRESS[name]
    (tmp_path / "a").write_bytes(compress(TEXT) + compress(b"end"))
    with input_file(tmp_path / "a") as file:
        assert file.readline() == TEXT.partition(b"\n")[0] + b"\n"
        assert file.read() == TEXT.partition(b"\n")[2] + b"end"


@pytest.mark.parametrize("name", COMPRESS)
@pytest.mark.parametrize("damage", ["cut", "changed"])
def test_cut_and_damaged_data_is_an_error(name: str, damage: str, tmp_path: Path) -> None:
    packed = bytearray(COMPRESS[name](TEXT))
    if damage == "cut":
        del packed[-7:]
    else:
        packed[len(packed) // 2 :] = b"\xff" * (len(packed) - len(packed) // 2)
    (tmp_path / "a").write_bytes(packed)
    with pytest.raises(EchoError, match="data is damaged"), input_file(tmp_path / "a") as file:
        while file.read(2**16):
            pass


def test_without_the_extra_a_zstd_file_names_the_line_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_bytes(_zstd(TEXT))
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None if name == "zstandard" else find(name))
    with pytest.raises(EchoError, match="a zstd file needs zstandard, which is not installed") as raised:
        input_file(tmp_path / "a").__enter__()
    assert "zstd" in str(raised.value.tip)
