"""Mends what faults left behind, every few seconds in every worker; no leader is needed."""

from collections.abc import Iterable, Sequence
from uuid import UUID

import structlog

from cplane.jobs.states import State
from cplane.postgres.rows import Standing
from cplane.postgres.store import Store
from cplane.redis.events import Event, Events
from cplane.redis.messages import EnqueueRequest, EnqueueResult, Id
from cplane.redis.queue import Queue

EVERY_S = 5.0
HEADS = 200
"""Overdue records of each lane that a pass looks at: the longest due."""

PAGE = 1000
"""Queued records that a pass looks at beside them, walking through all of them pass by pass."""

RESTORE_S = 30.0
"""How long the worker that schedules everything again is left alone with it, after each page."""

LATE_MS = 30_000
"""An id that Redis holds so much later than its record says is moved: a replay was not told. Jobs that no worker here knows are put off
for less than that."""

log = structlog.get_logger("cplane")


class Reconciler:
    """One pass ends leases of dead workers and schedules what Redis does not hold."""

    def __init__(self, worker: str, store: Store, queue: Queue, events: Events, queues: Iterable[str]) -> None:
        self._worker = worker
        self._store = store
        self._queue = queue
        self._events = events
        self._queues = tuple(queues)
        self._walked: UUID | None = None

    async def run(self) -> None:
        """One pass.

        Raises:
            DatabaseUnavailable, QueueUnavailable: the rest is done by the next pass.
        """
        await self._reap()
        await self._check_epoch()
        for queue in self._queues:
            await self.restore(await self._queue.sweep(queue))
            await self._schedule_lost(await self._store.overdue(queue, HEADS))
        page = await self._store.queued(self._walked, PAGE)
        await self._schedule_lost(page)
        self._walked = page[-1].id if len(page) == PAGE else None

    async def restore(self, missing: Sequence[Id]) -> None:
        """Ids whose payload Redis lost: those that still have a record to run are scheduled again."""
        ids = [record_id for lost in missing if (record_id := _record_id(lost.id)) is not None]
        if not ids:
            return
        standings = await self._store.standing(ids)
        await self._schedule_lost([standing for standing in standings.values() if standing.state is State.QUEUED])

    async def _reap(self) -> None:
        reaped = await self._store.reap(HEADS)
        if reaped:
            log.warning("leases ended without their worker", count=len(reaped))
            await self._schedule([standing for standing in reaped if standing.state is State.QUEUED], late_ms=0)
            await self._events.publish([Event(standing.id, standing.state) for standing in reaped])

    async def _check_epoch(self) -> None:
        """A counter in both stores, Redis's ahead: when it is behind, Redis was wiped or rolled back, and everything is scheduled again."""
        noted = await self._store.epoch()
        if await self._queue.epoch() < noted:
            if not await self._store.claim_restore(self._worker, RESTORE_S):
                return  # another worker is at it
            await self._restore_all()
        await self._store.note_epoch(await self._queue.epoch(noted + 1))

    async def _restore_all(self) -> None:
        log.warning("Redis has lost its memory; every queued job is scheduled again")
        after, scheduled = None, 0
        while page := await self._store.queued(after, PAGE):
            scheduled += await self._schedule(page)
            after = page[-1].id
            await self._store.claim_restore(self._worker, RESTORE_S)
        log.warning("every queued job is scheduled again", count=scheduled)

    async def _schedule_lost(self, standings: Sequence[Standing]) -> None:
        scheduled = await self._schedule(standings)
        if scheduled:
            log.info("jobs that Redis did not hold are scheduled", count=scheduled)

    async def _schedule(self, standings: Sequence[Standing], *, late_ms: int = LATE_MS) -> int:
        pushes = [
            EnqueueRequest.of_record(
                s.queue, s.priority, s.id, s.job, s.due_in_ms, limit_keys=s.limit_keys, late_ms=late_ms
            )
            for s in standings
        ]
        return (await self._queue.enqueue(pushes)).count(EnqueueResult.SCHEDULED) if pushes else 0


def _record_id(id_: str) -> UUID | None:
    try:
        return UUID(id_)
    except ValueError:
        return None
