"""The setup of a task: files and tool calls that are made before its episode."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from echo_cli.config.mcp import McpConfig
from echo_cli.environments.mcp.tools import Toolbox
from echo_cli.environments.protocol import JsonObject
from echo_cli.environments.tasks import Task
from echo_cli.errors import EchoError
from echo_cli.text import escape_unprintable, suggest

SETUP = "setup"
_KEYS = ("files", "calls")


@dataclass(frozen=True)
class TaskSetup:
    """Files to write, by relative path, and calls to make, in order, as (name, arguments)."""

    files: Mapping[str, str]
    calls: tuple[tuple[str, JsonObject], ...]


def setup_of(arguments: JsonObject) -> TaskSetup:
    """Return the setup in a task's reset arguments; it is empty if they have none.

    Raises:
        ValueError: the setup is malformed; the message names the part.
    """
    setup = arguments.get(SETUP, {})
    if not isinstance(setup, Mapping):
        raise ValueError("setup is not a mapping of files and calls")
    if unknown := next((key for key in setup if key not in _KEYS), None):
        raise ValueError(f"setup has the unknown key '{unknown}'; {suggest(str(unknown), _KEYS, 'keys')}")
    files, calls = setup.get("files", {}), setup.get("calls", [])
    if not isinstance(files, Mapping) or not all(isinstance(text, str) for text in files.values()):
        raise ValueError("setup.files is not a mapping of paths to texts")
    for path in files:
        if not path or PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
            raise ValueError(f"setup.files: '{path}' is not a path below the episode's folder")
    if not isinstance(calls, list):
        raise ValueError("setup.calls is not a list")
    return TaskSetup(files, tuple(_call(call, number) for number, call in enumerate(calls)))


def _call(call: Any, number: int) -> tuple[str, JsonObject]:
    if not isinstance(call, Mapping) or not {"name"} <= call.keys() <= {"name", "arguments"}:
        raise ValueError(f"setup.calls[{number}] is not a call; write {{name: …, arguments: {{…}}}}")
    arguments = call.get("arguments", {})
    if not isinstance(call["name"], str) or not isinstance(arguments, Mapping):
        raise ValueError(f"setup.calls[{number}]: name is no text, or arguments is no mapping")
    return call["name"], arguments


def check_setups(tasks: Iterable[Task], config: McpConfig, toolbox: Toolbox) -> None:
    """Check the setups of all tasks before the first episode.

    Raises:
        EchoError: a setup is malformed, names a tool that the server does not have or arguments that do not match its
            schema, or has files where episodes have no folder of their own.
    """
    for task in tasks:
        try:
            setup = setup_of(task.reset_arguments)
            for name, arguments in setup.calls:
                if problem := toolbox.problem(name, arguments, offered=False):
                    raise ValueError(f"setup.calls: {problem}")
        except ValueError as error:
            message = f"task {escape_unprintable(task.task_id)}: {escape_unprintable(str(error))}"
            raise EchoError(message, "see `setup` in docs/mcp.md") from None
        if setup.files and (config.shared or config.url is not None):
            why = "episodes share one server" if config.shared else "the server is not started by this run"
            raise EchoError(
                f"task {escape_unprintable(task.task_id)} has setup.files, but {why}",
                "make the files with setup.calls, or start a server per episode: command, shared: false",
            )
