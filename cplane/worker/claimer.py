"""Claiming: takes as many jobs of one queue as there is room for, starts their records, and hands each on as an attempt.

While one claim's records are started in Postgres the next claim is under way in Redis; a queue's room is claimed in two portions, so
that one runs while the other comes.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

import msgspec
import structlog

from cplane.errors import DatabaseUnavailable, InfrastructureError, QueueUnavailable, SchemaMismatch, UnknownJob
from cplane.jobs.definition import AnyJob
from cplane.jobs.per_host import PerHost, host_among, limit_keys_of, session_among
from cplane.jobs.registry import Registry
from cplane.jobs.states import MAX_CRASHES, AttemptState, Cause, State
from cplane.postgres.rows import Error, Finish, Started
from cplane.postgres.store import Store
from cplane.redis.dead_letters import DeadLetterStream
from cplane.redis.envelope import Envelope, decode_envelope, now_ms
from cplane.redis.limiter import GRANTED, Limiter, LimitRequest
from cplane.redis.messages import Ack, Claim, Disposition, Id, Lease
from cplane.redis.queue import Queue
from cplane.runtime.cancellation import first
from cplane.worker.arq_functions import PlainFunction
from cplane.worker.attempt import Attempt, Tools
from cplane.worker.browser_pool import Pages
from cplane.worker.leases import LeaseKeeper
from cplane.worker.outcome import Outcome
from cplane.worker.poller import Poller

UNKNOWN_JOB_S = 15.0
"""A job that this worker cannot run goes back for so long; another worker may know it."""

MOST_UNRECORDED = 1000
"""Outcomes of one queue that may wait to be recorded before claiming pauses."""

UNLIMITED = PerHost()
"""What is said of the host by a job that needs a browser session alone."""

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 5.0

log = structlog.get_logger("cplane")


class JobBudget:
    """How many jobs a burst worker may start (arq's `max_burst_jobs`); None: any number."""

    def __init__(self, most: int | None) -> None:
        self._most = most
        self._taken = 0
        self._started = 0

    @property
    def spent(self) -> bool:
        """Whether all were started."""
        return self._most is not None and self._started >= self._most

    def take(self, wanted: int) -> int:
        """How many of the wanted may be claimed."""
        allowed = wanted if self._most is None else max(0, min(wanted, self._most - self._taken))
        self._taken += allowed
        return allowed

    def put_back(self, number: int) -> None:
        """So many that came were not started after all."""
        self._taken -= number
        self._started -= number

    def settle(self, taken: int, started: int) -> None:
        """Of those that were taken so many came."""
        self._taken -= taken - started
        self._started += started


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """What the claimers of one worker share."""

    worker: str
    store: Store
    queue: Queue
    dead_letters: DeadLetterStream
    limiter: Limiter
    per_host: PerHost | None
    """The limits of jobs that say nothing of their own."""
    jobs: Registry
    functions: Mapping[str, PlainFunction]
    lease_keeper: LeaseKeeper
    pages: Pages
    tools: Tools
    lease_s: float
    burst: bool
    job_budget: JobBudget
    stopping: asyncio.Event
    begin: Callable[[Sequence[Attempt]], None]
    """Runs attempts; `Claimer.leave` is called when one is over, `Claimer.recorded` when its outcome is recorded."""
    restore: Callable[[Sequence[Id]], Awaitable[None]]
    """Schedules again what Redis lost."""
    idle: Callable[[], Awaitable[None]]
    """Called when a queue had nothing to claim."""


class Claimer:
    """One queue and its room: `concurrency` jobs at once, and for jobs with pages only as many as there are pages free."""

    def __init__(self, queue: str, concurrency: int, claims: Claims) -> None:
        self._queue = queue
        self._concurrency = concurrency
        self._portion = (concurrency + 1) // 2
        self._shared = claims
        self._running = 0
        self._unrecorded = 0
        self._left = asyncio.Event()
        self._starting: asyncio.Task[None] | None = None
        self._poller = Poller(
            claims.queue,
            queue,
            lease_s=claims.lease_s,
            stopping=claims.stopping,
            burst=claims.burst,
            # other queues want the same pages, a burst its allowance
            looks_first=claims.burst or claims.jobs.needs_pages(queue),
        )

    async def run(self) -> None:
        """Claim, start, repeat, until stopped; sleep while there is nothing. No outage ends it."""
        pause_s = FIRST_PAUSE_S
        while not self._shared.stopping.is_set():
            try:
                room = await self._wait_room()
                if room and not self._shared.stopping.is_set():
                    await self._claim(min(room, self._portion))
                pause_s = FIRST_PAUSE_S
            except (InfrastructureError, SchemaMismatch) as error:
                log.warning("jobs cannot be claimed; trying again", queue=self._queue, reason=str(error))
                await first(asyncio.sleep(pause_s), self._shared.stopping.wait())
                pause_s = min(pause_s * 2, LONGEST_PAUSE_S)
        await self._poller.close()
        try:
            await self._started()
        except (InfrastructureError, SchemaMismatch) as error:
            log.warning("the last claim could not be started", queue=self._queue, reason=str(error))

    def leave(self) -> None:
        """An attempt is over: there is room for another."""
        self._running -= 1
        if not self._left.is_set():
            self._left.set()

    def recorded(self) -> None:
        """The outcome of an attempt is recorded."""
        self._unrecorded -= 1
        if not self._left.is_set():
            self._left.set()

    async def _wait_room(self) -> int:
        """How many more jobs fit; waits until one does."""
        shared = self._shared
        while not shared.stopping.is_set():
            self._left.clear()
            room = min(self._concurrency - self._running, MOST_UNRECORDED + self._concurrency - self._unrecorded)
            if room > 0 and not shared.jobs.needs_pages(self._queue):
                return room
            pages = shared.pages.free - sum(attempt.waits_for_page for attempt in shared.lease_keeper)
            if min(room, pages) > 0:
                return min(room, pages)
            waiting = [self._left.wait(), shared.stopping.wait()]
            if room > 0 and shared.pages.free == 0:
                await first(*waiting, shared.pages.wait_free())
            else:
                await first(*waiting)
        return 0

    async def _claim(self, room: int) -> None:
        """One claim; its start goes on while the next claim is under way, but not while the one after it is."""
        shared = self._shared
        if shared.job_budget.spent:
            await self._started()
            shared.stopping.set()
            return
        sent, room = time.monotonic(), shared.job_budget.take(room)
        granted = 0
        try:
            claim = await self._poller.claim(room)
            granted = len(claim.leases)
        finally:
            shared.job_budget.settle(room, granted)
        brought = bool(claim.leases or claim.missing or claim.malformed)
        if brought:
            self._running += len(claim.leases)
            self._unrecorded += len(claim.leases)
            before, self._starting = self._starting, asyncio.create_task(
                self._take(claim, sent), name=f"start jobs of {self._queue}"
            )  # fmt: skip
            if before is not None:
                await before
        else:
            await self._started()
            await shared.idle()
        if claim.wait_s != 0:
            await self._poller.rest(claim.wait_s, brought=brought)
            if not self._poller.looks_first:
                await self._started()  # with nothing else to do, what would be sent now only delays it

    async def _started(self) -> None:
        """Wait until what was claimed before is started."""
        before, self._starting = self._starting, None
        if before is not None:
            await before

    async def _take(self, claim: Claim, sent: float) -> None:
        """Begin what was claimed: transient jobs at once, records when Postgres has started them. The others go back."""
        shared = self._shared
        sorted_ = _Sorted(shared.lease_keeper.trusted_until(sent), now_ms())
        if self._in_time(sent, len(claim.leases)):
            for lease in claim.leases:
                self._sort(lease, sorted_)
        self._begin_sorted(sorted_)
        try:
            unasked = await self._ask_hosts(sorted_, sent) if sorted_.asks else None
            if sorted_.records:
                await self._start(sorted_.records, sent)
        finally:  # what is refused goes back even while Postgres is away
            if sorted_.refused:
                await shared.queue.ack(sorted_.refused)
        if claim.malformed:
            await self._add_dead_letters(claim.malformed)
        if claim.missing:
            await shared.restore(claim.missing)
        if unasked is not None:
            raise unasked

    def _begin_sorted(self, sorted_: "_Sorted") -> None:
        """Begin transient jobs, which need no start; what is refused needs no room."""
        for _ in range(len(sorted_.refused) - sorted_.given_up):
            self._give_up()
        sorted_.given_up = len(sorted_.refused)
        self._shared.begin(sorted_.transient)
        sorted_.transient = []

    async def _ask_hosts(self, sorted_: "_Sorted", sent: float) -> QueueUnavailable | None:
        """LimitRequest the hosts whose time jobs take: those that have their turn go on, the others are back in the queue, and hold nothing.

        Answers why it could not be asked: the jobs come back when their leases have ended, those without a host go on.
        """
        asks, sorted_.asks = sorted_.asks, []
        granted: list[LimitRequest] = []
        unasked: QueueUnavailable | None = None
        try:
            answers = await self._shared.limiter.acquire(self._queue, asks)
            granted = [ask for ask, answer in zip(asks, answers, strict=True) if answer == GRANTED]
        except QueueUnavailable as error:
            unasked = error
        finally:
            for _ in range(len(asks) - len(granted)):
                self._give_up()
            self._shared.job_budget.put_back(len(asks) - len(granted))
        if len(granted) < len(asks):
            log.debug("jobs wait for their hosts", queue=self._queue, count=len(asks) - len(granted))
        if self._in_time(sent, len(granted)):
            for ask in granted:
                self._sort(msgspec.structs.replace(ask.lease, limit_keys=ask.limit_keys), sorted_)
            self._begin_sorted(sorted_)
        return unasked

    def _in_time(self, sent: float, count: int) -> bool:
        """Whether leases asked for at `sent` can still be trusted; if not, the leases are given up: others may have begun them by now."""
        if not count or time.monotonic() < self._shared.lease_keeper.trusted_until(sent):
            return True
        log.warning("jobs were claimed so slowly that their leases may have ended; they are not begun", count=count)
        for _ in range(count):
            self._give_up()
        return False

    def _give_up(self) -> None:
        """A lease that does not become an attempt gives its room back."""
        self.leave()
        self.recorded()

    def _sort(self, lease: Lease, into: "_Sorted") -> None:
        """What a lease is: a record to start, a transient job to begin, or something that goes back. Nothing is deleted unseen."""
        shared = self._shared
        try:
            _check_text(lease.id)
            envelope = decode_envelope(lease.payload)
            if envelope.record:
                recorded, record_id = shared.jobs.get(envelope.f), _record_id(lease.id)
                if not self._must_ask(envelope, lease, recorded, into):
                    into.records[record_id] = lease
                return
            job = shared.functions.get(envelope.f) or shared.jobs.get(envelope.f)
        except UnknownJob as error:
            log.warning("a queued job cannot be run here; it goes back", id=lease.id[:100], reason=str(error))
            into.refused.append(Ack(lease, Disposition.POSTPONE, int(UNKNOWN_JOB_S * 1000)))
            return
        except ValueError as error:
            log.error("something in the queue is no job of ours; it is set aside", id=lease.id[:100], reason=str(error))
            into.refused.append(Ack(lease, Disposition.DEAD_LETTER, text=str(error).encode()))
            return
        if self._must_ask(envelope, lease, job, into):
            return
        attempt = Attempt.of_envelope(
            envelope, lease, job, shared.tools, trusted_until=into.trusted_until, began_ms=into.now_ms
        )
        shared.lease_keeper.add(attempt)
        if (outcome := _spent(attempt, envelope)) is not None:
            attempt.seal()
            shared.tools.settle(attempt, outcome)
        else:
            into.transient.append(attempt)

    def _must_ask(self, envelope: Envelope, lease: Lease, job: AnyJob | PlainFunction, into: "_Sorted") -> bool:
        """Whether it has to be asked for a place first; who has asked holds it."""
        if not envelope.limit_keys or lease.limit_keys or lease.abort_wanted or isinstance(job, PlainFunction):
            return False
        limits = job.limits(self._shared.per_host)
        host = host_among(envelope.limit_keys) if limits is not None else None
        limit_keys = limit_keys_of(session_among(envelope.limit_keys), host)
        if limit_keys:
            into.asks.append(LimitRequest(lease, limit_keys, limits or UNLIMITED))
        return bool(limit_keys)

    async def _start(self, leases: dict[UUID, Lease], sent: float) -> None:
        """Start records and begin each that is ours; Redis is told of the others."""
        shared = self._shared
        try:
            started = await self._start_records(leases)
        except BaseException:
            for _ in leases:
                self._give_up()
            raise
        if not self._in_time(sent, len(leases)):
            return
        trusted_until = shared.lease_keeper.trusted_until(sent)
        attempts: list[Attempt] = []
        unknown: list[Started] = []
        for record in started:
            job = shared.jobs.jobs.get(record.job)
            if job is None:
                unknown.append(record)
                continue
            attempt = Attempt.of_record(record, leases.pop(record.id), job, shared.tools, trusted_until)
            shared.lease_keeper.add(attempt)
            attempts.append(attempt)
        shared.begin(attempts)
        for _ in leases:
            self._give_up()
        if unknown:
            await self._hand_back(unknown)
        if leases:
            await shared.queue.ack(await self._settle(leases))

    async def _start_records(self, leases: Mapping[UUID, Lease]) -> list[Started]:
        """Start in Postgres; a lost reply is answered by asking again with the same token, until the leases are half over."""
        shared = self._shared
        until = time.monotonic() + shared.lease_s / 2
        token = next(iter(leases.values())).token  # all came with one claim
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                return await shared.store.start(shared.worker, list(leases), token, shared.lease_s)
            except (DatabaseUnavailable, SchemaMismatch):
                if time.monotonic() + pause_s > until or shared.stopping.is_set():
                    await self._release(leases.values())
                    raise
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, LONGEST_PAUSE_S)

    async def _release(self, leases: Iterable[Lease]) -> None:
        """Hand leases back to where they stood in the queue."""
        await self._shared.queue.ack([Ack.release(lease) for lease in leases])

    async def _hand_back(self, unknown: Sequence[Started]) -> None:
        """A payload named a job we know, its record another that we do not: the record goes back, and Redis hears it below."""
        names = sorted({record.job for record in unknown})
        log.warning("started records cannot be run here; they go back", jobs=names)
        await self._shared.store.finish(
            [
                Finish(
                    id=record.id, attempt=record.attempt, token=record.token, state=State.QUEUED, delay_s=UNKNOWN_JOB_S,
                    attempt_state=AttemptState.RELEASED, cause=Cause.RELEASE,
                )
                for record in unknown
            ]
        )  # fmt: skip

    async def _settle(self, leases: Mapping[UUID, Lease]) -> list[Ack]:
        """What Redis is told of ids whose record could not be started: final ones leave it, the others come back when due."""
        standings = await self._shared.store.standing(list(leases))
        returns: list[Ack] = []
        for record_id, lease in leases.items():
            standing = standings.get(record_id)
            if standing is None or standing.state.final:
                returns.append(Ack(lease, Disposition.DONE))
            else:  # not due yet, or running elsewhere: a second after its lease has ended the reconciler has seen it
                wait_ms = standing.due_in_ms + (1000 if standing.state is State.RUNNING else 1)
                returns.append(Ack(lease, Disposition.RETRY, wait_ms))
        return returns

    async def _add_dead_letters(self, malformed: Sequence[tuple[Id, str, bytes]]) -> None:
        log.error(
            "ids in the queue have keys of a foreign kind; they are set aside",
            ids=[i.id[:100] for i, *_ in malformed[:10]],
        )
        await self._shared.dead_letters.add(malformed)


