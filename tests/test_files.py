"""JSONL and whole-file writes: strict JSON, cut lines, full disks, one-line errors."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from echo_cli.errors import EchoError
from echo_cli.files import (
    append_jsonl,
    lock_folder,
    read_json,
    read_jsonl,
    truncate_jsonl,
    write_atomic,
    write_csv,
    write_json,
)
from echo_cli.text import escape_unprintable

ROWS = [{"step": step, "train/env_ce": 1.0 / (step + 3), "note": "naïve\u2028line"} for step in range(5)]


def _step(row: dict[str, int]) -> int:
    return row["step"]


def _file(path: Path) -> Path:
    append_jsonl(path, ROWS)
    return path


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    assert list(read_jsonl(_file(tmp_path / "m.jsonl"))) == ROWS


def test_nan_and_infinity_are_null_at_any_depth(tmp_path: Path) -> None:
    append_jsonl(tmp_path / "m.jsonl", [{"a": math.nan, "b": [math.inf, 1.5], "c": {"d": -math.inf}}])
    assert (tmp_path / "m.jsonl").read_text() == '{"a": null, "b": [null, 1.5], "c": {"d": null}}\n'
    write_json(tmp_path / "s.json", {"a": math.nan})
    assert read_json(tmp_path / "s.json") == {"a": None}


@pytest.mark.parametrize("cut", range(1, 28))
def test_a_cut_last_line_is_left_out_and_truncated(tmp_path: Path, cut: int) -> None:
    path = _file(tmp_path / "m.jsonl")
    whole = path.read_bytes()
    path.write_bytes(whole + json.dumps({"step": 5, "note": "näh"}, ensure_ascii=False).encode()[:cut])
    if cut < 27:  # all 27 bytes are a complete object that lacks only its newline
        assert list(read_jsonl(path)) == ROWS
    truncate_jsonl(path, 4, _step)
    assert path.read_bytes() == whole


def test_truncation_keeps_the_bytes_of_the_rows_before(tmp_path: Path) -> None:
    path = _file(tmp_path / "m.jsonl")
    before = path.read_bytes().splitlines(keepends=True)
    truncate_jsonl(path, 2, _step)
    assert path.read_bytes() == b"".join(before[:3])


@pytest.mark.parametrize("garbage", [b"{oops\n", b"[1]\n", b"\xff\xfe\n", b"\n"])
def test_garbage_names_file_and_line(tmp_path: Path, garbage: bytes) -> None:
    path = _file(tmp_path / "m.jsonl")
    path.write_bytes(path.read_bytes() + garbage + b'{"step": 6}\n')
    with pytest.raises(EchoError, match=rf"{path}:6: not ") as caught:
        list(read_jsonl(path))
    assert "\n" not in f"{caught.value.message}{caught.value.tip}"


def test_a_row_without_a_step_names_its_line(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    append_jsonl(path, [{"step": 1}, {"stop": 2}])
    with pytest.raises(EchoError, match=r"m\.jsonl:2: the row has no step"):
        truncate_jsonl(path, 5, _step)


def test_a_full_disk_leaves_no_half_row(tmp_path: Path) -> None:
    """A file-size limit makes the kernel write part of a row and then fail, like a full disk."""
    path = _file(tmp_path / "m.jsonl")
    before = path.read_bytes()
    script = f"""
        import resource
        from pathlib import Path
        from echo_cli.errors import EchoError
        from echo_cli.files import append_jsonl, write_atomic
        resource.setrlimit(resource.RLIMIT_FSIZE, ({len(before) + 10},) * 2)
        path = Path({str(path)!r})
        for write, data in ((append_jsonl, [{{"step": 5, "x": "y" * 50}}]), (write_atomic, b"z" * 5000)):
            try:
                write(path, data)
            except EchoError as error:
                print(error.exit_code, error.message, error.tip)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    assert all(line.startswith(f"1 the disk is full: cannot write {path}") for line in lines)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.jsonl"]


def test_a_table_has_a_line_of_names_and_quotes_what_must_be(tmp_path: Path) -> None:
    write_csv(tmp_path / "t.csv", ("a", "b"), [(1.5, None), ("x,y", "é")])
    assert (tmp_path / "t.csv").read_bytes() == 'a,b\n1.5,\n"x,y",é\n'.encode()


def test_dev_full_is_a_full_disk(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").symlink_to("/dev/full")
    with pytest.raises(EchoError, match="the disk is full") as caught:
        append_jsonl(tmp_path / "m.jsonl", ROWS)
    assert caught.value.exit_code == 1


@pytest.mark.parametrize("place", ["file/below", "/proc/nowhere", "missing/folder/x"])
def test_a_place_that_cannot_be_written_is_a_usage_error(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EchoError, match="cannot write") as caught:
        write_atomic(tmp_path / place, b"x")
    assert caught.value.exit_code == 2
    with pytest.raises(EchoError, match="cannot write") as caught:
        append_jsonl(tmp_path / place, ROWS)
    assert caught.value.exit_code == 2


def test_a_lock_is_held_once_and_given_back(tmp_path: Path) -> None:
    with lock_folder(tmp_path), pytest.raises(EchoError, match="locked by another process"), lock_folder(tmp_path):
        pass
    with lock_folder(tmp_path):
        pass


def test_shown_text_has_one_line_and_no_escapes() -> None:
    assert escape_unprintable("a\nb\x1b[31m\u2028λ\udcff") == "a\\nb\\x1b[31m\\u2028λ\\udcff"
