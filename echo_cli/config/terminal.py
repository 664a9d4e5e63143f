"""The `terminal` section of a config: folders of terminal tasks, and how their shells run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from echo_cli.config.section import (
    Fraction,
    FreeOnResume,
    PathText,
    Positive,
    Seconds,
    Section,
    absolute,
    refuse_credentials,
)
from echo_cli.errors import EchoError

SHIPPED = "terminal_tasks"
"""Name, as a folder, of the tasks that echo-cli ships."""

TasksFolder = Annotated[PathText, AfterValidator(lambda path: path if path == SHIPPED else absolute(path))]
Runtime = Literal["bwrap", "docker", "process"]


class GitTasks(Section):
    """A git repository of task folders, fetched once per machine.

    `revision` is a full commit id, so that a run always has the same tasks; `path` is the folder of the tasks in it.
    """

    url: Annotated[str, Field(pattern=r"^(https|ssh|file)://[^\s/-]?[^\s]*$")]
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
    path: Annotated[str, Field(pattern=r"^[^\x00]+$")] = "."

    @model_validator(mode="after")
    def _no_secrets(self) -> GitTasks:
        refuse_credentials("environment.terminal.git.url", self.url)
        return self


class TerminalLimits(Section):
    """Limits of one episode's shell and everything that it starts. A task's own limits apply where they are lower."""

    command_s: Seconds = 10.0
    """Maximum duration of a command, seconds; then it is interrupted and the episode continues."""
    memory_mb: Positive = 1024
    """Maximum memory of each process, and of all of them together, MiB. /tmp counts apart, up to `disk_mb`."""
    processes: Positive = 64
    disk_mb: Positive = 64
    """Maximum size of the task's files and of everything that the episode writes, MiB."""


class TerminalConfig(Section):
    """Folders of terminal tasks in Harbor's format, below `folder` or in a `git` repository.

    The folder `terminal_tasks` is that of the tasks that echo-cli ships.

    `runtime` is what a shell runs in: `bwrap` (bubblewrap: no network, a read-only system), `docker` (the task's own
    image) or `process` (a process of this user, which is no security boundary). `network` lets containers use the
    network, if their task allows it. `families` restricts the tasks to these families; empty means all.

    A task without `split` in its `[metadata]` is assigned to a split by a hash of its name.
    """

    folder: TasksFolder | None = None
    git: GitTasks | None = None
    runtime: FreeOnResume[Runtime] = "bwrap"
    network: bool = False
    families: tuple[str, ...] = ()
    validation: Fraction = 0.15
    heldout: Fraction = 0.25
    limits: TerminalLimits = TerminalLimits()

    @model_validator(mode="after")
    def _one_place(self) -> TerminalConfig:
        if (self.folder is None) == (self.git is None):
            given = "neither folder nor git" if self.git is None else "both folder and git"
            raise EchoError(f"environment.terminal sets {given}", "set exactly one of them")
        if self.network and self.runtime != "docker":
            raise EchoError(f"environment.terminal.network has no effect with runtime {self.runtime}", "omit it")
        return self

    @property
    def place(self) -> str:
        """Place of the tasks, as text for people."""
        return str(self.folder) if self.git is None else f"{self.git.url} at {self.git.revision[:12]}"


def shipped_tasks() -> Path:
    """Return the folder of the tasks that echo-cli ships: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parents[1]
    inside = package / SHIPPED
    return inside if inside.is_dir() else package.parent / "envs" / SHIPPED
