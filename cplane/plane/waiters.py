"""Waiting for records to become final: one reader of the event stream serves every waiter of the process.

An event says at once that a record is final; should events be lost, the waited records are looked up every few seconds.
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
from cplane.postgres.rows import Standing
from cplane.postgres.store import Store
from cplane.redis.envelope import KeptResult, decode_result
from cplane.redis.events import Events
from cplane.redis.queue import Queue
from cplane.runtime.batch import Batch
from cplane.runtime.cancellation import end

CHECK_S = 5.0
"""How often waited records are looked up in case their event was lost."""

CHECK_BLIND_S = 0.5
"""The same while Redis is away and no event can come."""

log = structlog.get_logger("cplane")

Found = TypeVar("Found")


class Waiters:
    """Who waits for what. The reader starts with the first waiter and ends with the context."""

    def __init__(self, store: Store, queue: Queue, events: Events) -> None:
        self._store = store
        self._queue = queue
        self._events = events
        self._waiting: dict[UUID, set[asyncio.Future[None]]] = {}
        self._hearing = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._look_up = Batch(self._records, name="look up waited records")
        self._look_up_results = Batch(self.results, name="look up waited results")
        self._open = AsyncExitStack()

    async def __aenter__(self) -> Self:
        await self._open.enter_async_context(self._look_up)
        await self._open.enter_async_context(self._look_up_results)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await end(self._tasks)
        self._tasks.clear()
        await self._open.aclose()

    async def wait(self, record_id: UUID) -> JobRecord:
        """The record, once it is final.

        Raises:
            RecordNotFound: there is none.
        """
        return await self._until(record_id, self._final_record)

    async def wait_result(self, job_id: UUID) -> KeptResult:
        """What a transient job left in Redis, once it has ended.

        Raises:
            RecordNotFound: there is no such job, or its result is not kept any more.
        """
        return await self._until(job_id, self._kept_result)

    async def _until(self, job_id: UUID, look: Callable[[UUID], Awaitable[Found | None]]) -> Found:
        """What `look` finds, once it finds something: it looks at first, and whenever an event says that there is news."""
        self._listen_now()
        news: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(job_id, set()).add(news)
        try:
            found = await look(job_id)
            while found is None:
                await news
                news = self._again(job_id, news)
                found = await _patiently(look, job_id)
            return found
        finally:
            self._forget(job_id, news)

    def _listen_now(self) -> None:
        if self._tasks:
            return
        self._tasks = [
            asyncio.create_task(self._listen(), name="follow events"),
            asyncio.create_task(self._check(), name="check waited records"),
        ]
        for task in self._tasks:
            task.add_done_callback(self._stopped)

    async def _final_record(self, record_id: UUID) -> JobRecord | None:
        found = await self._look_up(record_id)
        if found is None:
            raise RecordNotFound(f"there is no job with the id {record_id}")
        return found if isinstance(found, JobRecord) and found.state.final else None

    async def _kept_result(self, job_id: UUID) -> KeptResult | None:
        if (kept := await self._look_up_results(job_id)) is not None:
            return kept
        there, _ = await self._queue.standing(str(job_id))
        if there:
            return None
        if (kept := await self._look_up_results(job_id)) is not None:  # it ended between the two looks
            return kept
        raise RecordNotFound(f"there is no job with the id {job_id}, or its result is not kept any more")

    async def _records(self, record_ids: list[UUID]) -> list[JobRecord | Standing | None]:
        """Those who wait together look together: where each record stands, and the whole of those that are final."""
        found: dict[UUID, JobRecord | Standing] = {**await self._store.standing(record_ids)}
        if final := [record_id for record_id, standing in found.items() if standing.state.final]:
            found |= {record.id: record for record in await self._store.get_many(final)}
        return [found.get(record_id) for record_id in record_ids]

    async def results(self, job_ids: list[UUID]) -> list[KeptResult | None]:
        """What transient jobs left in Redis so far."""
        kept = await self._queue.results([str(job_id) for job_id in job_ids])
        return [None if result is None else decode_result(result) for result in kept]

    def _again(self, record_id: UUID, old: asyncio.Future[None]) -> asyncio.Future[None]:
        """Wait once more: what was final has been replayed meanwhile."""
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

    def _tell(self, record_id: UUID) -> None:
        for final in self._waiting.get(record_id, ()):
            if not final.done():
                final.set_result(None)

    def _stopped(self, task: asyncio.Task[None]) -> None:
        """A task of ours that ends by itself takes every waiter along: nobody waits for what cannot come."""
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
                    self._hearing.set()
                    for event in events:
                        if event.state.final:
                            self._tell(event.record_id)
            except QueueUnavailable:
                self._hearing.clear()
                await asyncio.sleep(CHECK_BLIND_S)

    async def _ended(self) -> list[UUID]:
        """The waited jobs that have ended, as far as can be seen: one that has no record looks for its result itself."""
        waited = list(self._waiting)
        try:
            standings = await self._store.standing(waited)
            return [job_id for job_id in waited if job_id not in standings or standings[job_id].state.final]
        except DatabaseUnavailable:
            log.warning("waited records cannot be looked up; trying again")
        with suppress(QueueUnavailable):  # what has no record ends all the same
            kept = await self._queue.results([str(job_id) for job_id in waited]) if waited else []
            return [job_id for job_id, result in zip(waited, kept, strict=True) if result is not None]
        return []

    async def _check(self) -> None:
        """The first look follows as soon as events are heard: what ended before that has no event left to come."""
        with suppress(TimeoutError):
            async with asyncio.timeout(CHECK_BLIND_S):
                await self._hearing.wait()
        while True:
            hearing = self._hearing.is_set()
            for job_id in await self._ended():
                self._tell(job_id)
            if (
                hearing or not self._hearing.is_set()
            ):  # what ended while events began to be heard may have been missed by both
                await asyncio.sleep(CHECK_S if hearing else CHECK_BLIND_S)


async def _patiently(look: Callable[[UUID], Awaitable[Found | None]], job_id: UUID) -> Found | None:
    """Who has begun to wait waits through an outage; only the first look may fail."""
    while True:
        try:
            return await look(job_id)
        except (DatabaseUnavailable, QueueUnavailable):
            await asyncio.sleep(CHECK_BLIND_S)
