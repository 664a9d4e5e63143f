"""Child processes: the variables and the import path that they get, their pipes, and the memory that they cannot read.

A child of another kind, such as a server that runs a policy's commands, must not learn the secrets of this process: it
gets an allow-list of variables, and cannot read the others in `/proc`. A child of ours hides its own memory before it
gets any secret, over a pipe: what a process is started with can be read before its first instruction.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import IO, Any, BinaryIO

_INHERITED = frozenset(
    [
        *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "TERM", "TZ", "LANG", "LANGUAGE", "TMPDIR", "SYSTEMROOT"),
        *("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME", "XDG_RUNTIME_DIR"),
        *("VIRTUAL_ENV", "CONDA_PREFIX", "NVIDIA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"),
        *("HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "TORCH_HOME"),
        *("LD_LIBRARY_PATH", "LD_PRELOAD", "DYLD_LIBRARY_PATH", "GLIBC_TUNABLES"),
        *("PYTHONPATH", "PYTHONHOME", "PYTHONUTF8", "PYTHONIOENCODING", "PYTHONUNBUFFERED", "PYTHONHASHSEED"),
        *("PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX", "PYTHONNOUSERSITE", "PYTHONSAFEPATH"),
        *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
    ]
)
_INHERITED_PREFIXES = (
    *("LC_", "OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "MALLOC_"),
    *("CUDA_", "NCCL_", "PYTORCH_"),
)
_SEARCH_PATHS = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")

_PR_SET_DUMPABLE = 4

# `-c` puts the current folder at the front of the path, and Python has imported nothing from there yet.
_LEAVE_CURRENT_FOLDER = "import sys; del sys.path[0]; "
_RUN_MODULE = "import runpy; del sys.argv[0]; runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)"


def inherited(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of `environ` that every child gets: no secrets, and no proxies, whose URLs may hold some.

    An empty entry of a search path would mean the current folder, and is omitted.
    """
    names = [name for name in environ if name in _INHERITED or name.startswith(_INHERITED_PREFIXES)]
    return {name: _without_empty(environ[name]) if name in _SEARCH_PATHS else environ[name] for name in names}


def without_current_folder(command: Sequence[str]) -> list[str]:
    """Return a command of this Python whose `-m` and `-c` do not import from the current folder.

    A script still imports from its own folder.
    """
    program, *words = command
    at = _end_of_options(words)
    if words[at : at + 1] not in (["-m"], ["-c"]):
        return [program, *words]
    if sys.version_info >= (3, 11):
        return [program, "-P", *words]
    options, kind, rest = words[:at], words[at], words[at + 1 :]
    if kind == "-c":
        return [program, *options, "-c", _LEAVE_CURRENT_FOLDER + rest[0], *rest[1:]]
    return [program, *options, "-c", _LEAVE_CURRENT_FOLDER + _RUN_MODULE, *rest]


def python(*words: str) -> list[str]:
    """Return the command that runs this Python with `words`, such as `-m module`, outside the current folder."""
    return without_current_folder([sys.executable, *words])


def hide_memory() -> None:
    """Hide this process's memory, variables and open files from other processes of the same user, except root's.

    Call it before a child of another kind is started. It is possible on Linux only; elsewhere it does nothing. From
    then on only root can trace the process, it dumps no core, and it cannot open `/dev/stdin` or `/dev/fd/N` again.
    """
    if sys.platform == "linux" and ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise OSError("prctl(PR_SET_DUMPABLE) failed")


def _without_empty(search_path: str) -> str:
    return os.pathsep.join(filter(None, search_path.split(os.pathsep)))


def _end_of_options(words: Sequence[str]) -> int:
    """Return the index of the first of Python's arguments that is a script, `-m` or `-c`."""
    at = 0
    while at < len(words) and words[at].startswith("-") and words[at] not in ("-m", "-c", "-"):
        at += 2 if words[at] in ("-W", "-X") else 1
    return at


