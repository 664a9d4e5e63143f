"""The command that installs a missing extra suits the installation: a checkout's `.venv`, another one, or a wheel."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from echo_cli import errors
from echo_cli.errors import install_command


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout at a path with a space; the running Python is not its own."""
    root = tmp_path / "my checkout"
    (root / "scripts").mkdir(parents=True)
    (root / "scripts" / "setup").touch()
    monkeypatch.setattr(errors, "__file__", str(root / "echo_cli" / "errors.py"))
    monkeypatch.chdir(tmp_path)
    return root


def test_a_checkouts_own_venv_is_extended_by_its_script(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "prefix", str(checkout / ".venv"))
    assert install_command("hf") == f"bash '{checkout}/scripts/setup' hf"
    monkeypatch.chdir(checkout)
    assert install_command("hf") == "bash scripts/setup hf"


def test_another_venv_keeps_the_editable_install_and_the_pins(checkout: Path) -> None:
    pins = f"'{checkout}/scripts/constraints.txt'"
    assert install_command("openenv").endswith(f"install -c {pins} -e '{checkout}[openenv]'")


def test_a_wheel_is_extended_by_the_pip_of_its_python(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (checkout / "scripts" / "setup").unlink()
    (checkout / "python").touch()
    monkeypatch.setattr(sys, "executable", str(checkout / "python"))
    monkeypatch.setenv("PATH", str(checkout))
    assert install_command("hf") == f"'{checkout}/python' -m pip install 'echo-cli[hf]'"
    (checkout / "pip").touch(mode=0o755)
    assert install_command("hf") == "pip install 'echo-cli[hf]'"
