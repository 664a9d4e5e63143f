"""One task folder in Harbor's format: `task.toml`, `instruction.md`, `environment/`, `tests/` and `solution/`.

Source of the format: https://www.harborframework.com/docs/tasks. Keys that concern no part of an episode are ignored,
as Harbor ignores keys that it does not know.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from echo_cli.config.terminal import TerminalLimits
from echo_cli.errors import EchoError
from echo_cli.files import read_text
from echo_cli.text import escape_unprintable

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TEST, SOLUTION = "tests/test.sh", "solution/solve.sh"
_SPLITS = ("train", "validation", "heldout", "ood", "other_world")
_DEFAULT_SECONDS = 600.0
"""Harbor's default of every `timeout_sec`."""
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([KMGT]?)i?B?", re.IGNORECASE)
_MIB = {"": 2.0**-20, "K": 2.0**-10, "M": 1.0, "G": 2.0**10, "T": 2.0**20}
_TIP = "compare it with https://www.harborframework.com/docs/tasks"


@dataclass(frozen=True)
class TaskLimits:
    """Limits that a task states itself; None where it states none."""

    agent_s: float = _DEFAULT_SECONDS
    """Duration of all commands of an episode together, seconds."""
    verifier_s: float = _DEFAULT_SECONDS
    build_s: float = _DEFAULT_SECONDS
    command_s: float | None = None
    max_turns: int | None = None
    max_output_chars: int | None = None
    memory_mb: int | None = None
    disk_mb: int | None = None
    cpus: float | None = None

    def within(self, limits: TerminalLimits) -> TerminalLimits:
        """Return `limits`, lowered to what the task states."""
        stated = {"command_s": self.command_s, "memory_mb": self.memory_mb, "disk_mb": self.disk_mb}
        lower = {key: min(value, getattr(limits, key)) for key, value in stated.items() if value is not None}
        return limits.model_copy(update=lower)


@dataclass(frozen=True)
class TerminalTask:
    """A task folder."""

    name: str
    folder: Path
    instruction: str
    split: str | None
    family: str
    image: str | None
    """Prebuilt image of Docker; None if the task has a Dockerfile or neither."""
    allows_network: bool
    limits: TaskLimits
    environ: Mapping[str, str]
    """Variables of the shell and of the tests; values may name variables of the host as `${NAME}`."""
    test_environ: Mapping[str, str]
    demands: tuple[str, ...]
    """What the task asks for that no runtime here has, such as a GPU."""

    @property
    def environment(self) -> Path:
        return self.folder / "environment"

    @property
    def tests(self) -> Path:
        return self.folder / "tests"

    def script(self, name: str) -> str:
        """Return the text of a script of the task, or "" if the task has none."""
        path = self.folder / name
        return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def read_task(folder: Path, name: str) -> TerminalTask:
    """Read a task folder.

    Raises:
        EchoError: `task.toml` is not TOML, a value has the wrong type, or the task has no instruction or no tests.
    """
    path = folder / "task.toml"
    place = escape_unprintable(path)
    try:
        values = tomllib.loads(read_text(path, "task", "a task folder has a task.toml"))
    except tomllib.TOMLDecodeError as error:
        raise EchoError(f"{place} is not TOML: {error}", _TIP) from None
    reader = _Reader(values, place)
    single = not (folder / "steps").is_dir()
    for needed in ("instruction.md", TEST) if single else ():
        if not (folder / needed).is_file():
            tip = "add it: a task folder has task.toml, instruction.md and tests/test.sh"
            raise EchoError(f"the task folder {escape_unprintable(folder)} has no {needed}", tip)
    text = (folder / "instruction.md").read_text(encoding="utf-8", errors="replace") if single else ""
    split = reader.text("metadata", "split")
    if split is not None and split not in _SPLITS:
        reader.refuse("metadata.split", split, f"one of {', '.join(_SPLITS)}")
    return TerminalTask(
        name,
        folder,
        _without_canary(text),
        split,
        reader.text("metadata", "family") or reader.text("metadata", "category") or "task",
        reader.text("environment", "docker_image"),
        allows_network=reader.flag("environment", "allow_internet", True)
        and reader.text("environment", "network_mode") not in ("none", "no-network"),
        limits=_limits(reader),
        environ=reader.variables("environment"),
        test_environ=reader.variables("verifier"),
        demands=tuple(_demands(reader, folder)),
    )


