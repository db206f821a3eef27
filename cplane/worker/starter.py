"""The starter: moves claimed records from queued to running in Postgres, and hands them to the runner."""

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from uuid import UUID

import structlog

from cplane.errors import DatabaseUnavailable, SchemaMismatch
from cplane.jobs.names import quarantine_of
from cplane.jobs.states import AttemptState, Cause, State
from cplane.postgres.rows import Finish, Started
from cplane.postgres.store import Store
from cplane.redis.messages import Ack, Disposition, Lease
from cplane.redis.queue import Queue
from cplane.worker.attempt import Attempt
from cplane.worker.catalog import Catalog
from cplane.worker.leases import LeaseKeeper
from cplane.worker.runner import Runner
from cplane.worker.slots import Reservation

UNKNOWN_JOB_DELAY_S = 15.0
"""How long a record is postponed that names a job which this worker does not know."""

INITIAL_BACKOFF_S = 0.1
MAX_BACKOFF_S = 5.0

log = structlog.get_logger("cplane")


class Starter:
    """Starts records.

    Args:
        worker: the worker's name, which the records show.
        store: Postgres.
        queue: Redis, where the leases of records that are not started are acknowledged.
        catalog: what this worker can run.
        lease_keeper: says how long leases are trusted.
        runner: runs attempts.
        lease_s: how long a lease is.
        stopping: set when the worker stops.
    """

    def __init__(
        self,
        worker: str,
        *,
        store: Store,
        queue: Queue,
        catalog: Catalog,
        lease_keeper: LeaseKeeper,
        runner: Runner,
        lease_s: float,
        stopping: asyncio.Event,
    ) -> None:
        self._worker = worker
        self._store = store
        self._queue = queue
        self._catalog = catalog
        self._lease_keeper = lease_keeper
        self._runner = runner
        self._lease_s = lease_s
        self._stopping = stopping

    async def start(self, leases: dict[UUID, Lease], sent: float, reserved: Reservation) -> None:
        """Start records and run each that is started; acknowledge the others in Redis.

        Args:
            leases: the leases of one claim, by record; emptied.
            sent: when the claim was sent, in monotonic seconds.
            reserved: has a slot for each.

        Raises:
            DatabaseUnavailable, SchemaMismatch: nothing was started; the leases are released.
        """
        started = await self._start(leases)
        trusted_until = self._lease_keeper.trusted_until(sent)
        if time.monotonic() >= trusted_until:
            log.warning("start_too_slow", count=len(leases), hint="the leases may have ended; the jobs are not begun")
            return
        unknown = [record for record in started if not self._catalog.knows(record.job)]
        attempts = [
            Attempt.of_record(
                record,
                leases.pop(record.id),
                self._catalog.recorded(record.job),
                slot=reserved.take(),
                runner=self._runner,
                trusted_until=trusted_until,
            )
            for record in started
            if self._catalog.knows(record.job)
        ]
        self._runner.start(attempts)
        reserved.release(len(leases))
        if unknown:
            await self._requeue_unknown(unknown)
        if leases:
            await self._queue.ack(await self._acks_of_unstarted(leases))

    async def _start(self, leases: Mapping[UUID, Lease]) -> list[Started]:
        """Start in Postgres. After a lost reply it is asked again with the same token, until the leases are half over."""
        until = time.monotonic() + self._lease_s / 2
        lease = next(iter(leases.values()))  # all came with one claim
        alone = lease.queue == quarantine_of(lease.queue)
        backoff_s = INITIAL_BACKOFF_S
        while True:
            try:
                return await self._store.start(self._worker, list(leases), lease.token, self._lease_s, alone=alone)
            except (DatabaseUnavailable, SchemaMismatch):
                if time.monotonic() + backoff_s > until or self._stopping.is_set():
                    await self._release(leases.values())
                    raise
                await asyncio.sleep(backoff_s)
                backoff_s = min(backoff_s * 2, MAX_BACKOFF_S)

    async def _release(self, leases: Iterable[Lease]) -> None:
        """Release leases: their ids are due again as before."""
        await self._queue.ack([Ack.release(lease) for lease in leases])

    async def _requeue_unknown(self, unknown: Sequence[Started]) -> None:
        """Requeue records whose payload named a job that is known here, and whose record names another that is not."""
        log.warning("started_records_requeued", jobs=sorted({record.job for record in unknown}), reason="unknown jobs")
        await self._store.finish(
            [
                Finish(
                    id=record.id,
                    attempt=record.attempt,
                    token=record.token,
                    state=State.QUEUED,
                    delay_s=UNKNOWN_JOB_DELAY_S,
                    attempt_state=AttemptState.RELEASED,
                    cause=Cause.RELEASE,
                )
                for record in unknown
            ]
        )

    async def _acks_of_unstarted(self, leases: Mapping[UUID, Lease]) -> list[Ack]:
        """How the ids of records leave Redis that could not be started.

        Final ones leave it for good, those that must run alone go to the quarantine, and the others wait until they are due.
        """
        rows = await self._store.schedule_rows(list(leases))
        acks: list[Ack] = []
        for record_id, lease in leases.items():
            row = rows.get(record_id)
            if row is None or row.state.final:
                acks.append(Ack(lease, Disposition.DONE))
            elif row.state is State.QUEUED and row.queue != lease.queue and row.queue == quarantine_of(row.queue):
                acks.append(Ack(lease, Disposition.QUARANTINE))
            else:  # not due yet, or running elsewhere: a second after its lease has ended the reconciler has seen it
                wait_ms = row.due_in_ms + (1000 if row.state is State.RUNNING else 1)
                acks.append(Ack(lease, Disposition.RETRY, wait_ms))
        return acks
