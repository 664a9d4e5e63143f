"""Contents of the wheel: three packages and their data, and no other folder of the checkout."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """A wheel built without a network, from a copy so that the checkout is not modified."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in ("pyproject.toml", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(ROOT / name, copy / name)
    for name in ("echo_cli", "envs", "configs", "tests"):
        shutil.copytree(ROOT / name, copy / name)
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", "dist"],
        cwd=copy,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (path,) = (copy / "dist").glob("*.whl")
    return zipfile.ZipFile(path)


@pytest.fixture(scope="module")
def wheel_names(wheel: zipfile.ZipFile) -> set[str]:
    return set(wheel.namelist())


def test_the_wheel_exposes_three_packages_and_nothing_else(wheel_names: set[str]) -> None:
    top_level = {name.split("/")[0] for name in wheel_names}
    (dist_info,) = (name for name in top_level if name.endswith(".dist-info"))
    assert top_level == {"echo_cli", "sandbox_env", "toy_terminal_env", dist_info}
    assert f"{dist_info}/licenses/LICENSE" in wheel_names


def test_the_wheel_ships_every_source_file_and_no_cache(wheel_names: set[str]) -> None:
    folders = {
        "echo_cli": "echo_cli",
        "envs/sandbox_env": "sandbox_env",
        "envs/toy_terminal_env": "toy_terminal_env",
    }
    for folder, shipped in folders.items():
        sources = {f"{shipped}/{path.relative_to(ROOT / folder)}" for path in (ROOT / folder).rglob("*.py")}
        assert sources <= wheel_names
    assert {"echo_cli/py.typed", "echo_cli/traces/schemas/trajectory.schema.json"} <= wheel_names
    assert not {name for name in wheel_names if name.endswith(".pyc") or "__pycache__" in name}


def test_the_wheel_ships_what_the_toy_terminals_server_and_its_image_need(wheel_names: set[str]) -> None:
    files = {"README.md", "openenv.yaml", "server/Dockerfile", "server/__main__.py", "server/app.py", "client.py"}
    assert {f"toy_terminal_env/{name}" for name in files} <= wheel_names


def test_the_wheel_ships_the_templates_the_style_and_the_script_of_reports(wheel_names: set[str]) -> None:
    reports = ROOT / "echo_cli" / "reports"
    files = [path for folder in ("page_assets", "templates") for path in (reports / folder).iterdir()]
    names = {path.name for path in files}
    assert {"report.css", "report.js", "base.html", "report.html", "sweep.html"} <= names
    assert {f"echo_cli/reports/{path.relative_to(reports)}" for path in files} <= wheel_names


def test_the_wheel_ships_configs_and_the_models_inside_the_package(wheel_names: set[str]) -> None:
    configs = {f"echo_cli/configs/{path.relative_to(ROOT / 'configs')}" for path in (ROOT / "configs").rglob("*.yaml")}
    weights = {
        f"echo_cli/models/{folder}/{path.name}"
        for folder in ("tiny_base", "tiny_machine")
        for path in (ROOT / "echo_cli" / "models" / folder).glob("*")
        if path.suffix in {".safetensors", ".json", ".md"}
    }
    assert len(weights) == 10
    assert configs | weights <= wheel_names


def test_the_console_script_is_echo_cli_and_no_program_is_called_echo(wheel: zipfile.ZipFile) -> None:
    (entry_points,) = (name for name in wheel.namelist() if name.endswith("/entry_points.txt"))
    lines = [line for line in wheel.read(entry_points).decode().splitlines() if line]
    assert lines == ["[console_scripts]", "echo-cli = echo_cli.__main__:main"]
