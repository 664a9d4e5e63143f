"""`scripts/setup` with a stand-in for Python that records what pip is asked to install."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

_PYTHON = f"""#!/bin/sh
case "$*" in
  "-m pip --version") ;;
  "-m pip install"*) printf '%s\\n' "$*" >> pip.log ;;
  *) exec '{sys.executable}' "$@" ;;
esac
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "scripts").mkdir()
    for name in ("pyproject.toml", "scripts/setup", "scripts/constraints.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(_PYTHON)
    python.chmod(0o755)
    return tmp_path


def _setup(checkout: Path, *extras: str) -> list[str]:
    """Run the script and return the arguments of its calls of pip."""
    log = checkout / "pip.log"
    log.unlink(missing_ok=True)
    done = subprocess.run(["bash", "scripts/setup", *extras], cwd=checkout, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    return log.read_text().splitlines() if log.exists() else []


def test_extras_are_added_with_the_pins_and_stay(checkout: Path) -> None:
    assert _setup(checkout)[-1].endswith("--editable .")
    assert _setup(checkout) == []
    calls = _setup(checkout, "openenv", "hf")
    assert calls[-1].endswith("--editable .[hf,openenv]")
    assert all("-c scripts/constraints.txt" in call for call in calls)
    assert _setup(checkout, "hf") == _setup(checkout) == []
    assert _setup(checkout, "zstd")[-1].endswith("--editable .[hf,openenv,zstd]")
    assert _setup(checkout, "dev")[-1].endswith("--editable .[dev]")
    assert _setup(checkout, "zstd") == _setup(checkout) == []


def test_extras_survive_a_change_of_the_requirements(checkout: Path) -> None:
    _setup(checkout, "hf")
    with (checkout / "pyproject.toml").open("a") as file:
        file.write("# changed\n")
    assert _setup(checkout)[-1].endswith("--editable .[hf]")


def test_an_unknown_extra_installs_nothing_and_lists_the_known_ones(checkout: Path) -> None:
    done = subprocess.run(["bash", "scripts/setup", "openvn"], cwd=checkout, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "error: no extra 'openvn'",
        "  tip: extras: openenv zstd hf tensorboard trackio wandb dev; usage: scripts/setup [EXTRA…]",
    ]
    assert not (checkout / "pip.log").exists()
