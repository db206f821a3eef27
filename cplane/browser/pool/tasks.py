"""Background tasks of a pool: each has a name and an owner that awaits it."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import structlog

from cplane.browser.engine.instance import CLOSE_TIMEOUT_S
from cplane.errors import CplaneError
from cplane.runtime.cancellation import cancel_all

T = TypeVar("T")

log = structlog.get_logger("cplane")


class PoolTasks:
    """The tasks of a pool that are not done yet."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def spawn(self, work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        """Run a coroutine as a task of the pool."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    async def close(self) -> None:
        """Wait up to 5 s for every task, then cancel those that are left."""
        pending = list(self._tasks)
        if pending:
            await asyncio.wait(pending, timeout=CLOSE_TIMEOUT_S)
        await cancel_all(pending)

    def _done(self, task: asyncio.Task[Any]) -> None:
        """Log an unexpected error. An expected one belongs to the caller that awaits the task, if there is one left."""
        self._tasks.discard(task)
        if task.cancelled() or not (error := task.exception()) or isinstance(error, CplaneError):
            return
        log.error("browser_pool_task_failed", task=task.get_name(), exc_info=error)
