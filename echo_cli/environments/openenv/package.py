"""Check the optional `openenv` package, and load the classes and functions that a config names."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable
from importlib import metadata
from types import ModuleType
from typing import Any, get_args, get_origin

from echo_cli.environments.faults import fault_line
from echo_cli.errors import EchoError, install_command, missing_package
from echo_cli.text import escape_unprintable, suggest

_EXTRA = "openenv"
_VERSIONS = ">=0.10,<0.11"


def require_openenv(what: str = "this environment") -> None:
    """Check that a supported version of `openenv` is installed, without importing it, which takes seconds.

    Args:
        what: the feature that needs openenv, for the message.

    Raises:
        EchoError: openenv is not installed or has an unsupported version, or `openenv-core`, its old name, is
            installed, which overwrites the same folder.
    """
    version, core = _version("openenv"), _version("openenv-core")
    if core is not None:
        beside = f" beside openenv {version}" if version else ""
        raise EchoError(
            f"openenv-core {core} is installed{beside}: the old name of openenv, which overwrites the same folder",
            f"pip uninstall -y openenv openenv-core, then {install_command(_EXTRA)}",
        )
    if version is None:
        raise missing_package(what, "openenv", _EXTRA)
    if version.split(".")[:2] != ["0", "10"]:
        found = escape_unprintable(version)
        raise EchoError(f"{what} needs openenv {_VERSIONS}, but {found} is installed", install_command(_EXTRA))


def missing_module(output: str) -> EchoError | None:
    """Return the error for a package whose absence ended a server of this Python; None without such a line.

    Args:
        output: last lines of the server's output.
    """
    found = re.search(r"No module named '?(\w+)", output)
    if found is None:
        return None
    if found[1] in ("openenv", "fastapi", "uvicorn"):
        return missing_package("the server", found[1], _EXTRA)
    tip = (
        f"install it for {escape_unprintable(sys.executable)}, or set environment.provider.env.PYTHONPATH to its folder"
    )
    return EchoError(f"the server needs the module '{found[1]}', which was not found", tip)


def import_from(folder: str) -> None:
    """Add a folder at the end of the import path, where it hides no installed package, until the process ends."""
    if folder not in sys.path:
        sys.path.append(folder)


def load_class(import_path: str, base: type | None = None) -> type[Any]:
    """Load the class `pkg.module:Class` from the installed packages and the folder of `import_from`.

    Raises:
        EchoError: the module or the class does not exist, the module cannot be imported, or the class does not inherit
            from `base` or is abstract.
    """
    module, name = _module(import_path)
    module_name = module.__name__
    found = getattr(module, name, None)
    if not isinstance(found, type):
        raise EchoError(
            f"module '{module_name}' has no class '{name}'", f"classes there: {_classes(module, base) or 'none'}"
        )
    if base is not None and not issubclass(found, base):
        raise EchoError(
            f"'{import_path}' is not an OpenEnv {base.__name__}", f"name a class that inherits from {base.__qualname__}"
        )
    missing: frozenset[str] = getattr(found, "__abstractmethods__", frozenset())
    if base is not None and missing:
        listed = ", ".join(sorted(missing))
        raise EchoError(f"'{import_path}' is abstract: it lacks {listed}", "name a class that implements all of them")
    return found


def load_function(import_path: str) -> Callable[..., Any]:
    """Load the function `pkg.module:function` from the installed packages and the folder of `import_from`.

    Raises:
        EchoError: the module or the function does not exist, or the module cannot be imported.
    """
    module, name = _module(import_path)
    found: Callable[..., Any] | None = getattr(module, name, None)
    if found is None or not callable(found):
        own = [each for each, value in vars(module).items() if callable(value) and not each.startswith("_")]
        listed = sorted(each for each in own if getattr(module, each).__module__ == module.__name__)
        tip = suggest(name, listed or ["none"], "functions there")
        raise EchoError(f"module '{module.__name__}' has no function '{name}'", tip)
    return found


def generic_arguments(cls: type, base: type) -> tuple[Any, ...]:
    """Return the type arguments of `cls` for its generic `base`; a TypeVar for each unbound parameter."""
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


def _module(import_path: str) -> tuple[ModuleType, str]:
    """Import the module of `pkg.module:Name`, and return it with the name."""
    module_name, _, name = import_path.partition(":")
    try:
        return importlib.import_module(module_name), name
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise _failed(module_name, error) from error
        raise EchoError(
            f"module '{error.name}' not found, required by '{import_path}'",
            "install it, or name the folder that contains it: --import-from FOLDER (--import-from . for this one)",
        ) from None
    except (Exception, SystemExit) as error:
        raise _failed(module_name, error) from error


def _failed(module_name: str, error: BaseException) -> EchoError:
    return EchoError(
        f"module '{module_name}' cannot be imported: {type(error).__name__}: {fault_line(str(error))}",
        f'run python -c "import {module_name}" to see the traceback',
    )


def _classes(module: Any, base: type | None) -> str:
    names = [
        name
        for name, value in vars(module).items()
        if isinstance(value, type) and value is not base and issubclass(value, base or object)
        if value.__module__ == module.__name__ or base is not None
    ]
    return ", ".join(sorted(names)[:8])
