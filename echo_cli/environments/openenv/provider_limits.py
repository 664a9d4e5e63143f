"""Limits of a started server and every process below it: memory, number of processes, size of files and of its log.

The kernel limits each process. The sum over processes is watched, in `/proc` and therefore on Linux only. Docker itself
limits a container.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import stat
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from echo_cli.config.environment import ProviderLimits

LOG_BYTES = 2**20
"""Maximum size of a server's log; when it is reached, only the end is kept."""

_KEPT_BYTES = 2**16
_POLL_SECONDS = 0.25
_MIB = 2**20
_PR_SET_CHILD_SUBREAPER = 36
_MOST_ROUNDS = 100
_IN_MEMORY = ("RssAnon", "RssShmem", "VmSwap")


@dataclass(frozen=True)
class Process:
    """A running process, or a zombie."""

    pid: int
    parent: int
    group: int
    is_zombie: bool


def docker_limits(limits: ProviderLimits) -> list[str]:
    """Return the options of `docker run` for the limits; the log is limited in any case."""
    words = ["--log-driver", "json-file", "--log-opt", "max-size=16m", "--log-opt", "max-file=1"]
    if limits.memory_mb is not None:
        words += ["--memory", f"{limits.memory_mb}m"]
    if limits.processes is not None:
        words += ["--pids-limit", str(limits.processes)]
    if limits.file_mb is not None:
        words += ["--ulimit", f"fsize={limits.file_mb * _MIB}"]
    return words if limits.cpus is None else [*words, "--cpus", f"{limits.cpus:g}"]


def limit_each_process(limits: ProviderLimits) -> None:
    """Limit the memory and the files of this process and of each process that it starts."""
    for kind, megabytes in ((resource.RLIMIT_DATA, limits.memory_mb), (resource.RLIMIT_FSIZE, limits.file_mb)):
        if megabytes is not None:
            hard = resource.getrlimit(kind)[1]
            most = megabytes * _MIB if hard == resource.RLIM_INFINITY else min(megabytes * _MIB, hard)
            resource.setrlimit(kind, (most, most))


def adopt_orphans() -> None:
    """Become the parent of processes below this one whose parent ends, so that they are counted and killed (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def wait_until_exceeded(limits: ProviderLimits, server: int | None) -> str:
    """Watch the processes below this one, and return the limit that they exceed; never return if they exceed none.

    Args:
        server: id of the process that someone else waits for; other zombies are removed. None: no zombie is removed.
    """
    while True:
        time.sleep(_POLL_SECONDS)
        below = processes_below(os.getpid())
        if (excess := excess_of(below, limits.processes, limits.memory_mb)) is not None:
            return excess
        for process in below if server is not None else ():
            if process.is_zombie and process.parent == os.getpid() and process.pid != server:
                with suppress(ChildProcessError):
                    os.waitpid(process.pid, os.WNOHANG)


def excess_of(below: Sequence[Process], processes: int | None, memory_mb: int | None) -> str | None:
    """Return the limit that processes exceed together, such as `it has 9 processes, over limits.processes 8`; or None.

    Args:
        processes: maximum number of processes; None for no limit.
        memory_mb: maximum of their memory, MiB; None for no limit.
    """
    if processes is not None and len(below) > processes:
        return f"it has {len(below)} processes, over limits.processes {processes}"
    memory = sum(map(_memory_bytes, below)) / _MIB
    if memory_mb is not None and memory > memory_mb:
        return f"it uses {memory:.0f} MiB, over limits.memory_mb {memory_mb}"
    return None


def processes_below(root: int) -> list[Process]:
    """Return the processes that descend from `root`, without itself; empty where there is no `/proc`."""
    found: list[Process] = []
    parents = [root]
    while parents:
        for pid in _children(parents.pop()):
            if (process := _process(pid)) is not None:
                found.append(process)
                parents.append(pid)
    return found


def kill_processes_below(root: int) -> None:
    """Kill the processes that descend from `root`, in whatever groups: a group at once, so that no fork escapes."""
    own = os.getpgid(root)
    for _ in range(_MOST_ROUNDS):
        alive = [process for process in processes_below(root) if not process.is_zombie]
        if not alive:
            return
        for group in {process.group for process in alive} - {own, 0}:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(group, signal.SIGKILL)
        for process in alive:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(process.pid, signal.SIGKILL)


def kill_processes(processes: Iterable[Process]) -> None:
    """Kill each of `processes`, listed earlier, that still runs in the same group."""
    for process in processes:
        now = _process(process.pid)
        if now is not None and now.group == process.group and not now.is_zombie:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(process.pid, signal.SIGKILL)


class BoundedLog:
    """Log of this process and its children, in the file that was stderr; only the end of the file is kept."""

    def __init__(self) -> None:
        self._file = os.dup(2)
        self._output, into = os.pipe()
        for stream in (1, 2):
            os.dup2(into, stream)
        os.close(into)
        self._thread = threading.Thread(target=self._copy, daemon=True)
        self._thread.start()

    def close(self, wait_s: float) -> None:
        """Write directly to the file again, once what has been printed so far is in it."""
        for stream in (1, 2):
            os.dup2(self._file, stream)
        self._thread.join(wait_s)  # it ends with the last process that can print

    def _copy(self) -> None:
        is_file = stat.S_ISREG(os.fstat(self._file).st_mode)
        kept = b""
        while printed := os.read(self._output, _KEPT_BYTES):
            kept = (kept + printed)[-_KEPT_BYTES:]
            if is_file and os.fstat(self._file).st_size + len(printed) > LOG_BYTES:
                os.ftruncate(self._file, 0)
                os.lseek(self._file, 0, os.SEEK_SET)
                printed = kept
            with suppress(OSError):  # a full disk
                os.write(self._file, printed)
            if len(printed) == _KEPT_BYTES:
                time.sleep(0.001)  # an endless log takes no core for itself


def _children(pid: int) -> list[int]:
    """Return the ids of a process's children, from the kernel's own list: reading every process would cost a core."""
    found: list[int] = []
    with suppress(OSError):  # it has ended
        for task in os.listdir(f"/proc/{pid}/task"):
            with suppress(OSError):
                found += map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split())
    return found


def _process(pid: int) -> Process | None:
    try:
        # The name, in parentheses, may contain spaces and parentheses.
        state, parent, group = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[:3]
    except (OSError, ValueError):  # it has ended
        return None
    return Process(pid, int(parent), int(group), state == "Z")


def _memory_bytes(process: Process) -> int:
    try:
        lines = Path(f"/proc/{process.pid}/status").read_text(errors="replace").splitlines()
    except OSError:
        return 0
    sizes = [line.split() for line in lines if line.startswith(_IN_MEMORY)]
    return sum(1024 * int(words[1]) for words in sizes)
