"""Ctrl-C and SIGTERM: the first signal requests a clean stop, the second stops at once."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


@dataclass
class Interrupt:
    """Request by a signal to stop after the current step."""

    signal_number: int | None = None
    """Number of the signal; None if no stop was requested."""

    def __call__(self) -> bool:
        """Return whether a stop was requested."""
        return self.signal_number is not None

    @property
    def exit_code(self) -> int:
        """128 + signal number, as shells report it; 0 without a signal."""
        return 0 if self.signal_number is None else 128 + self.signal_number


@contextmanager
def interruptible() -> Iterator[Interrupt]:
    """Catch SIGINT and SIGTERM while the block runs.

    Raises:
        SystemExit: at the second signal, with its exit code.
    """
    interrupt = Interrupt()

    def handle(number: int, _: FrameType | None) -> None:
        if interrupt.signal_number is not None:
            raise SystemExit(128 + number)
        interrupt.signal_number = number
        # print is not reentrant, so a signal handler must not call it.
        os.write(2, b"\nstopping after this step; interrupt again to stop now\n")

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interrupt
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
