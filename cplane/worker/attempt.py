"""One run of one job: open what it asks for, run it under its deadline, decide once what came of it."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Self, cast
from uuid import NAMESPACE_OID, UUID, uuid5

import msgspec
import structlog

from cplane.artifacts import ArtifactStore
from cplane.browser import BrowserPool, PageLease, PageOptions
from cplane.errors import (
    BrowserGone,
    CplaneError,
    InfrastructureError,
    InvalidArguments,
    JobTimeout,
    QueueUnavailable,
    SessionBusy,
    TooManyRequests,
)
from cplane.jobs import retry_after
from cplane.jobs.context import Artifact, Context, Progress
from cplane.jobs.definition import AnyJob, Resources
from cplane.jobs.per_host import host_among
from cplane.jobs.states import AttemptState, Cause, State
from cplane.postgres.rows import Fence, Finish, Started
from cplane.postgres.store import Store
from cplane.postgres.transaction import JobTransaction
from cplane.redis.envelope import Envelope
from cplane.redis.events import Event
from cplane.redis.limiter import Limiter
from cplane.redis.messages import Lease
from cplane.sessions.store import HOLD_S, Held, Sessions
from cplane.worker.arq_functions import PlainFunction
from cplane.worker.evidence import EvidenceStore, TraceSampler
from cplane.worker.outcome import Outcome, cooldown_s, decide

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

CLEANUP_S = 5.0
"""What a job's own `finally` may take after it was stopped; then it is left behind and its outcome recorded."""

PROGRESS_EVERY_S = 0.1
"""At most so often is progress told; the last of it is on the record."""

EXPLAINED = frozenset({AttemptState.FAILED, AttemptState.TIMED_OUT, AttemptState.INTERRUPTED})
"""Ends of an attempt of which evidence is kept."""


log: "FilteringBoundLogger" = structlog.get_logger("cplane")


class Stop(StrEnum):
    """Why a worker stops an attempt."""

    CANCEL = "cancel"
    """The record's owner wants it."""
    RELEASE = "release"
    """The worker is going; another may run it."""
    TIMEOUT = "timeout"
    """It ran longer than it may."""
    PAGE_LOST = "page lost"
    """Its page or browser died under it."""
    LEASE_LOST = "lease lost"
    """It may be running elsewhere: nothing it does counts any more."""


@dataclass(frozen=True, slots=True)
class Tools:
    """What attempts of one worker share."""

    store: Store
    artifacts: ArtifactStore
    threads: Executor
    tell: Callable[[Event], object]
    pool: Callable[[], BrowserPool]
    """Raises BrowserError while there is no browser."""
    sessions: Sessions
    evidence: EvidenceStore
    trace_sampler: TraceSampler
    vacate: "Callable[[Attempt], None]"
    """Makes room for another job, once an attempt has ended that still has something to keep."""
    limiter: Limiter
    respects_retry_after: bool
    settle: "Callable[[Attempt, Outcome | None], None]"
    """Takes what came of an attempt, once; None: its lease was lost, and nothing it did counts."""
    ctx: dict[Any, Any]
    """What plain arq functions share."""


AnyFence = Fence | tuple[str, str]
"""Of a record its id and the attempt; of a transient job its id and the token of its lease, which the other leases of the claim have too."""


