"""Isolation of a line of bash: bubblewrap's namespaces where they work, else none."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

Wanted = Literal["auto", "bubblewrap", "none"]
"""`bubblewrap` demands isolation, `none` forbids it, and `auto` takes it where it works."""
CHOICES = get_args(Wanted)

PATH = "/usr/local/bin:/usr/bin:/bin"
"""Folders of the programs that a line can run."""
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
# Names of users for `ls -l`, paths of programs and libraries, and the time zone; no other file of /etc.
_SETTINGS = (
    "alternatives",
    "group",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "localtime",
    "nsswitch.conf",
    "passwd",
)
_PROBE_SECONDS = 10.0


class IsolationError(RuntimeError):
    """Isolation that was demanded and is not available, or has failed."""


@dataclass(frozen=True)
class Isolation:
    """How lines run: under the bubblewrap at `program`, or with the rights of this user if it is None."""

    program: str | None
    why_not: str = ""
    """Why bubblewrap is not used."""

    @property
    def notice(self) -> str:
        """One line about the commands, for the people who start them."""
        if self.program is None:
            return f"commands run with the rights of this user, which is no security boundary: {self.why_not}"
        return (
            "commands run under bubblewrap: without network, without other processes, and with no files but their own "
            "folder and read-only system folders"
        )

    def words(self, command: list[str | bytes], folder: Path, status: int) -> list[str | bytes]:
        """Return `command` as it is run in `folder`.

        Args:
            status: file descriptor to which bubblewrap reports the exit code, as JSON.
        """
        if self.program is None:
            return command
        return [self.program, *_sandbox(folder), "--json-status-fd", str(status), "--", *command]


@functools.lru_cache
def find_isolation(wanted: Wanted = "auto") -> Isolation:
    """Return the isolation of this process's lines; bubblewrap is tried once.

    Raises:
        IsolationError: bubblewrap is demanded and does not work.
    """
    if wanted not in CHOICES:
        raise IsolationError(f"unknown isolation {wanted!r}: use {', '.join(CHOICES)}")
    if wanted == "none":
        return Isolation(None, "isolation is none")
    program = shutil.which("bwrap")
    why_not = "bubblewrap (bwrap) is not installed" if program is None else _why_it_fails(program)
    if why_not is None:
        return Isolation(program)
    if wanted == "bubblewrap":
        raise IsolationError(f"isolation is bubblewrap: {why_not}")
    return Isolation(None, why_not)


def _why_it_fails(program: str) -> str | None:
    """Run an empty command under bubblewrap; return why it fails, in one line, or None.

    In many containers, a process may make no namespaces.
    """
    command = [program, *_sandbox(Path(tempfile.gettempdir())), "--", "bash", "--norc", "--noprofile", "-c", ":"]
    try:
        done = subprocess.run(
            command, env={"PATH": PATH}, stdin=subprocess.DEVNULL, capture_output=True, timeout=_PROBE_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"bubblewrap does not run: {type(error).__name__}"
    if done.returncode == 0:
        return None
    said = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {done.returncode}"]
    return f"bubblewrap does not work here: {said[-1].removeprefix('bwrap: ')}"


def _sandbox(folder: Path) -> list[str]:
    """Return bubblewrap's options: a read-only view of the system, in which only `folder` is shared and writable.

    /tmp is empty and private to the line. The end of bubblewrap, which may be killed, ends every process in its
    process namespace.
    """
    words = ["--new-session", *read_only_system(), "--bind", str(folder), str(folder)]
    return [*words, "--remount-ro", "/", "--chdir", str(folder)]


def read_only_system(memory_bytes: int | None = None) -> list[str]:
    """Return bubblewrap's options for namespaces without network, a read-only system and an empty, writable /tmp.

    The root folder itself is still writable, so that more folders can be added: end with `--remount-ro /`.

    Args:
        memory_bytes: maximum size of /tmp and of /dev/shm, which are in memory; None for no limit.
    """
    words = ["--unshare-all", "--die-with-parent", "--cap-drop", "ALL"]
    for path in _SYSTEM:
        if os.path.islink(path):
            words += ["--symlink", os.readlink(path), path]
        elif os.path.isdir(path):
            words += ["--ro-bind", path, path]
    for name in _SETTINGS:
        words += ["--ro-bind-try", f"/etc/{name}", f"/etc/{name}"]
    # /proc is read-only: a line of root, even without capabilities, could name a program for the kernel to run in
    # /proc/sys/kernel/core_pattern.
    words += ["--proc", "/proc", "--remount-ro", "/proc"]
    size = [] if memory_bytes is None else ["--size", str(memory_bytes)]
    return [*words, "--dev", "/dev", *size, "--tmpfs", "/dev/shm", "--remount-ro", "/dev", *size, "--tmpfs", "/tmp"]
