"""The processes of a terminal's session, as Linux shows them in `/proc`: those that wait for input, those to kill."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
from contextlib import suppress

from echo_cli.environments.openenv.provider_limits import processes_below

_MOST_ROUNDS = 100
_READ_CALLS = {"x86_64": ("0",), "aarch64": ("63",)}
_SELECT_CALLS = {"x86_64": ("23", "270"), "aarch64": ("72",)}
"""Numbers of the system calls `read`, and `select` and `pselect6`, by machine."""


def waits_for_input(leader: int, group: int | None, terminal: int) -> bool:
    """Return whether a process of a session's group waits for input of its terminal, as far as the kernel tells.

    Args:
        leader: id of the session's first process.
        group: process group in the foreground.
        terminal: device number of the terminal.
    """
    found = [leader, *(process.pid for process in processes_below(leader))]
    return any(_reads(pid, terminal) for pid in found if _group(pid) == group)


def kill_session(process: subprocess.Popen[bytes]) -> None:
    """Kill a session's first process, the processes below it, and those of its session, and wait for the first one.

    The end of bubblewrap, if it is the first process, ends its process namespace at once.
    """
    pids = [each.pid for each in processes_below(process.pid)] if process.returncode is None else []
    process.kill()
    for _ in range(_MOST_ROUNDS):
        for pid in pids:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        pids = _members(process.pid)
        if not pids:
            break
    process.wait()


def _members(session: int) -> list[int]:
    """Return the running processes of a session, except its first one, whatever their parents are."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")) if os.path.isdir("/proc") else ():
        with suppress(OSError, ValueError):
            with open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as file:
                state, _, _, of = file.read().rpartition(")")[2].split()[:4]
            if int(of) == session != int(name) and state != "Z":
                found.append(int(name))
    return found


def _group(pid: int) -> int | None:
    with suppress(OSError):
        return os.getpgid(pid)
    return None


def _reads(pid: int, terminal: int) -> bool:
    """Return whether a process waits for input of the terminal with this device number, as far as the kernel tells."""
    machine = platform.machine()
    try:
        with open(f"/proc/{pid}/syscall", encoding="ascii") as file:
            call, first, *_ = [*file.read().split(), "", ""]
        if call in _READ_CALLS.get(machine, ()):
            descriptor = int(first, 16)
        elif call in _SELECT_CALLS.get(machine, ()) and int(first, 16) == 1:  # it watches descriptor 0 alone
            descriptor = 0
        else:
            return False
        return os.stat(f"/proc/{pid}/fd/{descriptor}").st_rdev == terminal
    except (OSError, ValueError):
        return False
