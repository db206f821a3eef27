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

from cplane.errors import DatabaseUnavailable, OutsideError, QueueUnavailable, SchemaMismatch, UnknownJob
from cplane.jobs.definition import AnyJob
from cplane.jobs.per_host import PerHost, host_among, places_of, session_among
from cplane.jobs.registry import Registry
from cplane.jobs.states import MAX_CRASHES, AttemptState, Cause, State
from cplane.postgres.rows import Error, Finish, Started
from cplane.postgres.store import Store
from cplane.redis.envelope import Envelope, decode_envelope, now_ms
from cplane.redis.limiter import GRANTED, Ask, Hosts
from cplane.redis.messages import Action, Claim, Grant, Id, Return
from cplane.redis.queue import Queue
from cplane.runtime.cancellation import first
from cplane.worker.arq_functions import PlainFunction
from cplane.worker.attempt import Attempt, Tools
from cplane.worker.browser_pool import Pages
from cplane.worker.leases import Leases
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


class Allowance:
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
    hosts: Hosts
    per_host: PerHost | None
    """The limits of jobs that say nothing of their own."""
    jobs: Registry
    functions: Mapping[str, PlainFunction]
    leases: Leases
    pages: Pages
    tools: Tools
    lease_s: float
    burst: bool
    allowance: Allowance
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
            except (OutsideError, SchemaMismatch) as error:
                log.warning("jobs cannot be claimed; trying again", queue=self._queue, reason=str(error))
                await first(asyncio.sleep(pause_s), self._shared.stopping.wait())
                pause_s = min(pause_s * 2, LONGEST_PAUSE_S)
        await self._poller.close()
        try:
            await self._started()
        except (OutsideError, SchemaMismatch) as error:
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
            pages = shared.pages.free - sum(attempt.waits_for_page for attempt in shared.leases)
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
        if shared.allowance.spent:
            await self._started()
            shared.stopping.set()
            return
        sent, room = time.monotonic(), shared.allowance.take(room)
        granted = 0
        try:
            claim = await self._poller.claim(room)
            granted = len(claim.grants)
        finally:
            shared.allowance.settle(room, granted)
        brought = bool(claim.grants or claim.missing or claim.odd)
        if brought:
            self._running += len(claim.grants)
            self._unrecorded += len(claim.grants)
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
        sorted_ = _Sorted(shared.leases.trusted_until(sent), now_ms())
        if self._in_time(sent, len(claim.grants)):
            for grant in claim.grants:
                self._sort(grant, sorted_)
        self._begin_sorted(sorted_)
        try:
            unasked = await self._ask_hosts(sorted_, sent) if sorted_.asks else None
            if sorted_.records:
                await self._start(sorted_.records, sent)
        finally:  # what is refused goes back even while Postgres is away
            if sorted_.refused:
                await shared.queue.finish(sorted_.refused)
        if claim.odd:
            await self._set_aside(claim.odd)
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
        """Ask the hosts whose time jobs take: those that have their turn go on, the others are back in the queue, and hold nothing.

        Answers why it could not be asked: the jobs come back when their leases have ended, those without a host go on.
        """
        asks, sorted_.asks = sorted_.asks, []
        granted: list[Ask] = []
        unasked: QueueUnavailable | None = None
        try:
            answers = await self._shared.hosts.ask(self._queue, asks)
            granted = [ask for ask, answer in zip(asks, answers, strict=True) if answer == GRANTED]
        except QueueUnavailable as error:
            unasked = error
        finally:
            for _ in range(len(asks) - len(granted)):
                self._give_up()
            self._shared.allowance.put_back(len(asks) - len(granted))
        if len(granted) < len(asks):
            log.debug("jobs wait for their hosts", queue=self._queue, count=len(asks) - len(granted))
        if self._in_time(sent, len(granted)):
            for ask in granted:
                self._sort(msgspec.structs.replace(ask.grant, host=ask.host), sorted_)
            self._begin_sorted(sorted_)
        return unasked

    def _in_time(self, sent: float, count: int) -> bool:
        """Whether leases asked for at `sent` can still be trusted; if not, the grants are given up: others may have begun them by now."""
        if not count or time.monotonic() < self._shared.leases.trusted_until(sent):
            return True
        log.warning("jobs were claimed so slowly that their leases may have ended; they are not begun", count=count)
        for _ in range(count):
            self._give_up()
        return False

    def _give_up(self) -> None:
        """A grant that does not become an attempt gives its room back."""
        self.leave()
        self.recorded()

    def _sort(self, grant: Grant, into: "_Sorted") -> None:
        """What a grant is: a record to start, a transient job to begin, or something that goes back. Nothing is deleted unseen."""
        shared = self._shared
        try:
            _check_text(grant.id)
            envelope = decode_envelope(grant.payload)
            if envelope.record:
                recorded, record_id = shared.jobs.get(envelope.f), _record_id(grant.id)
                if not self._must_ask(envelope, grant, recorded, into):
                    into.records[record_id] = grant
                return
            job = shared.functions.get(envelope.f) or shared.jobs.get(envelope.f)
        except UnknownJob as error:
            log.warning("a queued job cannot be run here; it goes back", id=grant.id[:100], reason=str(error))
            into.refused.append(Return(grant, Action.POSTPONE, int(UNKNOWN_JOB_S * 1000)))
            return
        except ValueError as error:
            log.error("something in the queue is no job of ours; it is set aside", id=grant.id[:100], reason=str(error))
            into.refused.append(Return(grant, Action.ASIDE, text=str(error).encode()))
            return
        if self._must_ask(envelope, grant, job, into):
            return
        attempt = Attempt.of_envelope(
            envelope, grant, job, shared.tools, trusted_until=into.trusted_until, began_ms=into.now_ms
        )
        shared.leases.add(attempt)
        if (outcome := _spent(attempt, envelope)) is not None:
            attempt.seal()
            shared.tools.settle(attempt, outcome)
        else:
            into.transient.append(attempt)

    def _must_ask(self, envelope: Envelope, grant: Grant, job: AnyJob | PlainFunction, into: "_Sorted") -> bool:
        """Whether it has to be asked for a place first; who has asked holds it."""
        if envelope.host is None or grant.host or grant.abort_wanted or isinstance(job, PlainFunction):
            return False
        limits = job.limits(self._shared.per_host)
        host = host_among(envelope.host) if limits is not None else None
        places = places_of(session_among(envelope.host), host)
        if places is not None:
            into.asks.append(Ask(grant, places, limits or UNLIMITED))
        return places is not None

    async def _start(self, grants: dict[UUID, Grant], sent: float) -> None:
        """Start records and begin each that is ours; Redis is told of the others."""
        shared = self._shared
        try:
            started = await self._start_records(grants)
        except BaseException:
            for _ in grants:
                self._give_up()
            raise
        if not self._in_time(sent, len(grants)):
            return
        trusted_until = shared.leases.trusted_until(sent)
        attempts: list[Attempt] = []
        unknown: list[Started] = []
        for record in started:
            job = shared.jobs.jobs.get(record.job)
            if job is None:
                unknown.append(record)
                continue
            attempt = Attempt.of_record(record, grants.pop(record.id), job, shared.tools, trusted_until)
            shared.leases.add(attempt)
            attempts.append(attempt)
        shared.begin(attempts)
        for _ in grants:
            self._give_up()
        if unknown:
            await self._hand_back(unknown)
        if grants:
            await shared.queue.finish(await self._settle(grants))

    async def _start_records(self, grants: Mapping[UUID, Grant]) -> list[Started]:
        """Start in Postgres; a lost reply is answered by asking again with the same token, until the leases are half over."""
        shared = self._shared
        until = time.monotonic() + shared.lease_s / 2
        token = next(iter(grants.values())).token  # all came with one claim
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                return await shared.store.start(shared.worker, list(grants), token, shared.lease_s)
            except (DatabaseUnavailable, SchemaMismatch):
                if time.monotonic() + pause_s > until or shared.stopping.is_set():
                    await self._release(grants.values())
                    raise
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, LONGEST_PAUSE_S)

    async def _release(self, grants: Iterable[Grant]) -> None:
        """Hand grants back to where they stood in the queue."""
        await self._shared.queue.finish([Return.release(grant) for grant in grants])

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

    async def _settle(self, grants: Mapping[UUID, Grant]) -> list[Return]:
        """What Redis is told of ids whose record could not be started: final ones leave it, the others come back when due."""
        standings = await self._shared.store.standing(list(grants))
        returns: list[Return] = []
        for record_id, grant in grants.items():
            standing = standings.get(record_id)
            if standing is None or standing.state.final:
                returns.append(Return(grant, Action.DONE))
            else:  # not due yet, or running elsewhere: a second after its lease has ended the reconciler has seen it
                wait_ms = standing.due_in_ms + (1000 if standing.state is State.RUNNING else 1)
                returns.append(Return(grant, Action.RETRY, wait_ms))
        return returns

    async def _set_aside(self, odd: Sequence[tuple[Id, str, bytes]]) -> None:
        log.error(
            "ids in the queue have keys of a foreign kind; they are set aside", ids=[i.id[:100] for i, *_ in odd[:10]]
        )
        await self._shared.queue.set_aside(odd)


class _Sorted:
    """What the grants of one claim are."""

    def __init__(self, trusted_until: float, now_ms: int) -> None:
        self.trusted_until = trusted_until
        self.now_ms = now_ms
        self.records: dict[UUID, Grant] = {}
        self.transient: list[Attempt] = []
        self.refused: list[Return] = []
        self.given_up = 0
        """How many of the refused gave up their room already."""
        self.asks: list[Ask] = []
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
    grant, job = attempt.grant, attempt.job
    if grant.abort_wanted:
        return Outcome(state=State.CANCELLED, attempt_state=AttemptState.CANCELLED)
    if isinstance(job, PlainFunction):
        if attempt.number <= job.max_tries:
            return None
        error = Error("JobExecutionFailed", f"max {job.max_tries} retries exceeded")
        return Outcome(state=State.FAILED, attempt_state=AttemptState.FAILED, error=error)
    crashes = grant.tries - 1 - envelope.failures - envelope.interruptions
    if crashes < MAX_CRASHES:
        return None
    error = Error("WorkerLost", f"its workers died or lost their leases ({crashes} of {MAX_CRASHES})")
    return Outcome(state=State.FAILED, attempt_state=AttemptState.LOST, error=error)
