"""Waiting for records to become final: one reader of the event stream serves every waiter of the process.

An event says at once that a record is final; should events be lost, the waited records are looked up every few seconds.
"""

import asyncio
from contextlib import suppress
from types import TracebackType
from typing import Self
from uuid import UUID

import structlog

from cplane.batch import Batch
from cplane.endings import end
from cplane.errors import DatabaseUnavailable, QueueUnavailable, RecordNotFound
from cplane.events import Events
from cplane.records import JobRecord
from cplane.store import Store

CHECK_S = 5.0
"""How often waited records are looked up in case their event was lost."""

CHECK_BLIND_S = 0.5
"""The same while Redis is away and no event can come."""

log = structlog.get_logger("cplane")


class Waiters:
    """Who waits for what. The reader starts with the first waiter and ends with the context."""

    def __init__(self, store: Store, events: Events) -> None:
        self._store = store
        self._events = events
        self._waiting: dict[UUID, set[asyncio.Future[None]]] = {}
        self._hearing = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._look_up = Batch(self._records, name="look up waited records")

    async def __aenter__(self) -> Self:
        await self._look_up.__aenter__()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await end(self._tasks)
        self._tasks.clear()
        await self._look_up.__aexit__(exc_type, exc, tb)

    async def wait(self, record_id: UUID) -> JobRecord:
        """The record, once it is final.

        Raises:
            RecordNotFound: there is none.
        """
        if not self._tasks:
            self._tasks = [
                asyncio.create_task(self._listen(), name="follow events"),
                asyncio.create_task(self._check(), name="check waited records"),
            ]
            for task in self._tasks:
                task.add_done_callback(self._stopped)
        final: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(record_id, set()).add(final)
        try:
            record = await self._look(record_id)
            while not record.state.final:
                await final
                final = self._again(record_id, final)
                record = await self._look_patiently(record_id)
            return record
        finally:
            self._forget(record_id, final)

    async def _look(self, record_id: UUID) -> JobRecord:
        record = await self._look_up(record_id)
        if record is None:
            raise RecordNotFound(f"there is no job with the id {record_id}")
        return record

    async def _look_patiently(self, record_id: UUID) -> JobRecord:
        """Who has begun to wait waits through an outage; only the first look may fail."""
        while True:
            try:
                return await self._look(record_id)
            except DatabaseUnavailable:
                await asyncio.sleep(CHECK_BLIND_S)

    async def _records(self, record_ids: list[UUID]) -> list[JobRecord | None]:
        """Those who wait together look together."""
        found = {record.id: record for record in await self._store.get_many(record_ids)}
        return [found.get(record_id) for record_id in record_ids]

    def _again(self, record_id: UUID, old: asyncio.Future[None]) -> asyncio.Future[None]:
        """Wait once more: what was final has been replayed meanwhile."""
        self._forget(record_id, old)
        final: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(record_id, set()).add(final)
        return final

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

    async def _check(self) -> None:
        """The first look follows as soon as events are heard: what ended before that has no event left to come."""
        with suppress(TimeoutError):
            async with asyncio.timeout(CHECK_BLIND_S):
                await self._hearing.wait()
        while True:
            try:
                for record_id, standing in (await self._store.standing(list(self._waiting))).items():
                    if standing.state.final:
                        self._tell(record_id)
            except DatabaseUnavailable:
                log.warning("waited records cannot be looked up; trying again")
            await asyncio.sleep(CHECK_S if self._hearing.is_set() else CHECK_BLIND_S)