class Attempt(msgspec.Struct, eq=False):
    """A granted job on this worker: its fence, its trust in its lease, and its task."""

    lease: Lease
    job: AnyJob | PlainFunction
    tools: Tools
    trusted_until: float
    """Monotonic seconds: past it the lease may be someone else's, and the worker stops the attempt itself."""
    fence: AnyFence
    """What sets this attempt apart from every other."""
    number: int
    args: bytes | Envelope
    """The arguments: JSON from the record, or the envelope of a transient job."""
    record_id: UUID | None
    """None: a transient job."""
    failures: int
    interruptions: int
    began_ms: int
    waits_for_page: bool
    progress: Progress | None = None
    progress_told: bool = True
    stopped: Stop | None = None
    ended: bool = False
    """The job's own code has ended; what came of it is being decided, and that is not interrupted."""
    over: bool = False
    """The job has ended; its outcome is being recorded, and nothing stops it any more."""
    task: "asyncio.Task[None] | None" = None
    page_lease: PageLease | None = None
    session: Held | None = None
    """The browser session it holds; the hold ends with the attempt."""
    transaction: JobTransaction | None = None
    bound_log: Any = None
    progress_due: float = 0.0
    keeps_trace: bool = False
    """Whether the trace of a success is kept, too."""
    vacated: bool = False
    """There is room for another already."""
    timers: list[asyncio.TimerHandle] = []

    @classmethod
    def of_record(cls, started: Started, lease: Lease, job: AnyJob, tools: Tools, trusted_until: float) -> Self:
        """The attempt of a record that has been started."""
        return cls(
            lease, job, tools, trusted_until, (started.id, started.attempt), started.attempt, started.args_json,
            started.id, started.failures, started.interruptions, 0, job.needs_page,
        )  # fmt: skip

    @classmethod
    def of_envelope(
        cls,
        envelope: Envelope,
        lease: Lease,
        job: AnyJob | PlainFunction,
        tools: Tools,
        *,
        trusted_until: float,
        began_ms: int,
    ) -> Self:
        """The attempt of a transient job."""
        return cls(
            lease, job, tools, trusted_until, (lease.id, lease.token), max(lease.tries, envelope.t or 1), envelope,
            None, envelope.failures, envelope.interruptions, began_ms, job.needs_page,
        )  # fmt: skip

    @property
    def log(self) -> "FilteringBoundLogger":
        """A log that names the attempt."""
        if self.bound_log is None:
            self.bound_log = log.bind(record=self.lease.id, job=self.job.name, attempt=self.number)
        return cast("FilteringBoundLogger", self.bound_log)

    @property
    def uuid(self) -> UUID:
        """The id as a UUID: ids of arq's clients may be any text."""
        if self.record_id is not None:
            return self.record_id
        try:
            return UUID(self.lease.id)
        except ValueError:
            return uuid5(NAMESPACE_OID, self.lease.id)

    def arm(self) -> None:
        """The deadline begins. A job that has ended already needs none, and waiting for a page is not run time."""
        if not self.over and not self.waits_for_page and not self.timers:
            self.timers.append(asyncio.get_running_loop().call_later(self.job.timeout_s, self.stop, Stop.TIMEOUT))

    def stop(self, why: Stop) -> None:
        """Stop the run; the first reason stands, but a lost lease outranks every other.

        The job's own `finally` gets CLEANUP_S; a job that ignores that it was stopped is left behind after it.
        """
        if self.over:
            return
        first = self.stopped is None
        if first or why is Stop.LEASE_LOST:
            self.stopped = why
        if first and self.task is not None and not self.ended:
            self.task.cancel()
            self.timers.append(asyncio.get_running_loop().call_later(CLEANUP_S, self._abandon))

    def seal(self) -> bool:
        """From now on nothing stops the attempt; answers whether that is news."""
        if self.over:
            return False
        self.over = True
        for timer in self.timers:
            timer.cancel()
        return True

    def _abandon(self) -> None:
        """What came of a job that ignores that it was stopped is decided without it."""
        if not self.seal():
            return
        self.log.error("the job ignores that it was stopped and is left behind", after_s=CLEANUP_S)
        if self.page_lease is not None:
            self.page_lease.release()
        if self.task is not None:
            _left_behind.add(self.task)
            self.task.add_done_callback(_left_behind.discard)
            self.task.cancel()
        self.tools.settle(self, stopped_outcome(self))

    def decide(self, error: BaseException) -> Outcome:
        """What an error means for it."""
        return decide(error, self.job, number=self.number, failures=self.failures, interruptions=self.interruptions)

    def note(self, progress: Progress) -> None:
        """Keep progress, and tell it unless that happened a moment ago."""
        self.progress, self.progress_told = progress, False
        if (now := time.monotonic()) >= self.progress_due:
            self.progress_due = now + PROGRESS_EVERY_S
            data = {"done": progress.done, "total": progress.total, "note": progress.note}
            self.tools.tell(Event(self.uuid, State.RUNNING, self.number, data))