class ChildProcess:
    """A `python -m module` process in its own session, so that the terminal's Ctrl-C does not reach it.

    Sending never blocks: messages are buffered until `exchange` writes them, once the child has hidden its memory.

    Args:
        variables: environment variables of the child besides the inherited ones; they may be secret.
        words: arguments of the module.
        stderr: file for the child's stderr and the output of its own children; None discards both.
        folder: working directory of the child; None for ours.

    Raises:
        OSError: the process cannot be started.
    """

    def __init__(
        self,
        module: str,
        variables: Mapping[str, str] | None = None,
        *,
        words: Sequence[str] = (),
        stderr: IO[bytes] | None = None,
        folder: str | None = None,
    ) -> None:
        hide_memory()
        self._process = subprocess.Popen(
            python("-m", module, *words),
            cwd=folder,
            env=inherited(os.environ),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if stderr is None else stderr,
            bufsize=0,
            start_new_session=True,
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        os.set_blocking(self._stdin.fileno(), False)
        self._unsent = bytearray()
        self._received = bytearray()
        self._is_hidden = False
        self.send(dict(variables or {}))
        self.has_ended = False
        """Whether the child's stdout has been read to the end."""

    @property
    def unsent(self) -> int:
        """Number of buffered bytes that are not yet written to the pipe."""
        return len(self._unsent)

    @property
    def has_message(self) -> bool:
        """Whether `receive` would return a message without waiting."""
        return b"\n" in self._received

    def send(self, message: Mapping[str, Any]) -> None:
        """Buffer a message for `exchange` to write."""
        self._unsent += json.dumps(message).encode() + b"\n"

    def exchange(self, wait_s: float | None) -> None:
        """Write buffered bytes and read what has arrived, waiting up to `wait_s` seconds; None waits indefinitely."""
        if self.has_ended:
            return
        poll = select.poll()
        poll.register(self._stdout, select.POLLIN)
        if self._unsent and self._is_hidden:
            poll.register(self._stdin, select.POLLOUT)
        for descriptor, _ in poll.poll(None if wait_s is None else wait_s * 1000):
            if descriptor == self._stdout.fileno():
                received = os.read(descriptor, 2**16)
                self._received += received
                self.has_ended = not received
                if not self._is_hidden and self.has_message:
                    self.receive()
                    self._is_hidden = True
                continue
            try:
                del self._unsent[: os.write(descriptor, self._unsent)]
            except BrokenPipeError:
                self._unsent.clear()  # the child has ended; its last message tells why

    def wait_sent(self, wait_s: float) -> None:
        """Wait up to `wait_s` seconds until the buffered bytes are written, or the child has ended."""
        deadline = time.monotonic() + wait_s
        while self._unsent and not self.has_ended and (left := deadline - time.monotonic()) > 0:
            self.exchange(left)

    def receive(self) -> dict[str, Any] | None:
        """Wait for the next message and return it; return None if the child ended before another complete message."""
        while not self.has_message and not self.has_ended:
            self.exchange(None)
        line, newline, self._received = self._received.partition(b"\n")
        message: dict[str, Any] | None = json.loads(line) if newline else None
        return message

    def poll(self) -> int | None:
        """Return the exit code, as `exit_code` does; None while the process runs."""
        return self._process.poll()

    def terminate(self) -> None:
        """Ask the process to end, with SIGTERM."""
        self._process.terminate()

    def exit_code(self) -> int:
        """Wait for the process to end and return its exit code, or the negative number of the signal that killed it."""
        return self._process.wait()

    def stop(self, wait_s: float) -> None:
        """Close the child's stdin, wait up to `wait_s` seconds for its end, and kill the rest of its process group."""
        self._unsent.clear()
        self._stdin.close()
        deadline = time.monotonic() + wait_s
        while not self.has_ended and (left := deadline - time.monotonic()) > 0:
            self.exchange(left)
        self.kill_group()
        self.kill()

    def kill_group(self) -> None:
        """Kill the child and its process group, and leave the pipes open."""
        # The child's process id, which is also its group's id, cannot be reused before `kill` waits for the child.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def kill(self) -> None:
        """Kill the child, but not its group, and close the pipes."""
        self._process.kill()
        self._process.wait()
        self._stdin.close()
        self._stdout.close()


def take_pipes() -> tuple[BinaryIO, BinaryIO]:
    """Hide this process's memory, set the variables that `ChildProcess` sends then, and return the pipes to it.

    The pipes are moved from stdin and stdout to descriptors that this process's children do not inherit: they get an
    empty stdin, and their stdout goes to stderr.
    """
    orders, report = os.fdopen(os.dup(0), "rb", 0), os.fdopen(os.dup(1), "wb", 0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    os.close(nothing)
    hide_memory()
    say(report, {})
    os.environ.update(json.loads(orders.readline() or b"{}"))
    return orders, report


def say(report: BinaryIO, message: Mapping[str, Any]) -> None:
    """Write one message, unless the parent has closed the pipe."""
    with suppress(BrokenPipeError):
        report.write(json.dumps(message).encode() + b"\n")
