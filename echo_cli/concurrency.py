"""Work outside the main thread: a worker thread, an event loop in a thread, and a time limit."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")


class WorkerThread:
    """A daemon thread that runs functions one after another.

    Python waits at exit for the threads of a ThreadPoolExecutor, but not for a daemon thread. A thread cannot be
    killed: a function that never returns occupies it until the process ends.
    """

    def __init__(self, name: str) -> None:
        self._calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def start(self, function: Callable[[], T]) -> Future[T]:
        """Queue `function` and return a future for its result."""
        future: Future[T] = Future()
        self._calls.put((future, function))
        return future

    async def run(self, function: Callable[[], T]) -> T:
        """Queue `function` and wait for its result."""
        return await asyncio.wrap_future(self.start(function))

    def end(self) -> None:
        """End the thread after it has run the queued functions."""
        self._calls.put(None)

    def join(self, timeout_s: float) -> None:
        """Wait up to `timeout_s` seconds for the thread to end."""
        self._thread.join(timeout_s)

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            _answer(*call)
            del call  # an idle thread must not keep its last call alive


def _answer(future: Future[T], function: Callable[[], T]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = function()
    except Exception as error:
        future.set_exception(RuntimeError("StopIteration") if isinstance(error, StopIteration) else error)
    except BaseException as error:  # SystemExit would end the waiting event loop
        future.set_exception(RuntimeError(f"{type(error).__name__}: {error}"))
    else:
        future.set_result(result)


class EventLoop:
    """An asyncio event loop in its own thread, for a `with` block. The end of the block cancels running tasks.

    The loop answers a connection's keepalive even while the caller computes.
    """

    def __init__(self, name: str = "environments") -> None:
        self._name = name

    def __enter__(self) -> EventLoop:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=self._name, daemon=True)
        self._thread.start()
        return self

    def start(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Start `coroutine` in the thread and return a future for its result."""
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
    """Return the result of `answer`; cancel it if it takes longer than `seconds`.

    Unlike `asyncio.wait_for`, this does not wait for the cancelled task to end.

    Raises:
        asyncio.TimeoutError: `answer` has no result within `seconds`.
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
    # Retrieve the exception: asyncio logs an exception that is never retrieved.
    task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
