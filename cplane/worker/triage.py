"""Triage of a claim: each lease is a record to start, a job to run at once, one that waits for its host, or one that is sent back."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from uuid import UUID

import msgspec
import structlog

from cplane.errors import QueueUnavailable, UnknownJob
from cplane.jobs.names import quarantine_of
from cplane.jobs.per_host import PerHost, host_among, limit_keys_of, session_among
from cplane.jobs.states import ALONE_AFTER, AttemptState, State
from cplane.redis.dead_letters import DeadLetterStream
from cplane.redis.envelope import Envelope, decode_envelope, next_envelope, now_ms
from cplane.redis.limiter import GRANTED, Limiter, LimitRequest
from cplane.redis.messages import Ack, Claim, Disposition, Id, Lease
from cplane.redis.queue import Queue
from cplane.worker.attempt import Attempt
from cplane.worker.catalog import Catalog
from cplane.worker.leases import LeaseKeeper
from cplane.worker.outcome import Outcome
from cplane.worker.reconciler import Reconciler
from cplane.worker.runnable import Runnable, TransientJob
from cplane.worker.runner import Runner
from cplane.worker.slots import Reservation
from cplane.worker.starter import Starter

UNKNOWN_JOB_DELAY_S = 15.0
"""How long a job is postponed that this worker does not know; another worker may know it."""

UNLIMITED = PerHost()
"""The limits of the host, for a job that needs a browser session alone."""

log = structlog.get_logger("cplane")


@dataclass(slots=True)
class Sorted:
    """The leases of one claim, by what is to be done with them."""

    reserved: Reservation
    """A slot for each."""
    trusted_until: float
    """When trust in them ends, in monotonic seconds."""
    began_ms: int
    """This machine's clock, for kept results."""
    records: dict[UUID, Lease] = field(default_factory=dict[UUID, Lease])
    """Records to start."""
    unrecorded: list[Attempt] = field(default_factory=list[Attempt])
    """Jobs without a record, ready to run."""
    ended: list[tuple[Attempt, Outcome]] = field(default_factory=list[tuple[Attempt, Outcome]])
    """Jobs without a record that are not run any more, with their outcomes."""
    requests: list[LimitRequest] = field(default_factory=list[LimitRequest])
    """Jobs that need a slot of their host or session first."""
    refused: list[Ack] = field(default_factory=list[Ack])
    """What cannot be run here."""


