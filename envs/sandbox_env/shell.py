"""A line of bash, run in a folder with limits on its time and its files; its processes are killed at the end.

Without isolation the limits protect against accidents only: the line has the rights of the process that calls `run`.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from sandbox_env.isolation import PATH, Isolation, IsolationError

_FILE_KIB = 1024


@dataclass(frozen=True)
class Result:
    """Output of a line, at most `limit` characters of each stream; `exit_code` is None if the line timed out."""

    stdout: str
    stderr: str
    exit_code: int | None
    cut: bool


def run(line: str, folder: Path, *, timeout_s: float, limit: int, isolation: Isolation) -> Result:
    """Run `line` with bash in `folder`, with a fixed set of environment variables and no standard input.

    Each file that it writes, its output included, is limited to 1 MiB. When the line ends, the processes that it
    started are killed; without isolation, those that left its process group are not.

    Raises:
        IsolationError: bubblewrap has failed, so that bash has not run.
    """
    script = f'ulimit -f {_FILE_KIB}; eval "$1"'
    bash: list[str | bytes] = ["bash", "--noprofile", "--norc", "-c", script, "bash", _argument(line)]
    # Files, not pipes: reading a pipe would wait for a process that outlives the line and keeps the pipe open.
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr, tempfile.TemporaryFile() as status:
        process = subprocess.Popen(
            isolation.words(bash, folder, status.fileno()),
            cwd=folder,
            env={"PATH": PATH, "HOME": str(folder), "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
            pass_fds=[status.fileno()] if isolation.program else [],
        )
        try:
            exit_code = _exit_code(process, timeout_s)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        (out, out_cut), (err, err_cut) = _text(stdout, limit), _text(stderr, limit)
        if isolation.program and exit_code is not None and not _has_run(status):
            raise IsolationError(f"bubblewrap has failed: {err.strip()}")
    return Result(out, err, exit_code, out_cut or err_cut)


def _exit_code(process: subprocess.Popen[bytes], timeout_s: float) -> int | None:
    """Wait up to `timeout_s` seconds for the end of a process; return its exit code, or None if it still runs."""
    try:
        ended = os.pidfd_open(process.pid)
    except (AttributeError, OSError):  # another system, or a kernel before 5.3
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(timeout_s)
        return None
    # Popen.wait would look again after pauses of up to 50 ms, which is longer than most lines take.
    try:
        poll = select.poll()
        poll.register(ended, select.POLLIN)
        poll.poll(timeout_s * 1000)
    finally:
        os.close(ended)
    return process.poll()


def _has_run(status: IO[bytes]) -> bool:
    """Return whether bubblewrap reported the exit code of its command, one of its JSON objects."""
    status.seek(0)
    return any("exit-code" in json.loads(line) for line in status.read().splitlines() if line.strip())


def _argument(line: str) -> bytes:
    """Encode the line as a process argument, without NUL."""
    return line.replace("\0", "").encode(errors="replace")


def _text(file: IO[bytes], limit: int) -> tuple[str, bool]:
    """Return the file's first `limit` characters, and whether there are more."""
    file.seek(0)
    # A character has at most four bytes.
    text = file.read(4 * limit + 4).decode(errors="replace")
    return text[:limit], len(text) > limit
