"""What every runtime of terminal tasks has: a place for episodes, the shell's words and variables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from echo_cli.environments.terminal.shell import Shell
from echo_cli.environments.terminal.tasks.task_folder import TerminalTask
from sandbox_env.isolation import PATH

BASH = ("bash", "--noprofile", "--norc", "--noediting", "-i")
"""An interactive bash that reads no files of a user, and no keys but those that it is typed."""


class CannotPlay(Exception):
    """A task that turns out not to be playable here; the text says what it needs."""


class Episode(Protocol):
    """One episode of a task. Its methods block, and are called from one thread."""

    def open_shell(self, prompt: str) -> Shell:
        """Start the shell of the episode. Raises ShellError if it does not start."""

    def verify(self) -> float:
        """End the shell, run the task's tests and return their reward. Raises VerifierFault if they give none."""

    def close(self) -> None:
        """End the episode and remove all that belongs to it."""


class Site(Protocol):
    """The place of a run's episodes."""

    def prepare(self, task: TerminalTask) -> None:
        """Make what the episodes of a task need. Raises CannotPlay if that is impossible here."""

    def begin(self, task: TerminalTask) -> Episode:
        """Return a new episode of a task that was prepared."""

    def close(self) -> None:
        """Remove all that was made."""


def environ_of(task: TerminalTask, of_image: Mapping[str, str], home: str) -> dict[str, str]:
    """Return all variables of a shell: none of this process's."""
    fixed = {"PATH": PATH, "HOME": home, "TERM": "dumb", "LC_ALL": "C.UTF-8", "TZ": "UTC"}
    return {**fixed, "PAGER": "cat", "GIT_PAGER": "cat", **of_image, **task.environ}