_left_behind: set[asyncio.Task[None]] = set()
"""Tasks whose job ignored that it was stopped, until they end: asyncio itself would not keep them."""


async def run(attempt: Attempt) -> None:
    """The attempt's task: perform, commit what the job wrote, hand over what came of it. What was opened is closed."""
    try:
        outcome = await _perform(attempt)
        if not attempt.seal():
            return  # it was left behind, and something was decided without it
        await _keep_evidence(attempt, outcome)
        if attempt.session is not None:
            outcome = await _keep_session(attempt, attempt.session, outcome)
        if attempt.transaction is not None and attempt.transaction.begun:
            outcome = await _commit(attempt, attempt.transaction, outcome)
        attempt.tools.settle(attempt, outcome)
    except Exception as error:
        attempt.log.error("the outcome of the attempt is unknown; its lease ends by itself", exc_info=error)
        attempt.tools.settle(attempt, None)
    finally:
        if attempt.page_lease is not None:
            attempt.page_lease.release()
        if attempt.transaction is not None:
            await attempt.transaction.rollback()


async def _perform(attempt: Attempt) -> Outcome | None:
    """Run the job and decide what came of it. Errors of the job end here; only the loss of the lease is no outcome."""
    job, tools = attempt.job, attempt.tools
    try:
        if attempt.stopped:
            raise asyncio.CancelledError
        if isinstance(job, PlainFunction):
            return _succeeded(attempt, value=await job.call(attempt.args, attempt.lease, attempt.number, tools.ctx))
        if host_among(attempt.lease.limit_keys):
            retry_after.respected.set(tools.respects_retry_after)
        args = attempt.args
        arguments = job.decode(args) if isinstance(args, bytes) else job.decode_call(args.a, args.k)
        resources = await _open(attempt, job, arguments) if job.signature.injected else NOTHING
        if attempt.stopped:  # a cancellation can get lost on the way (see endings.py)
            raise asyncio.CancelledError
        result = await job.call(arguments, resources, tools.threads)
        if attempt.page_lease is not None:
            attempt.page_lease.ended_well = True
        return _succeeded(attempt, result_json=job.encode_result(result))
    except GeneratorExit:  # the loop is closed under the job: there is nobody left to tell
        raise
    except BaseException as error:
        attempt.ended = True
        await _absorb_cancels()
        if attempt.stopped:
            return stopped_outcome(attempt)
        cause = await _cause(attempt, error)
        if isinstance(cause, TooManyRequests):
            await _cool_down(attempt, cooldown_s(cause, attempt.interruptions))
        return attempt.decide(cause)


async def _absorb_cancels() -> None:
    """Cancellations of the job's run end with it: what follows must happen."""
    task = asyncio.current_task()
    if task is None or not task.cancelling():
        return
    with suppress(asyncio.CancelledError):
        await asyncio.sleep(0)
    while task.uncancel():
        pass


def _succeeded(attempt: Attempt, *, result_json: bytes | None = None, value: object = None) -> Outcome | None:
    if attempt.stopped and attempt.stopped is not Stop.RELEASE:
        return stopped_outcome(attempt)
    if result_json == b"null" and value is None:
        return _NOTHING_ACK_RESULTS
    return Outcome(state=State.SUCCEEDED, attempt_state=AttemptState.SUCCEEDED, result_json=result_json, value=value)


async def _keep_evidence(attempt: Attempt, outcome: Outcome | None) -> None:
    """What the page of a failed job looked like. Room and page are the next job's already while it is collected."""
    page_lease, tools, record_id = attempt.page_lease, attempt.tools, attempt.record_id
    if page_lease is None or record_id is None or outcome is None:
        return
    within_s = attempt.trusted_until - time.monotonic() - 1.0
    if outcome.error is not None and outcome.attempt_state in EXPLAINED and outcome.error.type != "TooManyRequests":
        if outcome.attempt_state is not AttemptState.INTERRUPTED:
            tools.trace_sampler.note(attempt.job.name)
        if page_lease.yield_slot():
            tools.vacate(attempt)
        told = f"{outcome.error.type}: {outcome.error.message}"
        await tools.evidence.keep(page_lease, record_id, attempt.number, error=told, within_s=within_s)
    elif attempt.keeps_trace and page_lease.traced:
        await tools.evidence.keep(page_lease, record_id, attempt.number, error=None, within_s=within_s)


