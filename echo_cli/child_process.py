"""A child process of ours that speaks JSON lines over its pipes: both ends.

The child outlives a parent that is killed for as long as it needs to clean up: the kernel closes the parent's end of
its stdin, and the end of stdin is how it learns that it is on its own.
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
    """`python -m module`, in a session of its own: the terminal's Ctrl-C does not reach it.

    Sending never blocks: what the pipe does not take at once is kept until `exchange`.

    Args:
        stderr: file that takes the child's stderr and what its own children print; None discards both.

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
        """Its stdout has been read to the end."""

    @property
    def unsent(self) -> int:
        """Number of bytes that the pipe has not taken yet."""
        return len(self._unsent)

    @property
    def has_message(self) -> bool:
        """There is a message to `receive` without waiting."""
        return b"\n" in self._received

    def send(self, message: Mapping[str, Any]) -> None:
        """Have `exchange` write a message."""
        self._unsent += json.dumps(message).encode() + b"\n"

    def exchange(self, wait_s: float | None) -> None:
        """Write and read what the pipes take and have; wait up to `wait_s` seconds for either, None for any time."""
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
                self._unsent.clear()  # it has ended; what it said before tells why

    def receive(self) -> dict[str, Any] | None:
        """Wait for the next message and return it; None if the child has ended without another whole one."""
        while not self.has_message and not self.has_ended:
            self.exchange(None)
        line, newline, self._received = self._received.partition(b"\n")
        message: dict[str, Any] | None = json.loads(line) if newline else None
        return message

    def exit_code(self) -> int:
        """Wait for the end of the process and return its exit code, minus the number of the signal that killed it."""
        return self._process.wait()

    def stop(self, wait_s: float) -> None:
        """Close the child's stdin, wait up to `wait_s` seconds for its end, and kill what is left of its group."""
        self._unsent.clear()
        self._stdin.close()
        deadline = time.monotonic() + wait_s
        while not self.has_ended and (left := deadline - time.monotonic()) > 0:
            self.exchange(left)
        # Not yet waited for, the child still has its number, which is its group's.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self.kill()

    def kill(self) -> None:
        """Kill the child alone, whatever its state, and close the pipes."""
        self._process.kill()
        self._process.wait()
        self._stdin.close()
        self._stdout.close()


def take_pipes() -> tuple[BinaryIO, BinaryIO]:
    """Take the child's own stdin and stdout under numbers that its children do not inherit.

    Its children read nothing, and what they print goes to stderr.
    """
    orders, report = os.fdopen(os.dup(0), "rb", 0), os.fdopen(os.dup(1), "wb", 0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    os.close(nothing)
    return orders, report


def say(report: BinaryIO, message: Mapping[str, Any]) -> None:
    """Write one message, if the parent is still there to read it."""
    with suppress(BrokenPipeError):
        report.write(json.dumps(message).encode() + b"\n")