def _without_canary(text: str) -> str:
    """Return an instruction without the lines at its start that mark benchmark data for crawlers."""
    lines = text.strip().split("\n")
    while lines and lines[0].startswith(("#", "<!--")) and "canary" in lines[0].lower():
        del lines[0]
    return "\n".join(lines).strip() + "\n"


def _limits(reader: _Reader) -> TaskLimits:
    memory = reader.number("environment", "memory_mb") or reader.size("environment", "memory")
    disk = reader.number("environment", "storage_mb") or reader.size("environment", "storage")
    turns, chars = (reader.number("metadata", key) for key in ("max_turns", "max_output_chars"))
    return TaskLimits(
        reader.number("agent", "timeout_sec") or _DEFAULT_SECONDS,
        reader.number("verifier", "timeout_sec") or _DEFAULT_SECONDS,
        reader.number("environment", "build_timeout_sec") or _DEFAULT_SECONDS,
        reader.number("metadata", "command_timeout_sec"),
        None if turns is None else max(1, int(turns)),
        None if chars is None else max(1, int(chars)),
        None if memory is None else max(1, int(memory)),
        None if disk is None else max(1, int(disk)),
        reader.number("environment", "cpus"),
    )


def _demands(reader: _Reader, folder: Path) -> list[str]:
    found = []
    if (folder / "steps").is_dir():
        found.append("several steps, which are not supported")
    if any((folder / "environment" / f"docker-compose.{end}").is_file() for end in ("yaml", "yml")):
        found.append("several containers (docker-compose), which are not supported")
    if reader.number("environment", "gpus"):
        found.append("a GPU")
    if (system := reader.text("environment", "os")) not in (None, "linux"):
        found.append(f"the system {system}")
    if reader.section("environment").get("mcp_servers"):
        found.append("MCP servers, which are not supported")
    return found


class _Reader:
    """The values of a `task.toml`, checked when they are read."""

    def __init__(self, values: Mapping[str, Any], place: str) -> None:
        self._values, self._place = values, place

    def section(self, name: str) -> Mapping[str, Any]:
        section = self._values.get(name, {})
        return section if isinstance(section, dict) else self.refuse(name, section, "a table")

    def text(self, section: str, key: str) -> str | None:
        value = self.section(section).get(key)
        is_text = value is None or (isinstance(value, str) and value.isprintable())
        return value if is_text else self.refuse(f"{section}.{key}", value, "a line of text")

    def number(self, section: str, key: str) -> float | None:
        value = self.section(section).get(key)
        if value is None:
            return None
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf
        return float(value) if is_number else self.refuse(f"{section}.{key}", value, "a number")

    def flag(self, section: str, key: str, default: bool) -> bool:
        value = self.section(section).get(key, default)
        return value if isinstance(value, bool) else self.refuse(f"{section}.{key}", value, "true or false")

    def size(self, section: str, key: str) -> float | None:
        """Return a size such as "2G", in MiB."""
        value = self.text(section, key)
        if value is None:
            return None
        match = _SIZE.fullmatch(value.strip())
        if match is None:
            self.refuse(f"{section}.{key}", value, "a size such as 2G")
        return float(match.group(1)) * _MIB[match.group(2).upper()]

    def variables(self, section: str) -> dict[str, str]:
        value = self.section(section).get("env", {})
        if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
            self.refuse(f"{section}.env", value, "a table of texts")
        return value

    def refuse(self, key: str, value: Any, wanted: str) -> NoReturn:
        raise EchoError(f"{key} is {escape_unprintable(str(value))[:40]}, not {wanted} ({self._place})", _TIP)
