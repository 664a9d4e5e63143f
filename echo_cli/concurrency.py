"""A thread of its own for code that blocks, and that may be bound to the thread it was made in."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")


class WorkerThread:
    """Runs functions one after another. A daemon, unlike those of a ThreadPoolExecutor, for which Python waits at exit.

    A thread cannot be killed: a function that never returns keeps it until the process ends.
    """

    def __init__(self, name: str) -> None:
        self._calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def start(self, function: Callable[[], T]) -> Future[T]:
        """Run `function` after those before it; the future has its result."""
        future: Future[T] = Future()
        self._calls.put((future, function))
        return future

    async def run(self, function: Callable[[], T]) -> T:
        """Run `function` and wait for its result."""
        return await asyncio.wrap_future(self.start(function))

    def end(self) -> None:
        """Let the thread end after what it has been given."""
        self._calls.put(None)

    def join(self, timeout_s: float) -> None:
        """Wait until it has ended, at most `timeout_s`."""
        self._thread.join(timeout_s)

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            _answer(*call)
            del call  # nothing is kept alive by its last call


def _answer(future: Future[T], function: Callable[[], T]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = function()
    except Exception as error:
        future.set_exception(RuntimeError("StopIteration") if isinstance(error, StopIteration) else error)
    except BaseException as error:  # SystemExit would end the event loop that waits for the result
        future.set_exception(RuntimeError(f"{type(error).__name__}: {error}"))
    else:
        future.set_result(result)
