"""Cancellation that is certain: end tasks, and wait for the first of several."""

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any

RETRY_INTERVAL_S = 0.2
"""Seconds until a task that has not ended is cancelled again."""


async def cancel_all(tasks: Iterable[asyncio.Task[Any]], retry_interval_s: float = RETRY_INTERVAL_S) -> None:
    """Cancel tasks and wait until all of them have ended; their errors are not raised.

    A task is cancelled again until it ends: before Python 3.12, `asyncio.wait_for`, which drivers use while they
    connect, loses a cancellation that arrives as it completes (python/cpython#86296).

    Args:
        tasks: the tasks to end; those that are done already are ignored.
        retry_interval_s: seconds until a task that has not ended is cancelled again. Tasks with a long cleanup need a long
            interval, or the second cancellation interrupts the cleanup.
    """
    pending = {task for task in tasks if not task.done()}
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=retry_interval_s)


async def wait_first(*waiting: Coroutine[Any, Any, object]) -> None:
    """Wait for the first of several coroutines to complete, and cancel the others.

    Args:
        *waiting: the coroutines, started concurrently.

    Raises:
        Exception: an error of any coroutine that ended.
    """
    tasks = [asyncio.ensure_future(coroutine) for coroutine in waiting]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await cancel_all(tasks)
    for task in tasks:
        if not task.cancelled():
            task.result()
