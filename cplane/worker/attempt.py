"""One attempt: the run of a job that this worker has leased. It is performed under its deadline, and its outcome is decided once."""

import asyncio
import time
from contextlib import suppress
from enum import IntEnum, StrEnum
from typing import TYPE_CHECKING, Any, Self, cast
from uuid import NAMESPACE_OID, UUID, uuid5

import msgspec
import structlog

from cplane.browser import PageLease
from cplane.errors import BrowserGone, CplaneError, TooManyRequests
from cplane.jobs.context import Progress
from cplane.jobs.definition import Resources
from cplane.jobs.states import AttemptState, Cause, State
from cplane.postgres.rows import Fence, Finish, Started
from cplane.postgres.transaction import JobTransaction
from cplane.redis.envelope import Envelope
from cplane.redis.events import Event
from cplane.redis.messages import Lease
from cplane.runtime.error_text import Error, read_error
from cplane.runtime.waiting import FOLLOWED
from cplane.sessions.store import SessionHold
from cplane.worker.outcome import Outcome, allowed_s, cooldown_s, decide, of_job, timed_out
from cplane.worker.runnable import Runnable
from cplane.worker.secrets import error_without_secrets
from cplane.worker.slots import Slot
from cplane.worker.steps import CURRENT

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from cplane.worker.runner import Runner

CLEANUP_S = 5.0
"""What a job's own `finally` may take after it was stopped; then it is abandoned and its outcome recorded."""

PROGRESS_INTERVAL_S = 0.1
"""Progress is published at most once per interval; the last of it is on the record."""

NOTHING = Resources()

log: "FilteringBoundLogger" = structlog.get_logger("cplane")

AnyFence = Fence | tuple[str, str]
"""Of a record its id and the attempt; of a transient job its id and the token of its lease, which the other leases of the claim have too."""


class Phase(IntEnum):
    """How far an attempt is. It only moves forward."""

    WAITING = 0
    """It waits for a page or a process, which is not run time."""
    RUNNING = 1
    DECIDING = 2
    """The job's own code has ended; its outcome is being decided, and that is not interrupted."""
    DECIDED = 3
    """Its outcome is decided and will be recorded; nothing stops it any more."""


WAITING, RUNNING, DECIDING, DECIDED = Phase
"""Its members, which are compared several times for each job: looking one up in its enum takes 0.1 µs, three times as
long as the rest of the comparison."""


class Stop(StrEnum):
    """Why a worker stops an attempt."""

    CANCEL = "cancel"
    """The record's owner wants it."""
    RELEASE = "release"
    """The worker stops; another may run the job."""
    TIMEOUT = "timeout"
    """It ran longer than it may."""
    PAGE_LOST = "page lost"
    """Its page or browser died under it."""
    LEASE_LOST = "lease lost"
    """It may be running elsewhere: nothing it does counts any more."""


class ProgressReport(msgspec.Struct):
    """The progress of an attempt, and what was done with it."""

    latest: Progress
    written: bool = False
    """Whether the record has it."""
    publish_at: float = 0.0
    """Monotonic seconds: until then no event is published."""