class Triage:
    """Takes the claims of one queue.

    Args:
        queue_name: the queue.
        queue: where refused leases are acknowledged.
        dead_letters: where malformed ids go.
        limiter: grants slots of hosts and sessions.
        per_host: the limits of jobs that declare none.
        catalog: what this worker can run.
        lease_keeper: says how long leases are trusted.
        starter: starts records.
        runner: runs attempts.
        reconciler: schedules again what Redis lost.
    """

    def __init__(
        self,
        queue_name: str,
        *,
        queue: Queue,
        dead_letters: DeadLetterStream,
        limiter: Limiter,
        per_host: PerHost | None,
        catalog: Catalog,
        lease_keeper: LeaseKeeper,
        starter: Starter,
        runner: Runner,
        reconciler: Reconciler,
    ) -> None:
        self._queue_name = queue_name
        self._queue = queue
        self._dead_letters = dead_letters
        self._limiter = limiter
        self._per_host = per_host
        self._catalog = catalog
        self._lease_keeper = lease_keeper
        self._starter = starter
        self._runner = runner
        self._reconciler = reconciler

    async def process(self, claim: Claim, sent: float, reserved: Reservation) -> None:
        """Start what can be started, and send the rest back.

        Args:
            claim: what was claimed.
            sent: when the claim was sent, in monotonic seconds.
            reserved: a slot for each lease of the claim.

        Raises:
            InfrastructureError, SchemaMismatch: what could not be started comes back when its lease has ended.
        """
        with reserved:
            sorted_ = self._sort(claim.leases, sent, reserved)
            reserved.release(len(sorted_.refused))
            self._run(sorted_)
            unavailable: QueueUnavailable | None = None
            try:
                if sorted_.requests:
                    unavailable = await self._acquire_limits(sorted_, sent, reserved)
                if sorted_.records:
                    await self._starter.start(sorted_.records, sent, reserved)
            finally:  # what is refused is requeued even during an outage of Postgres
                if sorted_.refused:
                    await self._queue.ack(sorted_.refused)
            if claim.malformed:
                await self._add_dead_letters(claim.malformed)
            if claim.missing:
                await self._reconciler.restore(claim.missing)
            if unavailable is not None:
                raise unavailable

    def _sort(self, leases: Sequence[Lease], sent: float, reserved: Reservation) -> Sorted:
        """Decide what is to be done with leases; nothing is sent yet. Leases that may have ended are left out."""
        sorted_ = Sorted(reserved, self._lease_keeper.trusted_until(sent), now_ms())
        if leases and time.monotonic() >= sorted_.trusted_until:
            log.warning("claim_too_slow", count=len(leases), hint="the leases may have ended; the jobs are not begun")
            return sorted_
        for lease in leases:
            self._sort_one(lease, sorted_)
        return sorted_

    def _sort_one(self, lease: Lease, into: Sorted) -> None:
        try:
            _check_text(lease.id)
            envelope = decode_envelope(lease.payload)
            job = self._catalog.recorded(envelope.f) if envelope.record else self._catalog.unrecorded(envelope.f)
            record_id = _record_id(lease.id) if envelope.record else None
        except UnknownJob as error:
            log.warning("unknown_job_postponed", id=lease.id[:100], reason=str(error))
            into.refused.append(Ack(lease, Disposition.POSTPONE, int(UNKNOWN_JOB_DELAY_S * 1000)))
            return
        except ValueError as error:
            log.error("dead_letter", id=lease.id[:100], reason=str(error))
            into.refused.append(Ack(lease, Disposition.DEAD_LETTER, text=str(error).encode()))
            return
        if (payload := _payload_of_suspect(envelope, lease, job)) is not None:
            uncounted = msgspec.structs.replace(lease, tries=0)  # this try has not begun
            into.refused.append(Ack(uncounted, Disposition.QUARANTINE, text=payload))
        elif (request := self._limit_request(envelope, lease, job)) is not None:
            into.requests.append(request)
        elif record_id is not None:
            into.records[record_id] = lease
        else:
            self._add_unrecorded(envelope, lease, job, into)

    def _add_unrecorded(self, envelope: Envelope, lease: Lease, job: Runnable, into: Sorted) -> None:
        attempt = Attempt.of_envelope(
            envelope,
            lease,
            job,
            slot=into.reserved.take(),
            runner=self._runner,
            trusted_until=into.trusted_until,
            began_ms=into.began_ms,
        )
        if lease.abort_wanted:
            into.ended.append((attempt, Outcome(state=State.CANCELLED, attempt_state=AttemptState.CANCELLED)))
        elif (outcome := job.spent(attempt)) is not None:
            into.ended.append((attempt, outcome))
        else:
            into.unrecorded.append(attempt)

    def _limit_request(self, envelope: Envelope, lease: Lease, job: Runnable) -> LimitRequest | None:
        """What a lease must acquire first; None: nothing, or it holds it already."""
        if not envelope.limit_keys or lease.limit_keys or lease.abort_wanted:
            return None
        limits = job.limits(self._per_host)
        host = host_among(envelope.limit_keys) if limits is not None else None
        limit_keys = limit_keys_of(session_among(envelope.limit_keys), host)
        return LimitRequest(lease, limit_keys, limits or UNLIMITED) if limit_keys else None

    def _run(self, sorted_: Sorted) -> None:
        """Run what needs no start, and finish what is not run any more."""
        for attempt, outcome in sorted_.ended:
            self._runner.finish_unstarted(attempt, outcome)
        self._runner.start(sorted_.unrecorded)

    async def _acquire_limits(self, sorted_: Sorted, sent: float, reserved: Reservation) -> QueueUnavailable | None:
        """Acquire what jobs need of hosts and sessions. Those that get it go on; the others are queued again, and hold nothing.

        Returns:
            Why Redis could not be asked, or None. The jobs then come back when their leases have ended; those without limits go on.
        """
        requests, granted = sorted_.requests, list[LimitRequest]()
        unavailable: QueueUnavailable | None = None
        try:
            results = await self._limiter.acquire(self._queue_name, requests)
            granted = [request for request, result in zip(requests, results, strict=True) if result == GRANTED]
        except QueueUnavailable as error:
            unavailable = error
        finally:
            reserved.put_back(len(requests) - len(granted))
        if len(granted) < len(requests):
            log.debug("jobs_wait_for_limits", queue=self._queue_name, count=len(requests) - len(granted))
        limited = [msgspec.structs.replace(request.lease, limit_keys=request.limit_keys) for request in granted]
        admitted = self._sort(limited, sent, reserved)
        self._run(admitted)
        sorted_.records.update(admitted.records)
        return unavailable

    async def _add_dead_letters(self, malformed: Sequence[tuple[Id, str, bytes]]) -> None:
        log.error("dead_letters", reason="keys of a foreign type", ids=[lost.id[:100] for lost, *_ in malformed[:10]])
        await self._dead_letters.add(malformed)


def _payload_of_suspect(envelope: Envelope, lease: Lease, job: Runnable) -> bytes | None:
    """Return the next payload of a transient job that must run alone and does not; None: it may run.

    The tries that Redis counted and that did not end otherwise are crashes of workers. Those that the job did not cause, as
    far as that is known, are forgiven: it was not alone.
    """
    if lease.tries <= ALONE_AFTER or lease.queue == quarantine_of(lease.queue) or not isinstance(job, TransientJob):
        return None
    crashes = lease.tries - 1 - envelope.failures - envelope.interruptions
    return next_envelope(envelope, suspicions=crashes - envelope.crashes) if crashes >= ALONE_AFTER else None


def _check_text(id_: str) -> None:
    """Raise ValueError for an id that no result or event could name."""
    if not id_.isascii() and any("\ud800" <= letter <= "\udfff" for letter in id_):
        raise ValueError("its id is not UTF-8")


def _record_id(id_: str) -> UUID:
    try:
        record_id = UUID(id_)
    except ValueError:
        record_id = None
    if record_id is None or str(record_id) != id_:
        raise ValueError(f"'{id_[:100]}' is not the id of a record")
    return record_id