async def _keep_session(attempt: Attempt, held: Held, outcome: Outcome | None) -> Outcome | None:
    """What a job that succeeded leaves in its browser session is there for the next that holds it."""
    if outcome is None or outcome.state is not State.SUCCEEDED or attempt.page_lease is None:
        return outcome
    try:
        if await attempt.tools.sessions.save(held, await attempt.page_lease.storage_state()):
            return outcome
    except CplaneError as error:
        return attempt.decide(error)
    attempt.log.warning("the browser session was no longer this attempt's; what it left there is not kept")
    return None


async def _commit(attempt: Attempt, transaction: JobTransaction, outcome: Outcome | None) -> Outcome | None:
    """What the job wrote commits with its success, or not at all."""
    if outcome is None or outcome.state is not State.SUCCEEDED:
        return outcome
    try:
        owned = await transaction.commit(finish_of(attempt, outcome) if attempt.record_id is not None else None)
    except InfrastructureError as error:  # if it did commit, the record refuses to be queued again
        return attempt.decide(error)
    if not owned:
        attempt.log.warning("the record was no longer this attempt's; its writes are rolled back")
        return None
    return msgspec.structs.replace(outcome, recorded=attempt.record_id is not None)


def stopped_outcome(attempt: Attempt) -> Outcome | None:
    """What it means that an attempt was stopped."""
    match attempt.stopped:
        case Stop.CANCEL:
            return Outcome(state=State.CANCELLED, attempt_state=AttemptState.CANCELLED)
        case Stop.RELEASE:
            return Outcome(state=State.QUEUED, attempt_state=AttemptState.RELEASED, cause=Cause.RELEASE)
        case Stop.TIMEOUT:
            name, timeout_s = attempt.job.name, attempt.job.timeout_s
            error: BaseException = JobTimeout(
                f"'{name}' ran longer than {timeout_s:g} s", hint="raise it with @job(timeout=…)"
            )
            return attempt.decide(error)
        case Stop.PAGE_LOST:
            return attempt.decide(
                attempt.page_lease.loss
                if attempt.page_lease and attempt.page_lease.loss
                else BrowserGone("the page was lost")
            )
        case _:
            return None


async def _cool_down(attempt: Attempt, seconds: float) -> bool:
    """Leave the host of the job alone, for all workers; answers whether it has one, and Redis was told."""
    host = host_among(attempt.lease.limit_keys)
    if host is None:
        return False
    try:
        lasts_s = await attempt.tools.limiter.cool_down(host, seconds)
    except QueueUnavailable as error:
        attempt.log.warning("Redis could not be told to leave a host alone", host=host, reason=str(error))
        return False
    attempt.log.warning("the host is left alone for a while", host=host, lasts_s=lasts_s)
    return True


def finish_of(attempt: Attempt, outcome: Outcome) -> Finish:
    """What to record."""
    return Finish(
        id=cast("UUID", attempt.record_id),
        attempt=attempt.number,
        token=attempt.lease.token,
        state=outcome.state,
        attempt_state=outcome.attempt_state,
        result_json=outcome.result_json,
        error=outcome.error,
        delay_s=outcome.delay_s,
        cause=outcome.cause,
        failures=outcome.failures,
        interruptions=outcome.interruptions,
        progress=attempt.progress,
    )


