"""The rooms of the package: imports between them, heavy libraries, and sizes of folders, files and functions.

Imports are read from the source with `ast`, including imports inside functions and `if TYPE_CHECKING`, so that a lazy
import cannot hide a dependency in the wrong direction.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "echo_cli"
TOY_TERMINAL_ENV = ROOT / "envs" / "toy_terminal_env"

WORDS = "words"
"""Modules at the top of the package, which every room may import."""

# Order of the data flow. A file may import the words, files of its own room, and rooms to its left.
ROOMS = (
    WORDS,
    *"config environments objective models rollouts runs traces evaluation training sweeps reports cli".split(),
)
STRANGERS = {("environments", "objective"), ("objective", "environments")}
"""Pairs of rooms that may not import each other."""

# A heavy library may be imported, lazily or not, only by the rooms, folders or files named here.
OWNERS = {
    "typer": ("cli",),
    "matplotlib": ("reports",),
    "jinja2": ("reports",),
    "openenv": ("environments/openenv",),
    "websockets": ("environments/openenv",),
    "mcp": ("environments/mcp",),
    "transformers": ("models/hf",),
    "peft": ("models/hf",),
    "tinker": ("models/tinker",),
    "datasets": ("environments", "traces"),
    "pyarrow": ("traces",),
    "tensorboard": ("training/trackers",),
    "trackio": ("training/trackers",),
    "wandb": ("training/trackers",),
}

# Modules whose import loads no torch. For a fast `echo-cli --help`, cli.main loads no heavy library at all.
WITHOUT_TORCH = (
    "config",
    *(f"runs.{name}" for name in ("directory", "checkpoints", "summary", "curves")),
    "sweeps",
    "training.trackers",
    "cli.main",
    "cli.commands",
)
HEAVY = {"torch", "matplotlib", "tokenizers", "safetensors", "numpy", "scipy", "httpx", *OWNERS} - {"typer"}
LIGHT = ("cli.main", "config.schema", "runs.directory", "sweeps.plan", "sweeps.runner", "training.trackers.host")

MOST_FILES = 15
MOST_LINES = 370
MOST_FUNCTION_LINES = 60
MOST_MODULES = 310

WEB_STACK = {"aiohttp", "fastapi", "flask", "http", "httpx", "openenv", "requests", "socket", "starlette"}
WEB_STACK |= {"urllib", "uvicorn", "websockets"}
REAL_WORLD = {"ctypes", "glob", "importlib", "io", "multiprocessing", "os", "pathlib", "pty", "shutil", "signal"}
REAL_WORLD |= {"subprocess", "sys", "tempfile"}
WIRE_MODULES = {f"toy_terminal_env.{name}" for name in ("client", "server", "wire")}
REAL_WORLD_CALLS = {"__import__", "compile", "eval", "exec", "open"}
# Functions of posixpath that use only the text of a path, not the real file system.
PURE_PATH_FUNCTIONS = {"basename", "dirname", "isabs", "join", "normpath", "split", "splitext"}


def _modules() -> dict[str, Path]:
    """Return source files by module name below echo_cli; a package has its folder's name, the root ''."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = path
    return found


MODULES = _modules()


def _room(name: str) -> str:
    room = name.partition(".")[0]
    return room if room in ROOMS else WORDS


