"""The scheduler: puts recorded jobs into the schedule. While Redis is away they wait for the reconciler, and no caller waits for it."""

import asyncio
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

import structlog

from cplane.errors import QueueUnavailable
from cplane.postgres.rows import ScheduleRow
from cplane.redis.messages import EnqueueRequest
from cplane.redis.queue import Queue
from cplane.runtime.batch import Batch

SCHEDULE_WAIT_S = 1.0
"""How long a submit waits for Redis before it returns: the record is the truth, the reconciler schedules what Redis missed."""

PAUSE_S = 1.0
"""How long scheduling pauses after Redis failed: callers do not queue up behind a dead server."""

log = structlog.get_logger("cplane")


class EnqueueSender:
    """Sends batches to Redis, and pauses after a failure."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._paused_until = 0.0

    async def __call__(self, batch: list[list[EnqueueRequest]]) -> list[None]:
        """Enqueue the requests of a batch in one call. An outage is logged, never raised."""
        requests = [request for group in batch for request in group]
        try:
            if requests and time.monotonic() >= self._paused_until:
                await self._queue.enqueue(requests)
        except QueueUnavailable as error:
            self._paused_until = time.monotonic() + PAUSE_S
            log.warning(
                "jobs_not_scheduled", count=len(requests), reason=str(error), hint="the reconciler does it later"
            )
        return [None] * len(batch)


class Scheduler:
    """Schedules recorded jobs in batches."""

    def __init__(self, queue: Queue) -> None:
        self._batch = Batch(EnqueueSender(queue), name="schedule submitted jobs")

    async def __aenter__(self) -> Self:
        await self._batch.__aenter__()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self._batch.__aexit__(exc_type, exc, tb)

    def put(self, requests: list[EnqueueRequest]) -> asyncio.Future[None]:
        """Schedule with the next batch. The future is done when Redis has replied or failed."""
        return self._batch.put(requests)

    async def schedule_again(self, rows: Sequence[ScheduleRow]) -> None:
        """Schedule replayed records, due at once. Returns after SCHEDULE_WAIT_S at the latest."""
        requests = [
            EnqueueRequest.of_record(
                each.queue, each.priority, each.id, each.job, 0, limit_keys=each.limit_keys, late_ms=0
            )
            for each in rows
        ]
        await asyncio.wait([self.put(requests)], timeout=SCHEDULE_WAIT_S)
