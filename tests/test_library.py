"""The package as a library: its names, and the programs in the documentation, which run as printed."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import echo_cli
from echo_cli import objective

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "library.md").read_text(), re.DOTALL | re.MULTILINE)
MOST_LINES = 20

PUBLIC = "Config load_config Trajectory Role Segment read_trajectories Task Environment open_worlds open_run"
PUBLIC += " run_experiment evaluate_run EchoError __version__"
WITHOUT_TORCH = "Config load_config Trajectory Role Segment read_trajectories Task Environment open_run EchoError"


def _run(program: str, folder: Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(ROOT), str(ROOT / "envs")])
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=folder, env=environment)


def test_the_public_names_are_these() -> None:
    assert set(dir(echo_cli)) == set(echo_cli.__all__) == set(PUBLIC.split())
    assert all(getattr(echo_cli, name).__name__ == name for name in echo_cli.__all__ if name != "__version__")
    assert re.fullmatch(r"\d+\.\d+\.\d+", echo_cli.__version__)
    with pytest.raises(AttributeError, match="'echo_cli' has no attribute 'load_confg'"):
        _ = echo_cli.load_confg  # type: ignore[attr-defined]


def test_a_type_checker_sees_the_names_where_they_are_loaded_from() -> None:
    tree = ast.parse(Path(str(echo_cli.__file__)).read_text(encoding="utf-8"))
    imported = {
        alias.name: node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert set(imported) >= set(PUBLIC.split()) - {"__version__"}
    assert {name: f"echo_cli.{module}" for name, module in echo_cli._MODULES.items()}.items() <= imported.items()


def test_what_needs_no_torch_is_had_without_it(tmp_path: Path) -> None:
    names = ", ".join(WITHOUT_TORCH.split())
    done = _run(f"import sys; from echo_cli import {names}; print('torch' in sys.modules)", tmp_path)
    assert done.stdout == "False\n", done.stderr


def test_the_ten_lines_of_the_readme_need_one_import() -> None:
    section = (ROOT / "README.md").read_text().partition("\n## Your own trainer\n")[2]
    lines = re.search(r"^```python\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
    assert lines is not None
    tree = ast.parse(lines[1])
    (imports,) = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom | ast.Import)]
    assert ast.unparse(imports) == "from echo_cli import objective"
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "objective"
    }
    assert len(used) > 5 and used <= set(objective.__all__)
    assert all(hasattr(objective, name) for name in objective.__all__)


def test_the_documentation_has_three_programs_of_few_lines() -> None:
    assert len(PROGRAMS) == 3
    for program in PROGRAMS:
        assert len([line for line in program.splitlines() if line]) <= MOST_LINES


@pytest.mark.parametrize(
    "number", [0, pytest.param(1, marks=pytest.mark.slow), 2], ids=["loss", "evaluation", "environment"]
)
def test_a_program_of_the_documentation_runs(number: int, tmp_path: Path) -> None:
    done = _run(PROGRAMS[number], tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout and not done.stderr
