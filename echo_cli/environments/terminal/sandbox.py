"""What a local shell runs in: bubblewrap's namespaces and the kernel's limits, or the limits alone.

The kernel limits no number of processes for root, so a trainer that runs as root starts bubblewrap as another user,
one for each episode. That user owns nothing but the episode's files.
"""

from __future__ import annotations

import os
import random
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from echo_cli.config.terminal import TerminalLimits
from echo_cli.errors import EchoError
from sandbox_env.isolation import PATH, IsolationError, find_isolation, read_only_system

_MIB = 2**20
_PROBE_SECONDS = 20.0
_FIRST_USER, _USERS = 61184, 4000
"""Ids that systemd leaves to users which exist for a while."""
_SPARE = 8
"""Number of processes above the limit that the kernel lets exist, so that the excess is noticed."""

# In kibibytes; no core dumps. The limits are those of bubblewrap too, and of everything inside.
_LIMITED = 'umask 022; ulimit -c 0 -d "$1" -f "$2"; shift 2; exec "$@"'
_COUNTED = 'ulimit -u "$1"; shift; exec "$@"'
_MOVED = 'cd -- "$1" && shift && exec "$@"'
_BASH = ("bash", "--norc", "--noprofile", "-c")

_Ids = count(random.SystemRandom().randrange(_USERS))


@dataclass(frozen=True)
class Sandbox:
    """How local shells run.

    `program` is bubblewrap; None for plain processes. `changes_user` is whether each episode has a user of its own, and
    `counts_processes` whether the kernel limits the number of an episode's processes.
    """

    program: str | None = None
    changes_user: bool = False
    counts_processes: bool = False

    def new_user(self) -> int | None:
        """Return the id of an episode's user; None for this process's own."""
        return _FIRST_USER + next(_Ids) % _USERS if self.changes_user else None

    def words(
        self,
        command: Sequence[str],
        limits: TerminalLimits,
        folders: Mapping[str, Path],
        workdir: str,
        read_only: Mapping[str, Path] | None = None,
    ) -> list[str]:
        """Return `command` within the limits and, under bubblewrap, within its view of the file system.

        Args:
            folders: writable folders of this machine, by their path inside.
            workdir: path inside of the working directory; without bubblewrap, a path of this machine.
            read_only: folders that cannot be written to, by their path inside.
        """
        limited = [*_BASH, _LIMITED, "bash", str(limits.memory_mb * 1024), str(limits.disk_mb * 1024)]
        if self.program is None:
            return [*limited, *_BASH, _MOVED, "bash", workdir, *command]
        # Without a session of bubblewrap's own, the shell controls its terminal, which is this episode's alone.
        view = [*read_only_system(limits.disk_mb * _MIB), "--unshare-user", "--uid", "0", "--gid", "0"]
        view += ["--hostname", "terminal"]
        for inside, outside in folders.items():
            view += ["--bind", str(outside), inside]
        for inside, outside in (read_only or {}).items():
            view += ["--ro-bind", str(outside), inside]
        view += ["--remount-ro", "/", "--chdir", workdir, "--"]
        counted = [*_BASH, _COUNTED, "bash", str(limits.processes + _SPARE)] if self.counts_processes else []
        return [*limited, self.program, *view, *counted, *command]


def give(folder: Path, user: int | None) -> None:
    """Make a user the owner of a folder and of everything in it; None changes nothing."""
    if user is not None:
        for path, folders, files in os.walk(folder):
            for name in ("", *folders, *files):
                os.chown(os.path.join(path, name), user, user, follow_symlinks=False)


def find_sandbox(isolated: bool) -> Sandbox:
    """Return how local shells run on this machine, with as many of the kernel's limits as it allows.

    Raises:
        EchoError: bubblewrap is wanted and does not work.
    """
    if not isolated:
        return Sandbox()
    try:
        program = find_isolation("bubblewrap").program
    except IsolationError as error:
        why = str(error).removeprefix("isolation is bubblewrap: ")
        raise EchoError(
            f"environment.terminal.runtime is bwrap, and {why}",
            "install bubblewrap; or set runtime to docker, or to process, which is no security boundary",
        ) from None
    is_root = os.geteuid() == 0
    candidates = [Sandbox(program, changes_user=is_root, counts_processes=True), Sandbox(program, changes_user=is_root)]
    return next((each for each in candidates if _works(each)), Sandbox(program))


def _works(sandbox: Sandbox) -> bool:
    """Return whether a pipe of bash runs within the limits: a kernel may count processes outside the sandbox too."""
    user = sandbox.new_user()
    with tempfile.TemporaryDirectory(prefix="echo-terminal-") as name:
        folder = Path(name)
        give(folder, user)
        command = ["bash", "-c", "true | true | true"]
        limits = TerminalLimits(processes=8, disk_mb=1)
        try:
            done = subprocess.run(
                sandbox.words(command, limits, {"/app": folder}, "/app"),
                env={"PATH": PATH},
                cwd="/",
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_PROBE_SECONDS,
                check=False,
                user=user,
                group=user,
                extra_groups=no_groups(user),
            )
        except (OSError, subprocess.SubprocessError):
            return False
        return done.returncode == 0


def no_groups(user: int | None) -> list[int] | None:
    """Return the further groups of an episode's user, which has none; None for this process's own, which has its."""
    return None if user is None else []