class Attempt(msgspec.Struct, eq=False, kw_only=True):
    """A leased job on this worker: its fence, its trust in its lease, and its task."""

    lease: Lease
    job: Runnable
    slot: Slot
    runner: "Runner"
    trusted_until: float
    """Monotonic seconds: past it the lease may be another worker's, and this worker stops the attempt itself."""
    fence: AnyFence
    """What sets this attempt apart from every other."""
    number: int
    timeout_s: float
    phase: Phase
    record_id: UUID | None = None
    args_json: bytes = b""
    """The arguments of a record."""
    envelope: Envelope | None = None
    """The envelope of a job without a record, which has its arguments."""
    failures: int = 0
    interruptions: int = 0
    """What earlier attempts have spent of the budgets."""
    began_ms: int = 0
    seq: int = 0
    """Its number in this process, under which the keeper knows it; 0: there is no keeper."""
    stopped: Stop | None = None
    task: "asyncio.Task[None] | None" = None
    timers: list[asyncio.TimerHandle] = []
    blocked_before_s: float = 0.0
    """For how long the event loop had been blocked when its deadline was set."""
    has_been_extended: bool = False
    progress: ProgressReport | None = None
    page_lease: PageLease | None = None
    keeps_trace: bool = False
    """Whether the trace of a success is kept, too."""
    session: SessionHold | None = None
    """The browser session it holds; the hold ends with the attempt."""
    transaction: JobTransaction | None = None
    file_names: set[str] | None = None
    """Names of the files of the job, those of earlier attempts included; None: it has stored none in this attempt."""
    bound_log: Any = None

    @classmethod
    def of_record(
        cls, started: Started, lease: Lease, job: Runnable, *, slot: Slot, runner: "Runner", trusted_until: float
    ) -> Self:
        """Return the attempt of a record that has been started."""
        return cls(
            lease=lease,
            job=job,
            slot=slot,
            runner=runner,
            trusted_until=trusted_until,
            fence=(started.id, started.attempt),
            number=started.attempt,
            timeout_s=job.timeout_s if started.timeout_s is None else allowed_s(started.timeout_s, job.timeout_s),
            phase=WAITING if job.waits else RUNNING,
            record_id=started.id,
            args_json=started.args_json,
            failures=started.failures,
            interruptions=started.interruptions,
        )

    @classmethod
    def of_envelope(
        cls,
        envelope: Envelope,
        lease: Lease,
        job: Runnable,
        *,
        slot: Slot,
        runner: "Runner",
        trusted_until: float,
        began_ms: int,
    ) -> Self:
        """Return the attempt of a job without a record."""
        return cls(
            lease=lease,
            job=job,
            slot=slot,
            runner=runner,
            trusted_until=trusted_until,
            fence=(lease.id, lease.token),
            number=max(lease.tries, envelope.t or 1),
            timeout_s=job.timeout_s if envelope.timeout is None else allowed_s(envelope.timeout, job.timeout_s),
            phase=WAITING if job.waits else RUNNING,
            envelope=envelope,
            failures=envelope.failures,
            interruptions=envelope.interruptions,
            began_ms=began_ms,
        )

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

    @property
    def waits_for_page(self) -> bool:
        """Whether it has no page yet and wants one."""
        return self.phase is WAITING and self.job.needs_page

    @property
    def decided(self) -> bool:
        """Whether its outcome is decided."""
        return self.phase is DECIDED

    @property
    def has_unwritten_progress(self) -> bool:
        """Whether it has progress that its record does not have yet."""
        return self.progress is not None and not self.progress.written

    def arm(self) -> None:
        """Start the deadline. A job that has ended needs none, and waiting for a page is not run time."""
        if self.phase is RUNNING and not self.timers:
            self.blocked_before_s = self.runner.watchdog.blocked_s
            self._set_deadline(self.timeout_s)

    def _set_deadline(self, seconds: float) -> None:
        self.timers.append(asyncio.get_running_loop().call_later(seconds, self._time_out))

    def _time_out(self) -> None:
        """Stop it at its deadline. Time in which the event loop was blocked extends the deadline once, at most by the timeout itself."""
        blocked_s = self.runner.watchdog.blocked_s - self.blocked_before_s
        if self.has_been_extended or blocked_s <= 0:
            self.stop(Stop.TIMEOUT)
        else:
            self.has_been_extended = True
            self._set_deadline(min(blocked_s, self.timeout_s))

    def begin(self) -> None:
        """Begin to run: the process that it waited for runs its code. The deadline starts."""
        self.got_page()
        self.arm()

    def got_page(self) -> None:
        """End the wait for a page, whether one came or not."""
        if self.phase is WAITING:
            self.phase = RUNNING
            self.runner.end_wait()

    def stop(self, why: Stop) -> None:
        """Stop the run. The first reason counts, but a lost lease outranks every other.

        The job's own `finally` gets CLEANUP_S; a job that ignores that it was stopped is then abandoned.
        """
        if self.phase is DECIDED:
            return
        first = self.stopped is None
        if first or why is Stop.LEASE_LOST:
            self.stopped = why
        if first and self.task is not None and self.phase is not DECIDING:
            self.task.cancel()
            self.timers.append(asyncio.get_running_loop().call_later(CLEANUP_S, self._abandon))

    def seal(self) -> bool:
        """Ignore further `stop()` calls. Returns False if that was already the case."""
        if self.phase is DECIDED:
            return False
        self.phase = DECIDED
        for timer in self.timers:
            timer.cancel()
        return True

    def _abandon(self) -> None:
        """Decide the outcome of a job that ignores that it was stopped without it."""
        if not self.seal():
            return
        self.log.error("stopped_job_abandoned", after_s=CLEANUP_S, hint="it ignores its cancellation")
        if self.page_lease is not None:
            self.page_lease.release()
        if self.task is not None:
            _abandoned.add(self.task)
            self.task.add_done_callback(_abandoned.discard)
            self.task.cancel()
        self.runner.finish(self, stopped_outcome(self))

    def decide(self, error: BaseException, described: Error | None = None) -> Outcome:
        """Return what an error means for it; `described` is its text, if that has been read already."""
        return decide(
            error,
            self.job,
            failures=self.failures,
            interruptions=self.interruptions,
            number=self.number,
            described=error_without_secrets(self, error, described),
        )

    def note(self, progress: Progress) -> None:
        """Keep progress, and publish it unless some was published a moment ago. An abandoned job's counts no more."""
        if self.phase is DECIDED:
            return
        if self.progress is None:
            self.progress = ProgressReport(progress)
        report = self.progress
        report.latest, report.written = progress, False
        if (now := time.monotonic()) >= report.publish_at:
            report.publish_at = now + PROGRESS_INTERVAL_S
            data = {"done": progress.done, "total": progress.total, "note": progress.note}
            self.runner.publish(Event(self.uuid, State.RUNNING, self.number, data))

    def finish(self, outcome: Outcome) -> Finish:
        """Return what is recorded of it; for attempts of records."""
        return Finish(
            id=cast("UUID", self.record_id),
            attempt=self.number,
            token=self.lease.token,
            state=outcome.state,
            attempt_state=outcome.attempt_state,
            result_json=outcome.result_json,
            error=outcome.error,
            delay_s=outcome.delay_s,
            cause=outcome.cause,
            failures=outcome.failures,
            interruptions=outcome.interruptions,
            progress=None if self.progress is None else self.progress.latest,
        )


