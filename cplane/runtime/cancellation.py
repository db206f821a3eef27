"""Waiting for tasks, and ending them for certain."""

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any

AGAIN_S = 0.2


async def end(tasks: Iterable[asyncio.Task[Any]], again_s: float = AGAIN_S) -> None:
    """Cancel tasks and wait until they have ended; their errors are not raised.

    Args:
        tasks: what is to end; tasks that clean up for long need a long `again_s`, or they are interrupted at it.
        again_s: seconds until a task that has not ended is cancelled again.

    A task is cancelled again until it ends: before Python 3.12 `asyncio.wait_for`, which drivers use while they connect, loses a
    cancellation that comes as it is done (python/cpython#86296).
    """
    pending = {task for task in tasks if not task.done()}
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=again_s)


async def first(*waiting: Coroutine[Any, Any, object]) -> None:
    """Wait for the first of several; the others are cancelled, and an error of any that has ended is raised."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in waiting]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await end(tasks)
    for task in tasks:
        if not task.cancelled():
            task.result()
