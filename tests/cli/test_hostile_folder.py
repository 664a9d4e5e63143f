"""The working directory decides nothing: no module, setting or style there is read by a command or its children."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from loopback import environment
from tiny_run import TINY

from echo_cli.__main__ import leave_current_folder
from echo_cli.processes import python

MODULES = """
    pydantic torch yaml typer rich numpy json signal socket typing uvicorn openenv websockets tensorboard matplotlib
    sandbox_env toy_terminal_env echo_cli sitecustomize usercustomize conftest tokenizers safetensors runpy scipy
"""
COLOUR = "#123456"


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A working directory whose every file leaves its name in `../found`, or changes a picture, if it is read."""
    folder = tmp_path / "hostile"
    folder.mkdir()
    for name in MODULES.split():
        (folder / f"{name}.py").write_text(f"open({str(tmp_path / 'found')!r}, 'a').write('{name} ')")
    (folder / "matplotlibrc").write_text(f"axes.facecolor: {COLOUR.removeprefix('#')}\naxes.linewidth: 7\n")
    (folder / ".env").write_text("HF_TOKEN=hostile")
    for name in ("git", "bash", "docker"):
        (folder / name).write_text(f"#!/bin/sh\necho {name} >> {tmp_path / 'found'}")
        (folder / name).chmod(0o755)
    return folder


SCRIPT = python("-c", "import sys; from echo_cli.__main__ import main; sys.exit(main())")


def _run(hostile: Path, command: list[str], *words: str, before: str = "") -> str:
    """Run a command in the hostile folder, which an empty entry of PATH names, and return its output."""
    variables = environment()
    variables |= {"PATH": f":{variables['PATH']}:", "PYTHONPATH": before + variables["PYTHONPATH"]}
    done = subprocess.run([*command, *words], cwd=hostile, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = hostile.parent / "found"
    assert not found.exists(), found.read_text()
    return done.stdout


def test_the_command_imports_nothing_from_the_working_directory(hostile: Path) -> None:
    assert "Train a policy" in _run(hostile, SCRIPT, "train", "--help")
    (hostile / "echo_cli.py").unlink()  # `python -m` itself would find it first
    assert "Train a policy" in _run(hostile, [sys.executable, "-m", "echo_cli"], "train", "--help")
    # An empty entry is on the path before anything of ours runs; an editable install imports `typing` then.
    for name in ("sitecustomize", "usercustomize", "typing"):
        (hostile / f"{name}.py").unlink()
    assert "Train a policy" in _run(hostile, SCRIPT, "train", "--help", before=os.pathsep)


def test_a_folder_that_pythonpath_names_stays_on_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    here = str(tmp_path)
    for value, is_module, path, left in (
        ("", True, [here, "/a"], ["/a"]),
        ("", False, ["/bin", here], ["/bin", here]),  # from a .pth file
        (":/a", False, ["/bin", here, "/a"], ["/bin", "/a"]),
        ("/a:", True, [here, "/a", here], ["/a"]),
        (".:/a", True, [here, here, "/a"], [here, here, "/a"]),
        (f"/a::{here}", False, ["/bin", "/a", here], ["/bin", "/a", here]),
    ):
        monkeypatch.setenv("PYTHONPATH", value)
        leave_current_folder(path, is_module)
        assert path == left


RUN = ["--output-dir", "out", "--steps", "1", *TINY]


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["train", "--run-name", "run", *RUN, "track=tensorboard"],
        ["sweep-lambda", "0", "--seeds", "0", *RUN],
        ["env", "check", "sandbox"],
    ],
    ids=lambda words: words[0],
)
def test_a_command_and_its_children_read_nothing_of_the_working_directory(words: list[str], hostile: Path) -> None:
    _run(hostile, SCRIPT, *words)
    if words[0] == "train":
        pictures = list((hostile / "out").rglob("*.svg"))
        assert pictures and all(COLOUR not in path.read_text() for path in pictures)
