"""Jobs with a record, by id: read, wait, cancel and replay them."""

import asyncio
from collections.abc import AsyncIterator
from uuid import UUID

import structlog
from pydantic_core import to_json

from cplane.errors import JobCancelled, JobFailed, QueueUnavailable
from cplane.jobs.states import State
from cplane.plane.scheduler import SCHEDULE_WAIT_S, Scheduler
from cplane.plane.transient import TransientJob
from cplane.plane.waiters import Waiters
from cplane.postgres.models import JobRecord
from cplane.postgres.rows import RecordFilter
from cplane.postgres.store import Store
from cplane.redis.events import CONTROL, EVENTS, Event, Events

RETRY_CHUNK = 1000
"""Records that are replayed in one statement."""

log = structlog.get_logger("cplane")


class RecordedJobs:
    """What clients do with recorded jobs. A `JobClient`, and the source of their handles."""

    def __init__(self, store: Store, events: Events, waiters: Waiters, scheduler: Scheduler) -> None:
        self._store = store
        self._events = events
        self._waiters = waiters
        self._scheduler = scheduler

    async def job(self, job_id: UUID) -> JobRecord:
        """Return the record. Raises RecordNotFound, DatabaseUnavailable."""
        return await self._store.get(job_id)

    async def wait(self, job_id: UUID) -> JobRecord:
        """Return the record once it is final; waits by push, through outages too. Raises RecordNotFound."""
        return await self._waiters.wait(job_id)

    async def state(self, record_id: UUID) -> State:
        """Return the state now. Raises RecordNotFound."""
        return (await self.job(record_id)).state

    async def result(self, record_id: UUID, timeout_s: float | None) -> bytes:
        """Return the JSON of the result, once it is there. Raises JobFailed, JobCancelled, RecordNotFound, TimeoutError."""
        async with asyncio.timeout(timeout_s):
            return result_json(await self.wait(record_id))

    async def cancel(self, record_id: UUID) -> State:
        """Cancel the job: a queued one at once, a running one as soon as its worker is notified. Returns its state then.

        Raises:
            RecordNotFound: there is none.
            InvalidTransition: it is final.
        """
        state = await self._store.cancel(record_id)
        try:
            async with asyncio.timeout(SCHEDULE_WAIT_S):
                await self._events.publish([Event(record_id, state)], CONTROL if state is State.RUNNING else EVENTS)
        except (QueueUnavailable, TimeoutError):
            log.warning(
                "cancel_not_published", record=str(record_id), hint="its worker learns of it with the next renewal"
            )
        return state

    async def retry(self, job_id: UUID) -> None:
        """Run a failed or cancelled job again, with all budgets reset. Raises RecordNotFound, InvalidTransition."""
        await self._scheduler.schedule_again([await self._store.replay(job_id)])

    async def retry_many(
        self, where: RecordFilter, *, before: UUID | None, limit: int | None
    ) -> AsyncIterator[list[UUID]]:
        """Run failed and cancelled jobs again, newest first; see `ControlPlane.retry_many`."""
        left = limit
        while left is None or left > 0:
            chunk = RETRY_CHUNK if left is None else min(RETRY_CHUNK, left)
            rows = await self._store.replay_many(where, before=before, limit=chunk)
            if not rows:
                return
            await self._scheduler.schedule_again(rows)
            ids = sorted((row.id for row in rows), reverse=True)
            before = ids[-1]
            left = None if left is None else left - len(ids)
            yield ids


def result_json(job: JobRecord | TransientJob) -> bytes:
    """Return the JSON of the result of a job that has ended. Raises JobFailed, JobCancelled."""
    if job.state == State.FAILED:
        raise JobFailed(job.job, job.error_type or "Error", job.error_message or "", job.error_traceback or "")
    if job.state == State.CANCELLED:
        raise JobCancelled(f"job '{job.job}' was cancelled")
    return to_json(job.result)
