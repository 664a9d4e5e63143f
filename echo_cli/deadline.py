"""An answer within a time, from code that may not stop when it is told to."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def within(seconds: float, answer: Coroutine[Any, Any, T]) -> T:
    """The result of `answer`, which is cancelled at the end of the time but, unlike by `wait_for`, not waited for.

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


def _abandon(task: asyncio.Task[Any]) -> None:
    task.cancel()
    # How it ends is nobody's business now, and asyncio would complain that nobody asked.
    task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
