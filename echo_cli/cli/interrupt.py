"""Ctrl-C, SIGTERM and SIGHUP: the first signal requests a clean stop, the second stops at once."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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
def interruptible(*, announces: bool = True) -> Iterator[Interrupt]:
    """Catch SIGINT, SIGTERM, and SIGHUP unless it is ignored (`nohup`), while the block runs.

    Args:
        announces: whether to say on stderr that the signal has arrived.

    Raises:
        SystemExit: at the second signal, with its exit code; a closing terminal sends several SIGHUP, which count once.
    """
    interrupt = Interrupt()

    def handle(number: int, _: FrameType | None) -> None:
        if interrupt.signal_number is not None:
            if number == signal.SIGHUP:
                return
            raise SystemExit(128 + number)
        interrupt.signal_number = number
        if not announces:
            return
        # print is not reentrant, so a signal handler must not call it.
        with suppress(OSError):  # the same Ctrl-C may have ended the reader of stderr
            os.write(2, b"\nstopping after this step; interrupt again to stop now\n")

    caught = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        caught.append(signal.SIGHUP)
    before = {number: signal.signal(number, handle) for number in caught}
    try:
        yield interrupt
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
