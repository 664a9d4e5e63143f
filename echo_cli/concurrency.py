"""Code that blocks, beside the code that waits for it: a worker thread, an event loop in a thread, a time limit."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine
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


class EventLoop:
    """An asyncio loop in a thread of its own, for a `with` block; what still runs at its end is cancelled.

    A thread of its own also answers the keepalive of a connection while the caller computes.
    """

    def __init__(self, name: str = "environments") -> None:
        self._name = name

    def __enter__(self) -> EventLoop:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=self._name, daemon=True)
        self._thread.start()
        return self

    def start(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Run `coroutine` in the thread; the future has its result."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run `coroutine` in the thread and wait for its result."""
        return self.start(coroutine).result()

    def __exit__(self, *_: object) -> None:
        self.run(_cancel_others())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _cancel_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


async def wait_at_most(seconds: float, answer: Awaitable[T]) -> T:
    """Return the result of `answer`, which is cancelled when the time is up but, unlike by `wait_for`, not waited for.

    Raises:
        asyncio.TimeoutError: there is none within `seconds`.
    """
    task = asyncio.ensure_future(answer)
    try:
        done, _ = await asyncio.wait({task}, timeout=seconds)
    except asyncio.CancelledError:
        _abandon(task)
        raise
    if not done:
        _abandon(task)
        raise asyncio.TimeoutError
    return task.result()


def _abandon(task: asyncio.Future[Any]) -> None:
    task.cancel()
    # How it ends is nobody's business now, and asyncio would complain that nobody asked.
    task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