_abandoned: set[asyncio.Task[None]] = set()
"""Tasks whose job ignored that it was stopped, until they end: asyncio itself would not keep them."""


async def run(attempt: Attempt) -> None:
    """Run an attempt, as its task: perform it, commit what the job wrote, hand over the outcome. What was opened is closed."""
    runner = attempt.runner
    CURRENT.set(attempt.seq)
    FOLLOWED.set((attempt.slot.slots.waits, attempt))
    try:
        outcome = await _perform(attempt)
        if not attempt.seal():
            return  # it was abandoned, and its outcome was decided without it
        if attempt.page_lease is not None:
            await runner.evidence.keep(attempt, attempt.page_lease, outcome)
        if attempt.session is not None:
            outcome = await _save_session(attempt, attempt.session, outcome)
        if attempt.transaction is not None and attempt.transaction.has_begun:
            outcome = await _commit(attempt, attempt.transaction, outcome)
        runner.finish(attempt, outcome)
    except Exception as error:
        attempt.log.error("outcome_unknown", exc_info=error, hint="the lease ends by itself")
        runner.finish(attempt, None)
    finally:
        if attempt.page_lease is not None:
            attempt.page_lease.release()
        if attempt.transaction is not None:
            await attempt.transaction.rollback()


async def _perform(attempt: Attempt) -> Outcome | None:
    """Run the job and decide its outcome. Errors of the job end here; None: its lease was lost, and nothing it did counts."""
    job, resources = attempt.job, attempt.runner.resources
    try:
        if attempt.stopped:
            raise asyncio.CancelledError
        if attempt.lease.limit_keys:
            resources.cooldowns.allow(attempt.lease.limit_keys)
        arguments = job.arguments(attempt)
        opened = await resources.open(attempt, arguments) if job.injects else NOTHING
        if attempt.stopped:  # a cancellation can get lost on the way (see runtime/cancellation.py)
            raise asyncio.CancelledError
        result = await job.start(attempt, arguments, opened)
        if attempt.page_lease is not None:
            attempt.page_lease.ended_well = True
        if attempt.stopped and attempt.stopped is not Stop.RELEASE:
            return stopped_outcome(attempt)
        return job.succeeded(result)
    except GeneratorExit:  # the loop is closed under the job: nobody is left who could be told
        raise
    except BaseException as error:
        attempt.phase = DECIDING if attempt.phase is not DECIDED else attempt.phase
        await _absorb_cancels()
        if attempt.stopped:
            return stopped_outcome(attempt)
        cause = of_job(await _cause(attempt, error))
        if isinstance(cause, TooManyRequests):
            await resources.cooldowns.start(attempt, cooldown_s(cause, attempt.interruptions))
        return attempt.decide(cause, await read_error(cause))


