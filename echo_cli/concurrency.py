"""Work outside the main thread: a worker thread, an event loop in a thread, a time limit, and a child process."""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from concurrent.futures import Future
from contextlib import suppress
from queue import SimpleQueue
from typing import IO, Any, BinaryIO, TypeVar

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
        # The child's process id, which is also its group's id, cannot be reused before `kill` waits for the child.
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
