"""Waiting for jobs to end: one reader of the event stream serves every waiter of the process.

An event says at once that a job has ended. In case an event is lost, the awaited jobs are read every few seconds.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from types import TracebackType
from typing import Self, TypeVar
from uuid import UUID

import structlog

from cplane.errors import DatabaseUnavailable, QueueUnavailable, RecordNotFound
from cplane.postgres.models import JobRecord
from cplane.postgres.rows import ScheduleRow
from cplane.postgres.store import Store
from cplane.redis.envelope import KeptResult, decode_result
from cplane.redis.events import Events
from cplane.redis.queue import Queue
from cplane.runtime.batch import Batch
from cplane.runtime.cancellation import cancel_all
from cplane.runtime.waiting import announced_wait

POLL_INTERVAL_S = 5.0
"""How often awaited jobs are read in case their event was lost."""

POLL_INTERVAL_WITHOUT_EVENTS_S = 0.5
"""The same while Redis is unavailable and no event can come."""

log = structlog.get_logger("cplane")

Found = TypeVar("Found")


class Waiters:
    """The waiters of the process, by job. The reader starts with the first waiter and ends with the context."""

    def __init__(self, store: Store, queue: Queue, events: Events) -> None:
        self._store = store
        self._queue = queue
        self._events = events
        self._waiting: dict[UUID, set[asyncio.Future[None]]] = {}
        self._following = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._read_records = Batch(self._records, name="read awaited records")
        self._read_results = Batch(self.results, name="read awaited results")
        self._open = AsyncExitStack()

    async def __aenter__(self) -> Self:
        await self._open.enter_async_context(self._read_records)
        await self._open.enter_async_context(self._read_results)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await cancel_all(self._tasks)
        self._tasks.clear()
        await self._open.aclose()

    async def wait(self, record_id: UUID) -> JobRecord:
        """Return the record, once it is final.

        Raises:
            RecordNotFound: there is none.
        """
        return await self._until(record_id, self._final_record)

    async def wait_result(self, job_id: UUID) -> KeptResult:
        """Return the kept result of a transient job, once it has ended.

        Raises:
            RecordNotFound: there is no such job, or its result is no longer kept.
        """
        return await self._until(job_id, self._kept_result)

    async def _until(self, job_id: UUID, read: Callable[[UUID], Awaitable[Found | None]]) -> Found:
        """Return what `read` finds, once it finds something. It is called first, and after each event of the job."""
        self._start_following()
        news: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(job_id, set()).add(news)
        try:
            if (found := await read(job_id)) is not None:
                return found
            with announced_wait():
                while found is None:
                    await news
                    news = self._again(job_id, news)
                    found = await _read_through_outages(read, job_id)
            return found
        finally:
            self._forget(job_id, news)

    def _start_following(self) -> None:
        if self._tasks:
            return
        self._tasks = [
            asyncio.create_task(self._listen(), name="follow events"),
            asyncio.create_task(self._poll(), name="poll awaited jobs"),
        ]
        for task in self._tasks:
            task.add_done_callback(self._stopped)

    async def _final_record(self, record_id: UUID) -> JobRecord | None:
        found = await self._read_records(record_id)
        if found is None:
            raise RecordNotFound(f"there is no job with the id {record_id}")
        return found if isinstance(found, JobRecord) and found.state.final else None

    async def _kept_result(self, job_id: UUID) -> KeptResult | None:
        if (kept := await self._read_results(job_id)) is not None:
            return kept
        there, _ = await self._queue.presence(str(job_id))
        if there:
            return None
        if (kept := await self._read_results(job_id)) is not None:  # it ended between the two reads
            return kept
        raise RecordNotFound(f"there is no job with the id {job_id}, or its result is no longer kept")

    async def _records(self, record_ids: list[UUID]) -> list[JobRecord | ScheduleRow | None]:
        """Read what is awaited in one call: the state of each record, and the whole of those that are final."""
        found: dict[UUID, JobRecord | ScheduleRow] = {**await self._store.schedule_rows(record_ids)}
        if final := [record_id for record_id, row in found.items() if row.state.final]:
            found |= {record.id: record for record in await self._store.get_many(final)}
        return [found.get(record_id) for record_id in record_ids]

    async def results(self, job_ids: list[UUID]) -> list[KeptResult | None]:
        """Return the kept results of transient jobs; None for those that have none."""
        kept = await self._queue.results([str(job_id) for job_id in job_ids])
        return [None if result is None else decode_result(result) for result in kept]

    def _again(self, record_id: UUID, old: asyncio.Future[None]) -> asyncio.Future[None]:
        """Wait once more: what was final has been replayed since."""
        self._forget(record_id, old)
        news: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(record_id, set()).add(news)
        return news

    def _forget(self, record_id: UUID, final: asyncio.Future[None]) -> None:
        waiting = self._waiting.get(record_id)
        if waiting is not None:
            waiting.discard(final)
            if not waiting:
                del self._waiting[record_id]

    def _notify(self, record_id: UUID) -> None:
        for final in self._waiting.get(record_id, ()):
            if not final.done():
                final.set_result(None)

    def _stopped(self, task: asyncio.Task[None]) -> None:
        """Fail every waiter when a task ends by itself: what they wait for can no longer come."""
        if task.cancelled() or (error := task.exception()) is None:
            return
        for final in [final for waiting in self._waiting.values() for final in waiting]:
            if not final.done():
                final.set_exception(error)
        self._tasks = [other for other in self._tasks if other is not task]
        for other in self._tasks:
            other.cancel()
        self._tasks.clear()

    async def _listen(self) -> None:
        while True:
            try:
                async for events in self._events.follow():
                    self._following.set()
                    for event in events:
                        if event.state.final:
                            self._notify(event.record_id)
            except QueueUnavailable:
                self._following.clear()
                await asyncio.sleep(POLL_INTERVAL_WITHOUT_EVENTS_S)

    async def _ended(self) -> list[UUID]:
        """The awaited jobs that have ended, and those without a record, whose waiters read their results themselves."""
        waited = list(self._waiting)
        try:
            rows = await self._store.schedule_rows(waited)
            return [job_id for job_id in waited if job_id not in rows or rows[job_id].state.final]
        except DatabaseUnavailable:
            log.warning("awaited_records_not_read", retry_in_s=POLL_INTERVAL_S)
        with suppress(QueueUnavailable):  # what has no record may have ended
            kept = await self._queue.results([str(job_id) for job_id in waited]) if waited else []
            return [job_id for job_id, result in zip(waited, kept, strict=True) if result is not None]
        return []

    async def _poll(self) -> None:
        """Read first as soon as events are followed: what ended before that has no event left to come."""
        with suppress(TimeoutError):
            async with asyncio.timeout(POLL_INTERVAL_WITHOUT_EVENTS_S):
                await self._following.wait()
        while True:
            following = self._following.is_set()
            for job_id in await self._ended():
                self._notify(job_id)
            if (
                following or not self._following.is_set()
            ):  # what ended while the stream began to be followed may have been missed by both
                await asyncio.sleep(POLL_INTERVAL_S if following else POLL_INTERVAL_WITHOUT_EVENTS_S)


async def _read_through_outages(read: Callable[[UUID], Awaitable[Found | None]], job_id: UUID) -> Found | None:
    """Read through an outage: a wait that has begun goes on, only its first read may fail."""
    while True:
        try:
            return await read(job_id)
        except (DatabaseUnavailable, QueueUnavailable):
            await asyncio.sleep(POLL_INTERVAL_WITHOUT_EVENTS_S)
