"""The installed openenv package, and the classes that a config names."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Generic, TypeVar

import pytest

from echo_cli.environments.openenv.package import generic_arguments, import_from, load_class, require_openenv
from echo_cli.errors import EchoError, install_command

A, B = TypeVar("A"), TypeVar("B")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Provide an empty working directory, and unload the modules imported during the test."""
    path, modules = list(sys.path), set(sys.modules)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        del sys.modules[name]


def _install(folder: Path, name: str, version: str) -> None:
    """Write a package's metadata for `importlib.metadata`, as an installer does."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


@pytest.mark.parametrize(
    ("installed", "message"),
    [
        ({}, "environment.object needs openenv, which is not installed"),
        ({"openenv": "0.9.3"}, "environment.object needs openenv >=0.10,<0.11, but 0.9.3 is installed"),
        ({"openenv": "0.11.0"}, "environment.object needs openenv >=0.10,<0.11, but 0.11.0 is installed"),
        (
            {"openenv": "0.10.0", "openenv-core": "0.2.1"},
            "openenv-core 0.2.1 is installed beside openenv 0.10.0: the",
        ),
        ({"openenv-core": "0.2.1"}, "openenv-core 0.2.1 is installed: the old name"),
    ],
)
def test_another_openenv_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, installed: dict[str, str], message: str
) -> None:
    for name, version in installed.items():
        _install(folder, name, version)
    monkeypatch.setattr(sys, "path", [str(folder)])
    with pytest.raises(EchoError) as error:
        require_openenv("environment.object")
    assert error.value.message.startswith(message)
    assert install_command("openenv") in str(error.value.tip)
    assert ("pip uninstall -y openenv openenv-core" in str(error.value.tip)) == ("openenv-core" in installed)


@pytest.mark.parametrize("version", ["0.10.0", "0.10.7"])
def test_the_known_openenv_is_taken(folder: Path, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    _install(folder, "openenv", version)
    monkeypatch.setattr(sys, "path", [str(folder)])
    require_openenv()
    assert "openenv" not in sys.modules or not str(sys.modules["openenv"].__file__).startswith(str(folder))


def test_a_class_of_a_named_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "mine").mkdir()
    (folder / "mine" / "world.py").write_text("class World(dict): pass\n")
    (folder / "json.py").write_text("raise AssertionError('it hides an installed module')\n")
    with pytest.raises(EchoError, match="module 'mine' not found") as error:
        load_class("mine.world:World", dict)
    assert "--import-from ." in str(error.value.tip)
    import_from(str(folder))
    import_from(str(folder))
    assert sys.path.count(str(folder)) == 1 and sys.path[-1] == str(folder)
    world = load_class("mine.world:World", dict)
    assert world.__name__ == "World" and world.__module__ == "mine.world"
    monkeypatch.delitem(sys.modules, "json")
    assert load_class("json:JSONDecoder").__name__ == "JSONDecoder"


@pytest.mark.parametrize(
    ("source", "import_path", "message", "tip"),
    [
        (
            None,
            "mine:World",
            "module 'mine' not found, required by 'mine:World'",
            "name the folder that contains it: --import-from FOLDER",
        ),
        (
            "",
            "mine.world:World",
            "module 'mine.world' not found, required by",
            "name the folder that contains it: --import-from FOLDER",
        ),
        (
            "import no_such_thing",
            "mine:World",
            "'mine' cannot be imported: ModuleNotFoundError: No",
            "python -c",
        ),
        ("raise OSError('no\\n\\x1b[1mdisk')", "mine:World", "OSError: no \\x1b[1mdisk", "python -c"),
        ("raise SystemExit(3)", "mine:World", "SystemExit: 3", "python -c"),
        ("x = (", "mine:World", "SyntaxError: '(' was never closed", "python -c"),
        ("class Word(dict): pass", "mine:World", "module 'mine' has no class 'World'", "classes there: Word"),
        ("World = {}", "mine:World", "module 'mine' has no class 'World'", "classes there: none"),
        ("class World: pass", "mine:World", "'mine:World' is not an OpenEnv dict", "inherits from dict"),
    ],
)
def test_what_names_no_class_is_refused_in_one_line(
    folder: Path, source: str | None, import_path: str, message: str, tip: str
) -> None:
    import_from(str(folder))
    if source is not None:
        (folder / "mine.py").write_text(source)
    with pytest.raises(EchoError) as error:
        load_class(import_path, dict)
    assert message in error.value.message and tip in str(error.value.tip)
    assert "\n" not in error.value.message and error.value.exit_code == 2


def test_type_parameters_are_followed_to_the_base() -> None:
    class Base(Generic[A, B]):
        pass

    class Direct(Base[int, str]):
        pass

    class Half(Base[A, str], Generic[A]):
        pass

    class Whole(Half[bytes]):
        pass

    class Below(Whole):
        pass

    class Bare(Base):  # type: ignore[type-arg]
        pass

    assert generic_arguments(Direct, Base) == (int, str)
    assert generic_arguments(Whole, Base) == generic_arguments(Below, Base) == (bytes, str)
    assert generic_arguments(Half, Base) == (A, str)
    assert generic_arguments(Bare, Base) == ()