def _imports(path: Path, package: str) -> set[str]:
    """Return the absolute names that a file imports; `from a import b` gives a and a.b, as b may be a module."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                base = ".".join([*parents[: len(parents) - node.level + 1], *([base] if base else [])])
            names.add(base)
            names.update(f"{base}.{alias.name}" for alias in node.names)
    return names


def _own_imports(name: str) -> set[str]:
    """Return the modules of echo_cli that module `name` imports."""
    path = MODULES[name]
    package = ".".join(["echo_cli", *path.relative_to(PACKAGE).parent.parts])
    below = (imported.removeprefix("echo_cli.") for imported in _imports(path, package))
    return {imported for imported in below if imported in MODULES and imported}


def test_every_folder_of_the_package_is_a_room() -> None:
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders == set(ROOMS) - {WORDS}


# The entry of `python -m echo_cli` and the lazy exports of the package belong to no room.
@pytest.mark.parametrize("name", [name for name in MODULES if name not in ("", "__main__")])
def test_a_file_imports_the_words_its_own_room_and_rooms_before_it(name: str) -> None:
    room = _room(name)
    for imported in sorted(_own_imports(name)):
        other = _room(imported)
        assert ROOMS.index(other) <= ROOMS.index(room), f"{room} comes before {other}: echo_cli.{imported}"
        assert (room, other) not in STRANGERS, f"{room} does not know {other}: echo_cli.{imported}"


def test_no_two_files_import_each_other() -> None:
    arrows = {name: _own_imports(name) for name in MODULES if name}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path[path.index(name) :], name))
        if name not in done:
            for other in arrows[name]:
                visit(other, (*path, name))
            done.add(name)

    for name in arrows:
        visit(name, ())


@pytest.mark.parametrize("library", OWNERS)
def test_a_heavy_library_is_imported_where_it_belongs(library: str) -> None:
    folders = tuple(PACKAGE / folder for folder in OWNERS[library])
    for path in MODULES.values():
        if library in {name.partition(".")[0] for name in _imports(path, "echo_cli")}:
            assert any(folder in path.parents for folder in folders), f"{path.relative_to(PACKAGE)} imports {library}"


def _loaded_by(name: str) -> set[str]:
    """Return the top-level packages loaded by `import echo_cli.NAME` in a fresh interpreter."""
    code = f"import sys, echo_cli.{name}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    path = os.pathsep.join([str(ROOT), str(TOY_TERMINAL_ENV.parent)])
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def _below(name: str) -> list[str]:
    return [module for module in MODULES if module == name or module.startswith(f"{name}.")]


def test_what_needs_no_torch_loads_none() -> None:
    names = [module for name in WITHOUT_TORCH for module in _below(name)]
    assert "torch" not in _loaded_by(", echo_cli.".join(names))


@pytest.mark.parametrize("name", LIGHT)
def test_light_modules_load_no_heavy_library(name: str) -> None:
    assert not HEAVY & _loaded_by(name)


def test_importing_the_package_runs_none_of_its_modules_and_loads_no_heavy_library() -> None:
    code = "import sys, echo_cli; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    loaded = set(done.stdout.split())
    assert {name for name in loaded if name.startswith("echo_cli")} == {"echo_cli"}
    assert not (HEAVY | {"typer", "pydantic", "yaml"}) & loaded


def test_no_module_is_a_bag_of_leftovers() -> None:
    names = {path.stem for path in MODULES.values()}
    assert names.isdisjoint({"utils", "util", "common", "base", "helpers", "misc"})


def test_folders_and_files_stay_small() -> None:
    modules = [path for path in MODULES.values() if path.name != "__init__.py"]
    assert len(modules) <= MOST_MODULES
    for folder in {path.parent for path in modules}:
        assert len([path for path in modules if path.parent == folder]) <= MOST_FILES, folder.relative_to(ROOT)
    for path in modules:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= MOST_LINES, path.relative_to(ROOT)


@pytest.mark.parametrize("folder", ["echo_cli", "envs", "scripts"])
def test_functions_stay_short(folder: str) -> None:
    scripts = [path for path in (ROOT / "scripts").iterdir() if path.is_file() and b"python" in path.read_bytes()[:40]]
    for path in [*sorted((ROOT / folder).rglob("*.py")), *(scripts if folder == "scripts" else ())]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                assert lines <= MOST_FUNCTION_LINES, f"{path.relative_to(ROOT)}: {node.name} has {lines} lines"


STARTERS = {f"subprocess.{name}" for name in ("Popen", "run", "call", "check_call", "check_output")} | {"os.system"}
"""Functions that start a process."""


def test_every_process_is_started_with_chosen_variables_and_by_one_way_to_run_python() -> None:
    for path in [*MODULES.values(), *(ROOT / "envs").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in STARTERS:
                place = f"{path.relative_to(ROOT)}:{node.lineno}"
                assert "env" in {keyword.arg for keyword in node.keywords}, place
                assert "sys.executable" not in ast.unparse(node), place


def _toy_files() -> list[Path]:
    return sorted(TOY_TERMINAL_ENV.rglob("*.py"))


def _is_wire(path: Path) -> bool:
    """Return whether a file belongs to the OpenEnv server, client or types, which may import the web stack."""
    relative = path.relative_to(TOY_TERMINAL_ENV)
    return relative.parts[0] == "server" or str(relative) in ("client.py", "wire.py")


@pytest.mark.parametrize("path", _toy_files(), ids=lambda path: str(path.relative_to(TOY_TERMINAL_ENV)))
def test_the_toy_world_touches_no_real_file_process_or_network(path: Path) -> None:
    imported = {name.split(".")[0] for name in _imports(path, "toy_terminal_env")}
    assert imported.isdisjoint({"torch", "echo_cli"})
    if _is_wire(path):
        return
    assert imported.isdisjoint(WEB_STACK | REAL_WORLD)
    assert _imports(path, "toy_terminal_env").isdisjoint(WIRE_MODULES)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in REAL_WORLD_CALLS, f"line {node.lineno} calls {node.func.id}"
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "posixpath":
            assert node.attr in PURE_PATH_FUNCTIONS, f"line {node.lineno} uses posixpath.{node.attr}"