async def _absorb_cancels() -> None:
    """Cancellations of the job's run end with it: what follows must happen."""
    task = asyncio.current_task()
    if task is None or not task.cancelling():
        return
    with suppress(asyncio.CancelledError):
        await asyncio.sleep(0)
    while task.uncancel():
        pass


async def _cause(attempt: Attempt, error: BaseException) -> BaseException:
    """Return the cause of an error of the job: the loss of its page or connection, or the error itself."""
    cause = error
    if isinstance(error, Exception):
        if attempt.transaction is not None:
            cause = attempt.transaction.cause(error)
        if attempt.page_lease is not None:
            cause = await attempt.page_lease.cause(error)
    if cause is not error:
        cause.__cause__ = error
    return cause


async def _save_session(attempt: Attempt, held: SessionHold, outcome: Outcome | None) -> Outcome | None:
    """What a job that succeeded leaves in its browser session is there for the next that holds it."""
    if outcome is None or outcome.state is not State.SUCCEEDED or attempt.page_lease is None:
        return outcome
    try:
        if await attempt.runner.resources.sessions.save(held, await attempt.page_lease.storage_state()):
            return outcome
    except CplaneError as error:
        return attempt.decide(error)
    attempt.log.warning("browser_session_not_saved", reason="another attempt holds it")
    return None


async def _commit(attempt: Attempt, transaction: JobTransaction, outcome: Outcome | None) -> Outcome | None:
    """What the job wrote commits with its success, or not at all."""
    if outcome is None or outcome.state is not State.SUCCEEDED:
        return outcome
    recorded = attempt.job.is_recorded
    try:
        owned = await transaction.commit(attempt.finish(outcome) if recorded else None)
    except Exception as error:  # if it did commit, the record refuses to be requeued
        return attempt.decide(error, await read_error(error))
    if not owned:
        attempt.log.warning("job_writes_rolled_back", reason="the record was no longer this attempt's")
        return None
    return msgspec.structs.replace(outcome, recorded=recorded)


def stopped_outcome(attempt: Attempt) -> Outcome | None:
    """Return the outcome of an attempt that was stopped; None: its lease was lost."""
    match attempt.stopped:
        case Stop.CANCEL:
            return Outcome(state=State.CANCELLED, attempt_state=AttemptState.CANCELLED)
        case Stop.RELEASE:
            return Outcome(state=State.QUEUED, attempt_state=AttemptState.RELEASED, cause=Cause.RELEASE)
        case Stop.TIMEOUT:
            return attempt.decide(timed_out(attempt.job, attempt.timeout_s))
        case Stop.PAGE_LOST:
            loss = attempt.page_lease.loss if attempt.page_lease is not None else None
            return attempt.decide(loss or BrowserGone("the page was lost"))
        case _:
            return None