class _Sorted:
    """What the leases of one claim are."""

    def __init__(self, trusted_until: float, now_ms: int) -> None:
        self.trusted_until = trusted_until
        self.now_ms = now_ms
        self.records: dict[UUID, Lease] = {}
        self.transient: list[Attempt] = []
        self.refused: list[Ack] = []
        self.given_up = 0
        """How many of the refused gave up their room already."""
        self.asks: list[LimitRequest] = []
        """Jobs whose host is to be asked first."""


def _check_text(id_: str) -> None:
    """Raises ValueError for an id that no result or event could name."""
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


def _spent(attempt: Attempt, envelope: Envelope) -> Outcome | None:
    """What came of a transient job that is not run any more: it is cancelled, or its budget is spent."""
    lease, job = attempt.lease, attempt.job
    if lease.abort_wanted:
        return Outcome(state=State.CANCELLED, attempt_state=AttemptState.CANCELLED)
    if isinstance(job, PlainFunction):
        if attempt.number <= job.max_tries:
            return None
        error = Error("JobExecutionFailed", f"max {job.max_tries} retries exceeded")
        return Outcome(state=State.FAILED, attempt_state=AttemptState.FAILED, error=error)
    crashes = lease.tries - 1 - envelope.failures - envelope.interruptions
    if crashes < MAX_CRASHES:
        return None
    error = Error("WorkerLost", f"its workers died or lost their leases ({crashes} of {MAX_CRASHES})")
    return Outcome(state=State.FAILED, attempt_state=AttemptState.LOST, error=error)
