"""The reconciler: repairs what faults left behind, every few seconds in every worker. It needs no leader."""

from collections.abc import Iterable, Sequence
from uuid import UUID

import structlog

from cplane.jobs.names import quarantine_of
from cplane.jobs.states import State
from cplane.postgres.rows import ScheduleRow
from cplane.postgres.store import Store
from cplane.redis.events import Event, Events
from cplane.redis.messages import EnqueueRequest, EnqueueResult, Id
from cplane.redis.queue import Queue
from cplane.worker.quarantine import Quarantines

RECONCILE_INTERVAL_S = 5.0
OVERDUE_LIMIT = 200
"""Overdue records of each lane that a pass reads: the longest due."""

PAGE_SIZE = 1000
"""Queued records that a pass reads beside them, walking through all of them pass by pass."""

RESTORE_LEASE_S = 30.0
"""How long the worker that schedules everything again has that to itself, after each page."""

MAX_LATE_MS = 30_000
"""An id that Redis holds this much later than its record says is moved: Redis missed a replay. Jobs that no worker here knows are
postponed for less than that."""

log = structlog.get_logger("cplane")


class Reconciler:
    """One pass reaps the leases of dead workers and schedules what Redis does not hold."""

    def __init__(
        self,
        worker: str,
        store: Store,
        queue: Queue,
        events: Events,
        queues: Iterable[str],
        *,
        quarantines: Quarantines,
    ) -> None:
        self._quarantines = quarantines
        self._worker = worker
        self._store = store
        self._queue = queue
        self._events = events
        self._queues = tuple(queues)
        self._walked: UUID | None = None

    async def run(self) -> None:
        """Do one pass.

        Raises:
            DatabaseUnavailable, QueueUnavailable: the rest is left to the next pass.
        """
        await self._reap()
        await self._check_epoch()
        for queue in self._queues:
            await self.restore(await self._queue.sweep(queue))
            await self._schedule_lost(await self._store.overdue(queue, OVERDUE_LIMIT))
        for queue in self._quarantines.queues:
            await self._check_quarantine(queue)
        page = await self._store.queued(self._walked, PAGE_SIZE)
        await self._schedule_lost(page)
        self._walked = page[-1].id if len(page) == PAGE_SIZE else None

    async def _check_quarantine(self, queue: str) -> None:
        quarantine = quarantine_of(queue)
        if await self._queue.depth(quarantine):
            await self.restore(await self._queue.sweep(quarantine))
            if (await self._queue.stats(quarantine)).ready:
                self._quarantines.report(queue)

    async def restore(self, missing: Sequence[Id]) -> None:
        """Schedule again the ids whose payload Redis lost, if their record is still queued."""
        ids = [record_id for lost in missing if (record_id := _record_id(lost.id)) is not None]
        if not ids:
            return
        rows = await self._store.schedule_rows(ids)
        await self._schedule_lost([row for row in rows.values() if row.state is State.QUEUED])

    async def _reap(self) -> None:
        reaped = await self._store.reap(OVERDUE_LIMIT)
        if reaped:
            log.warning("dead_leases_reaped", count=len(reaped))
            await self._schedule([row for row in reaped if row.state is State.QUEUED], late_ms=0)
            await self._events.publish([Event(row.id, row.state) for row in reaped])

    async def _check_epoch(self) -> None:
        """Compare a counter that both stores keep, Redis's ahead. If it is behind, Redis was wiped or rolled back: schedule everything again."""
        noted = await self._store.epoch()
        if await self._queue.epoch() < noted:
            if not await self._store.claim_restore(self._worker, RESTORE_LEASE_S):
                return  # another worker does it
            await self._restore_all()
        await self._store.record_epoch(await self._queue.epoch(noted + 1))

    async def _restore_all(self) -> None:
        log.warning("redis_lost_its_memory", hint="every queued job is scheduled again")
        after, scheduled = None, 0
        while page := await self._store.queued(after, PAGE_SIZE):
            scheduled += await self._schedule(page)
            after = page[-1].id
            await self._store.claim_restore(self._worker, RESTORE_LEASE_S)
        log.warning("queued_jobs_rescheduled", count=scheduled)

    async def _schedule_lost(self, rows: Sequence[ScheduleRow]) -> None:
        scheduled = await self._schedule(rows)
        if scheduled:
            log.info("lost_jobs_scheduled", count=scheduled)

    async def _schedule(self, rows: Sequence[ScheduleRow], *, late_ms: int = MAX_LATE_MS) -> int:
        pushes = [
            EnqueueRequest.of_record(
                s.queue, s.priority, s.id, s.job, s.due_in_ms, limit_keys=s.limit_keys, late_ms=late_ms
            )
            for s in rows
        ]
        return (await self._queue.enqueue(pushes)).count(EnqueueResult.SCHEDULED) if pushes else 0


def _record_id(id_: str) -> UUID | None:
    try:
        return UUID(id_)
    except ValueError:
        return None
