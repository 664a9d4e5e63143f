"""`.ci/skipped`: tests that a missing program skips are counted by program, from pytest's own report."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TESTS = """
import pytest

@pytest.fixture
def shell():
    pytest.skip("zsh is not installed")

@pytest.mark.parametrize("number", range(3))
def test_of_a_fixture(shell, number): ...

def test_of_a_call():
    pytest.skip("fish is not installed")

@pytest.mark.skipif(True, reason="no /dev/full")
def test_for_another_reason(): ...

def test_that_passes(): ...
"""


def test_skipped_tests_are_counted_by_the_program_that_is_missing(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(TESTS)
    run = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-c",
        "/dev/null",
        "--rootdir",
        str(tmp_path),
    ]
    subprocess.run([*run, "--junitxml=report.xml", "test_some.py"], cwd=tmp_path, check=True, capture_output=True)
    counted = subprocess.run(
        [sys.executable, ROOT / ".ci" / "skipped", tmp_path / "report.xml"], capture_output=True, text=True, check=True
    )
    assert counted.stdout == "skipped for want of a program: 4 (3 for zsh, 1 for fish); for other reasons: 1\n"
    (tmp_path / "test_some.py").write_text("def test_that_passes(): ...\n")
    subprocess.run([*run, "--junitxml=report.xml", "test_some.py"], cwd=tmp_path, check=True, capture_output=True)
    counted = subprocess.run(
        [sys.executable, ROOT / ".ci" / "skipped", tmp_path / "report.xml"], capture_output=True, text=True, check=True
    )
    assert counted.stdout == "skipped for want of a program: 0; for other reasons: 0\n"
