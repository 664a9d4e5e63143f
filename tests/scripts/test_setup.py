"""`scripts/setup` with a stand-in for Python that records what pip is asked to install."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

_PYTHON = f"""#!/bin/sh
case "$*" in
  "-m pip --version") ;;
  "-m pip install"*"--requirement"*) for last; do :; done; printf '%s\\n' "$*" >> pip.log; cp "$last" required.txt ;;
  "-m pip install"*) printf '%s\\n' "$*" >> pip.log ;;
  *) exec '{sys.executable}' "$@" ;;
esac
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "scripts").mkdir()
    for name in ("pyproject.toml", "scripts/setup", "scripts/requirements.txt"):
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


def _required(checkout: Path) -> dict[str, str]:
    """Return the requirements of the last call of pip by name, each with its lines."""
    entries = re.split(r"\n(?=\S)", (checkout / "required.txt").read_text())
    return {re.split("[=<> ]", entry, maxsplit=1)[0]: entry for entry in entries}


def test_extras_are_added_with_their_hashes_and_stay(checkout: Path) -> None:
    assert _setup(checkout)[-1].endswith("--no-build-isolation --editable .")
    plain = set(_required(checkout))
    assert {"numpy", "hatchling", "editables"} <= plain and not {"torch", "openenv", "peft", "pytest"} & plain
    assert _setup(checkout) == []
    calls = _setup(checkout, "openenv", "hf")
    assert all("--no-deps" in call for call in calls) and "--require-hashes" in calls[0]
    assert {"openenv", "peft"} <= set(_required(checkout)) and "zstandard" not in _required(checkout)
    assert all("--hash=sha256:" in entry for entry in _required(checkout).values())
    assert _setup(checkout, "hf") == _setup(checkout) == []
    assert _setup(checkout, "zstd") and {"zstandard", "openenv", "peft"} <= set(_required(checkout))
    assert _setup(checkout, "dev") and {"pytest", "wandb"} <= set(_required(checkout))
    assert _setup(checkout, "zstd") == _setup(checkout) == []


def test_extras_survive_a_change_of_the_requirements(checkout: Path) -> None:
    _setup(checkout, "hf")
    with (checkout / "pyproject.toml").open("a") as file:
        file.write("# changed\n")
    assert _setup(checkout) and "peft" in _required(checkout)


def test_the_hashes_are_those_of_the_pins() -> None:
    """A change of pyproject.toml or of the pins needs `scripts/pin`."""
    text = (ROOT / "scripts" / "requirements.txt").read_text()
    entries = re.findall(r"^([\w.-]+)==(\S+).*((?:\n    --hash=sha256:[0-9a-f]{64}.*)+)$", text, re.MULTILINE)
    assert len(entries) == text.count("# for: ") - 1  # one is explained
    pinned: dict[str, set[str]] = {}
    for line in (ROOT / "scripts" / "constraints.txt").read_text().splitlines():
        if found := re.match(r"([\w.-]+)==([^\s;]+)", line):
            pinned.setdefault(_normal(found[1]), set()).add(found[2])
    for name, version, _ in entries:
        assert version in pinned.get(_normal(name), {version}), name
    wanted = re.findall(r'^    "([\w-]+)[>,]', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert {_normal(name) for name in wanted} <= {_normal(name) for name, _, _ in entries} and "torch" in wanted


def _normal(name: str) -> str:
    return re.sub("[-_.]+", "-", name).lower()


def test_an_unknown_extra_installs_nothing_and_lists_the_known_ones(checkout: Path) -> None:
    done = subprocess.run(["bash", "scripts/setup", "openvn"], cwd=checkout, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "error: no extra 'openvn'",
        "  tip: extras: openenv mcp redact zstd datasets hf tinker tensorboard trackio wandb dev; "
        "usage: scripts/setup [EXTRA…]",
    ]
    assert not (checkout / "pip.log").exists()
