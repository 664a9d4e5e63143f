"""Outputs in a folder that others can write to: links and names that another user planted there are not followed."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from echo_cli import files
from echo_cli.errors import EchoError
from echo_cli.files import TEMPORARY, append_jsonl, left_beside, output_file, unfinished_beside, write_atomic
from echo_cli.symlinks import folder_of, make_folder
from echo_cli.trace import write_traces


@pytest.fixture
def foreign(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """A function that gives a link to another user; without root's rights, it only says that the link is theirs."""
    planted: set[tuple[int, int]] = set()
    real = os.stat

    def stat_of(path: Any, **options: Any) -> os.stat_result:
        found = real(path, **options)
        if (found.st_dev, found.st_ino) not in planted:
            return found
        return os.stat_result([*found[:4], os.geteuid() + 1, *found[5:10]])

    def plant(link: Path) -> None:
        if os.geteuid() == 0:
            os.lchown(link, 12345, 12345)
        else:
            planted.add((link.lstat().st_dev, link.lstat().st_ino))
            monkeypatch.setattr(os, "stat", stat_of)

    return plant


def _victim(tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "out.json").write_text("precious")
    return tmp_path / "home" / "out.json"


def _writers() -> dict[str, Callable[[Path], None]]:
    def output(path: Path) -> None:
        with output_file(path, overwrite=True) as file:
            file.write(b"{}\n")

    return {
        "atomic": lambda path: write_atomic(path, b"x"),
        "append": lambda path: append_jsonl(path, [{}]),
        "traces": lambda path: write_traces(path, []),
        "output": output,
    }


@pytest.mark.parametrize("writer", _writers())
def test_a_folder_swapped_for_a_link_of_another_user_is_refused(
    writer: str, tmp_path: Path, foreign: Callable[[Path], None]
) -> None:
    victim = _victim(tmp_path)
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "outputs").symlink_to(victim.parent)
    foreign(tmp_path / "shared" / "outputs")
    with pytest.raises((EchoError, PermissionError), match="symbolic link of another user"):
        _writers()[writer](tmp_path / "shared" / "outputs" / "out.json")
    assert victim.read_text() == "precious" and [entry.name for entry in victim.parent.iterdir()] == ["out.json"]


@pytest.mark.parametrize("writer", ["append", "traces", "output"])
def test_a_planted_link_under_the_output_s_name_is_not_followed(
    writer: str, tmp_path: Path, foreign: Callable[[Path], None]
) -> None:
    victim = _victim(tmp_path)
    (tmp_path / "out.json").symlink_to(victim)
    foreign(tmp_path / "out.json")
    with pytest.raises((EchoError, PermissionError), match="symbolic link of another user"):
        _writers()[writer](tmp_path / "out.json")
    assert victim.read_text() == "precious"


def test_an_output_that_is_replaced_replaces_a_link_and_not_its_target(
    tmp_path: Path, foreign: Callable[[Path], None]
) -> None:
    victim = _victim(tmp_path)
    for name in ("ours", "theirs"):
        (tmp_path / name).symlink_to(victim)
    foreign(tmp_path / "theirs")
    for name in ("ours", "theirs"):
        write_atomic(tmp_path / name, b"new")
        assert (tmp_path / name).read_text() == "new" and not (tmp_path / name).is_symlink()
    assert victim.read_text() == "precious"


def test_own_links_lead_where_they_point(tmp_path: Path) -> None:
    (tmp_path / "real" / "deep").mkdir(parents=True)
    (tmp_path / "relative").symlink_to("real/deep/../deep")
    (tmp_path / "absolute").symlink_to(tmp_path / "relative")
    write_atomic(tmp_path / "absolute" / "a", b"1")
    append_jsonl(tmp_path / "absolute" / "b", [{}])
    make_folder(tmp_path / "absolute" / "c" / "d")
    assert {entry.name for entry in (tmp_path / "real" / "deep").iterdir()} == {"a", "b", "c"}
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="symbolic links"), folder_of(tmp_path / "loop" / "a"):
        pass


def test_unfinished_files_have_names_that_nobody_can_plant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.json"
    assert unfinished_beside(path) != unfinished_beside(path) and unfinished_beside(path).name.startswith(TEMPORARY)
    assert len(os.fsencode(unfinished_beside(tmp_path / ("λ" * 120)).name)) < 256
    victim = _victim(tmp_path)
    monkeypatch.setattr(files.secrets, "token_hex", lambda _: "guessed")
    unfinished_beside(path).symlink_to(victim)
    with pytest.raises(EchoError, match="File exists"):  # even a guessed name is not followed
        write_atomic(path, b"x")
    assert victim.read_text() == "precious" and not path.exists()
    unfinished_beside(path).unlink()
    previous = os.umask(0o027)
    try:
        write_atomic(path, b"x")
    finally:
        os.umask(previous)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_an_output_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with pytest.raises(EchoError, match="File exists"), output_file(path, overwrite=False) as file:
        file.write(b"{}\n")
        path.write_text("someone else's")
    assert path.read_text() == "someone else's" and [entry.name for entry in tmp_path.iterdir()] == ["out.jsonl"]
    path.unlink()
    with output_file(path, overwrite=False) as file:
        file.write(b"{}\n")
    assert path.read_bytes() == b"{}\n"


def test_what_a_killed_process_left_is_found_and_nothing_else(tmp_path: Path) -> None:
    left = unfinished_beside(tmp_path / "model")
    left.mkdir()
    unfinished_beside(tmp_path / "model.bin").mkdir()
    assert left_beside(tmp_path / "model") == [left]
