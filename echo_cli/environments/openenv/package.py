"""The `openenv` package, an extra that is imported only where it is needed, and classes that a config names."""

from __future__ import annotations

import importlib
import os
import sys
from importlib import metadata
from typing import Any, get_args, get_origin

from echo_cli.environments.faults import fault_line
from echo_cli.errors import EchoError
from echo_cli.text import escape_unprintable

_INSTALL = "pip install 'echo-cli[openenv]'"
_VERSIONS = ">=0.10,<0.11"


def require_openenv(what: str = "this environment") -> None:
    """Make sure that `openenv` is here, in a version that we know. It takes seconds to import, so it is not imported.

    Args:
        what: what needs it, for the message.

    Raises:
        EchoError: it is not installed, or in another version, or `openenv-core`, which is its old name and overwrites
            the same folder, is installed beside it.
    """
    version, core = _version("openenv"), _version("openenv-core")
    if core is not None:
        beside = f" beside openenv {version}" if version else ""
        raise EchoError(
            f"openenv-core {core} is installed{beside}: the old name of openenv, which overwrites the same folder",
            f"pip uninstall -y openenv openenv-core, then {_INSTALL}",
        )
    if version is None:
        raise EchoError(f"{what} needs openenv, which is not installed", _INSTALL)
    if version.split(".")[:2] != ["0", "10"]:
        raise EchoError(f"{what} needs openenv {_VERSIONS}, and {escape_unprintable(version)} is installed", _INSTALL)


def load_class(import_path: str, base: type | None = None) -> type[Any]:
    """The class that `pkg.module:Class` names. The current folder can be imported from, as with `python -m`.

    Raises:
        EchoError: there is no such module or no such class in it, the module cannot be imported, or the class is none
            of `base`, or lacks some of its methods.
    """
    module_name, _, name = import_path.partition(":")
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.insert(0, folder)  # and stays, for what the module imports later
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise _failed(module_name, error) from error
        raise EchoError(
            f"there is no module '{error.name}', which '{import_path}' needs",
            f"install it, or start where it can be imported from; this is {escape_unprintable(folder)}",
        ) from None
    except (Exception, SystemExit) as error:
        raise _failed(module_name, error) from error
    found = getattr(module, name, None)
    if not isinstance(found, type):
        raise EchoError(
            f"module '{module_name}' has no class '{name}'", f"classes there: {_classes(module, base) or 'none'}"
        )
    if base is not None and not issubclass(found, base):
        raise EchoError(
            f"'{import_path}' is no {base.__name__} of OpenEnv", f"name a class that inherits from {base.__qualname__}"
        )
    missing: frozenset[str] = getattr(found, "__abstractmethods__", frozenset())
    if base is not None and missing:
        listed = ", ".join(sorted(missing))
        raise EchoError(f"'{import_path}' is abstract: it has no {listed}", "name a class that has all of them")
    return found


def generic_arguments(cls: type, base: type) -> tuple[Any, ...]:
    """What `cls` gives for the type parameters of its generic `base`; a TypeVar where it leaves one open."""
    for parent in cls.__dict__.get("__orig_bases__", cls.__bases__):
        origin = get_origin(parent) or parent
        if origin is base:
            if get_args(parent):
                return get_args(parent)
        elif isinstance(origin, type) and issubclass(origin, base):
            given = dict(zip(getattr(origin, "__parameters__", ()), get_args(parent), strict=False))
            if found := generic_arguments(origin, base):
                return tuple(given.get(argument, argument) for argument in found)
    return ()


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _failed(module_name: str, error: BaseException) -> EchoError:
    return EchoError(
        f"module '{module_name}' cannot be imported: {type(error).__name__}: {fault_line(str(error))}",
        f'python -c "import {module_name}" shows where',
    )


def _classes(module: Any, base: type | None) -> str:
    names = [
        name
        for name, value in vars(module).items()
        if isinstance(value, type) and value is not base and issubclass(value, base or object)
        if value.__module__ == module.__name__ or base is not None
    ]
    return ", ".join(sorted(names)[:8])
