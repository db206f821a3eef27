"""The leases of a worker's running attempts: renewed in batches; an attempt is stopped before its lease can end."""

import asyncio
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, cast
from uuid import UUID

import structlog

from cplane.errors import DatabaseUnavailable, QueueUnavailable, SchemaMismatch
from cplane.postgres.rows import Renew
from cplane.postgres.store import Store
from cplane.redis.events import CONTROL, Events
from cplane.redis.messages import Renewal
from cplane.redis.queue import Queue
from cplane.worker.attempt import AnyFence, Attempt, Stop

if TYPE_CHECKING:
    from cplane.worker.kept import Kept

CHECK_INTERVAL_S = 1.0
"""How often progress is written, and attempts are stopped whose leases can no longer be trusted."""

log = structlog.get_logger("cplane")


class LeaseKeeper:
    """Keeps the leases of running attempts, and stops an attempt whose lease can no longer be trusted."""

    def __init__(self, store: Store, queue: Queue, events: Events, lease_s: float, kept: "Kept | None" = None) -> None:
        self._store = store
        self._queue = queue
        self._events = events
        self._lease_s = lease_s
        self._kept = kept
        self._margin_s = min(2.0, lease_s / 5)  # the last thing done must still arrive in time
        self._interval_s = min(CHECK_INTERVAL_S, lease_s / 10)
        self._attempts: dict[AnyFence, Attempt] = {}
        self._wait_ended = asyncio.Event()

    def __iter__(self) -> Iterator[Attempt]:
        return iter(list(self._attempts.values()))

    def __len__(self) -> int:
        return len(self._attempts)

    @property
    def waiting_for_pages(self) -> int:
        """How many attempts wait for a page."""
        return sum(attempt.waits_for_page for attempt in self._attempts.values())

    @property
    def wait_ended(self) -> asyncio.Event:
        """Set when next an attempt waits for a page no more. Take it before `waiting_for_pages` is read."""
        return self._wait_ended

    def end_wait(self) -> None:
        """Say that an attempt waits for a page no more."""
        ended, self._wait_ended = self._wait_ended, asyncio.Event()
        ended.set()

    def trusted_until(self, sent: float) -> float:
        """Return until when a lease holds that was requested at `sent` (monotonic seconds). A slow reply never extends trust."""
        return sent + self._lease_s - self._margin_s

    def add(self, attempt: Attempt) -> None:
        """Keep the lease of an attempt from now on."""
        self._attempts[attempt.fence] = attempt

    def remove(self, attempt: Attempt) -> None:
        """Forget an attempt whose outcome is recorded."""
        self._attempts.pop(attempt.fence, None)
        if attempt.job.needs_page:
            self.end_wait()

    async def keep(self) -> None:
        """Renew every third of a lease, and every second write new progress. For ever."""
        renew_at = time.monotonic() + self._lease_s / 3
        while True:
            await asyncio.sleep(self._interval_s)
            now = time.monotonic()
            due = now >= renew_at
            attempts = [attempt for attempt in self if due or attempt.has_unwritten_progress]
            if await self._renew(attempts) and due:
                renew_at = now + self._lease_s / 3

    async def watch(self) -> None:
        """Stop attempts whose leases are no longer trusted, however long a renewal hangs. For ever."""
        while True:
            await asyncio.sleep(self._interval_s)
            self._stop_untrusted()

    async def listen(self) -> None:
        """Renew at once what is to be cancelled, for as long as Redis is available: the reply of Postgres says so."""
        async for events in self._events.follow(CONTROL):
            wanted = {event.record_id for event in events}
            if wanted:
                await self._renew([attempt for attempt in self if attempt.uuid in wanted])

    async def _renew(self, attempts: Sequence[Attempt]) -> bool:
        """Renew in both stores concurrently. Where there is a record, Postgres decides. Returns whether the renewal reached it."""
        if not attempts:
            return True
        sent = time.monotonic()
        records = [attempt for attempt in attempts if attempt.job.is_recorded]
        async with asyncio.TaskGroup() as group:  # one that hangs does not hold up the other
            renewing = group.create_task(self._renew_records(records, sent), name="renew leases in Postgres")
            queued = group.create_task(self._renew_queued(attempts, sent), name="renew leases in Redis")
        return renewing.result() and (queued.result() or len(records) == len(attempts))

    async def _renew_queued(self, attempts: Sequence[Attempt], sent: float) -> bool:
        try:
            renewals = await self._queue.renew([attempt.lease for attempt in attempts], self._lease_s)
        except QueueUnavailable as error:
            log.warning("leases_not_renewed_in_redis", count=len(attempts), reason=str(error))
            return False
        for attempt, renewal in zip(attempts, renewals, strict=True):
            if not attempt.job.is_recorded:  # where Redis has lost its memory, nobody else has the job either
                self._apply(attempt, lost=renewal is Renewal.FENCED, sent=sent)
            if renewal is Renewal.ABORT_WANTED:
                attempt.stop(Stop.CANCEL)
        return True

    async def _renew_records(self, attempts: Sequence[Attempt], sent: float) -> bool:
        if not attempts:
            return True
        renewals = [_renewal(attempt) for attempt in attempts]
        reports = [attempt.progress for attempt in attempts if attempt.progress is not None]
        for report in reports:
            report.written = True
        try:
            cancels = await self._store.renew(renewals, self._lease_s)
        except (DatabaseUnavailable, SchemaMismatch) as error:
            log.warning("leases_not_renewed", count=len(attempts), reason=str(error))
            for report in reports:
                report.written = False
            return False
        for attempt, renewal in zip(attempts, renewals, strict=True):
            cancel_wanted = cancels.get((renewal.id, renewal.attempt))
            self._apply(attempt, lost=cancel_wanted is None, sent=sent)
            if cancel_wanted:
                attempt.stop(Stop.CANCEL)
        return True

    def _apply(self, attempt: Attempt, *, lost: bool, sent: float) -> None:
        if attempt.fence not in self._attempts:
            return
        if not lost:
            attempt.trusted_until = max(attempt.trusted_until, self.trusted_until(sent))
        elif not attempt.decided:
            attempt.log.warning("lease_lost", reason="another worker has it")
            attempt.stop(Stop.LEASE_LOST)

    def _stop_untrusted(self) -> None:
        if self._kept is not None:
            self._kept.trust(self._attempts.values(), self.trusted_until)
        now = time.monotonic()
        for attempt in self:
            if attempt.trusted_until <= now and not attempt.decided and attempt.stopped is not Stop.LEASE_LOST:
                attempt.log.warning("lease_lost", reason="it could not be renewed in time")
                attempt.stop(Stop.LEASE_LOST)


def _renewal(attempt: Attempt) -> Renew:
    report = attempt.progress
    progress = None if report is None or report.written else report.latest
    record_id = cast("UUID", attempt.record_id)
    return Renew(id=record_id, attempt=attempt.number, token=attempt.lease.token, progress=progress)