async def _open(attempt: Attempt, job: AnyJob, arguments: Mapping[str, Any]) -> Resources:
    """What the job asks for by type. Waiting for a page is not run time: the deadline begins when it is there."""
    tools = attempt.tools
    attempt.transaction = transaction = JobTransaction(tools.store)
    if job.needs_page:
        try:
            options = _traced(attempt, PageOptions.read(job.page_options(arguments)))
            attempt.session = await _hold_session(attempt, options)
            state = attempt.session.storage_state if attempt.session is not None else None
            attempt.page_lease = await tools.pool().acquire_page(options, scope=job.name, storage_state=state)
        finally:
            attempt.waits_for_page = False
        attempt.page_lease.broken.add_done_callback(lambda _: attempt.stop(Stop.PAGE_LOST))
        attempt.arm()
    return Resources(
        context=_context(attempt, transaction),
        page=attempt.page_lease and attempt.page_lease.page,
        browser_context=attempt.page_lease and attempt.page_lease.context,
        session=await transaction.begin() if job.signature.wants("session") else None,
    )


def _traced(attempt: Attempt, options: PageOptions) -> PageOptions:
    """The options with what is to be recorded of this run; of a job that keeps no files, nothing."""
    trace_sampler = attempt.tools.trace_sampler
    attempt.keeps_trace = trace_sampler.wants(options.trace) == "on"
    trace = "off" if attempt.record_id is None else trace_sampler.trace(options.trace, attempt.job.name, attempt.number)
    return options.model_copy(update={"trace": trace})


async def _hold_session(attempt: Attempt, options: PageOptions) -> Held | None:
    """The session that the page options name; one that another job holds is waited for without a page."""
    if options.session is None:
        return None
    if attempt.record_id is None:
        raise InvalidArguments("a job without a record cannot hold a browser session", hint="leave out record=False")
    hold_s = max(HOLD_S, 2 * attempt.job.timeout_s)
    held = await attempt.tools.sessions.acquire(options.session, attempt.record_id, attempt.number, hold_s=hold_s)
    if held is None:
        raise SessionBusy(f"another job holds the browser session '{options.session}'")
    return held


async def _cause(attempt: Attempt, error: BaseException) -> BaseException:
    """What really happened when the job raised `error`: the loss of its page or connection, or the error itself."""
    cause = error
    if isinstance(error, Exception):
        if attempt.transaction is not None:
            cause = attempt.transaction.cause(error)
        if attempt.page_lease is not None:
            cause = await attempt.page_lease.cause(error)
    if cause is not error:
        cause.__cause__ = error
    return cause


def _context(attempt: Attempt, transaction: JobTransaction) -> Context:
    tools, record_id = attempt.tools, attempt.record_id

    async def cool_down(seconds: float) -> bool:
        return await _cool_down(attempt, seconds)

    async def tell_progress(progress: Progress) -> None:
        attempt.note(progress)

    async def keep_artifact(name: str, data: bytes | AsyncIterator[bytes], media_type: str | None) -> Artifact:
        if record_id is None:
            raise InvalidArguments("a job without a record keeps no files", hint="leave out record=False")
        artifact, path = await tools.artifacts.put(record_id, attempt.number, name, data, media_type)
        await tools.store.add_artifact(record_id, attempt.number, artifact, path)
        return artifact

    async def read_artifact(job: UUID, name: str, max_bytes: int) -> tuple[Artifact, bytes]:
        found = await tools.store.artifact(job, name)
        if found.size > max_bytes:
            raise InvalidArguments(f"'{name}' has {found.size:,} bytes, more than {max_bytes:,}")
        async with tools.artifacts.open(found.path) as chunks:
            data = b"".join([chunk async for chunk in chunks])
        return Artifact(name=name, media_type=found.media_type, size=found.size, sha256=found.sha256), data

    return Context(
        id=attempt.uuid,
        key=attempt.lease.id,
        job=attempt.job.name,
        attempt=attempt.number,
        log=attempt.log,
        tell_progress=tell_progress,
        keep_artifact=keep_artifact,
        read_artifact=read_artifact,
        transaction=transaction.block,
        cool_down=cool_down,
    )


NOTHING = Resources()
_NOTHING_ACK_RESULTS = Outcome(state=State.SUCCEEDED, attempt_state=AttemptState.SUCCEEDED, result_json=b"null")
