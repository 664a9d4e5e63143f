"""Both ends of a child process that exchanges JSON lines over its stdin and stdout.

When the parent is killed, the kernel closes the parent's end of the child's stdin. The child sees the end of its stdin
and can clean up before it exits.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import IO, Any, BinaryIO


class ChildProcess:
    """A `python -m module` process in its own session, so that the terminal's Ctrl-C does not reach it.

    Sending never blocks: messages are buffered until `exchange` writes them.

    Args:
        stderr: file for the child's stderr and the output of its own children; None discards both.

    Raises:
        OSError: the process cannot be started.
    """

    def __init__(self, module: str, stderr: IO[bytes] | None = None) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", module],
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
        if self._unsent:
            poll.register(self._stdin, select.POLLOUT)
        for descriptor, _ in poll.poll(None if wait_s is None else wait_s * 1000):
            if descriptor == self._stdout.fileno():
                received = os.read(descriptor, 2**16)
                self._received += received
                self.has_ended = not received
                continue
            try:
                del self._unsent[: os.write(descriptor, self._unsent)]
            except BrokenPipeError:
                self._unsent.clear()  # the child has ended; its last message tells why

    def receive(self) -> dict[str, Any] | None:
        """Wait for the next message and return it; return None if the child ended before another complete message."""
        while not self.has_message and not self.has_ended:
            self.exchange(None)
        line, newline, self._received = self._received.partition(b"\n")
        message: dict[str, Any] | None = json.loads(line) if newline else None
        return message

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
        # Until the child is waited for, its process id, which is also its group's id, is not reused.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self.kill()

    def kill(self) -> None:
        """Kill the child, but not its group, and close the pipes."""
        self._process.kill()
        self._process.wait()
        self._stdin.close()
        self._stdout.close()


def take_pipes() -> tuple[BinaryIO, BinaryIO]:
    """Move this process's stdin and stdout to descriptors that its children do not inherit, and return them.

    The children get an empty stdin, and their stdout goes to stderr.
    """
    orders, report = os.fdopen(os.dup(0), "rb", 0), os.fdopen(os.dup(1), "wb", 0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    os.close(nothing)
    return orders, report


def say(report: BinaryIO, message: Mapping[str, Any]) -> None:
    """Write one message, unless the parent has closed the pipe."""
    with suppress(BrokenPipeError):
        report.write(json.dumps(message).encode() + b"\n")
