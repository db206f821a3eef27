"""One run of one record: open what the job asks for, run it under its deadline, decide once what came of it."""

import asyncio
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Executor
from contextlib import AsyncExitStack
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from cplane.artifacts import ArtifactStore
from cplane.browser import BrowserPool, PageLease, PageOptions
from cplane.context import Artifact, Context, Progress
from cplane.errors import InvalidArguments, JobTimeout, OutsideError, PageCrashed, ResultNotSerializable, Retry
from cplane.events import Event
from cplane.jobs import AnyJob, Resources
from cplane.queue import Action, Grant, Return
from cplane.retry import RetryPolicy
from cplane.states import MAX_CRASHES, MAX_INTERRUPTIONS, AttemptState, Cause, State
from cplane.store import Error, Fence, Finish, Started, Store
from cplane.transaction import JobTransaction

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

CLEANUP_S = 5.0
"""What a job's own `finally` may take after it was stopped; then it is left behind and its outcome recorded."""

PROGRESS_EVERY_S = 0.1
"""At most so often is progress told; the last of it is on the record."""

TRACEBACK_CHARS = 16_000
OURS = str(Path(__file__).parent)

log: "FilteringBoundLogger" = structlog.get_logger("cplane")


class Stop(StrEnum):
    """Why a worker stops an attempt."""

    CANCEL = "cancel"
    """The record's owner wants it."""
    RELEASE = "release"
    """The worker is going; another may run it."""
    LEASE_LOST = "lease lost"
    """It may be running elsewhere: nothing it does counts any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of an attempt, decided once."""

    state: State
    attempt_state: AttemptState
    result_json: bytes | None = None
    error: Error | None = None
    delay_s: float = 0.0
    cause: Cause = Cause.SUBMIT
    failures: int = 0
    interruptions: int = 0


@dataclass(frozen=True, slots=True)
class Tools:
    """What attempts of one worker share."""

    store: Store
    artifacts: ArtifactStore
    threads: Executor
    tell: Callable[[Event], object]
    pool: Callable[[], BrowserPool]
    """Raises BrowserError while there is no browser."""


class Attempt:
    """A started record on this worker: its fence, its trust in its lease, and its task."""

    def __init__(self, started: Started, grant: Grant, queue: str, job: AnyJob, trusted_until: float) -> None:
        self.started = started
        self.grant = grant
        self.queue = queue
        self.job = job
        self.trusted_until = trusted_until
        """Monotonic seconds: past it the lease may be someone else's, and the worker stops the attempt itself."""
        self.progress: Progress | None = None
        self.progress_told = True
        self.waits_for_page = job.needs_page
        self.stopped: Stop | None = None
        self.over = False
        """The job has ended; its outcome is being recorded, and nothing stops it any more."""
        self.task: asyncio.Task[None] | None = None
        self.log = log.bind(record=str(started.id), job=started.job, attempt=started.attempt)
        self._progress_due = 0.0

    @property
    def fence(self) -> Fence:
        """What sets this attempt apart from every other."""
        return self.started.id, self.started.attempt

    def stop(self, why: Stop) -> None:
        """Stop the run; the first reason stands, but a lost lease outranks every other."""
        if self.over:
            return
        if self.stopped is None or why is Stop.LEASE_LOST:
            self.stopped = why
        if self.task is not None:
            self.task.cancel()

    def note(self, progress: Progress, tell: Callable[[Event], object]) -> None:
        """Keep progress, and tell it unless that happened a moment ago."""
        self.progress, self.progress_told = progress, False
        if (now := time.monotonic()) >= self._progress_due:
            self._progress_due = now + PROGRESS_EVERY_S
            data = {"done": progress.done, "total": progress.total, "note": progress.note}
            tell(Event(self.started.id, State.RUNNING, self.started.attempt, data))

    def finish(self, outcome: Outcome) -> Finish:
        """What to record."""
        return Finish(
            id=self.started.id,
            attempt=self.started.attempt,
            token=self.started.token,
            state=outcome.state,
            attempt_state=outcome.attempt_state,
            result_json=outcome.result_json,
            error=outcome.error,
            delay_s=outcome.delay_s,
            cause=outcome.cause,
            failures=outcome.failures,
            interruptions=outcome.interruptions,
            progress=self.progress,
        )

    def give_back(self, state: State, outcome: Outcome) -> Return:
        """How the lease leaves Redis, once the record says `state`."""
        lease = self.queue, self.grant.id, self.grant.token
        if state is not State.QUEUED:
            return Return(*lease, Action.DONE)
        if outcome.attempt_state is AttemptState.RELEASED:
            return Return(*lease, Action.RELEASE, self.grant.due_ms)
        return Return(*lease, Action.RETRY, int(outcome.delay_s * 1000))


async def perform(attempt: Attempt, tools: Tools, transaction: JobTransaction) -> Outcome:
    """Run the job and decide what came of it. Errors of the job end here; only the loss of the lease is no outcome."""
    job, started = attempt.job, attempt.started
    try:
        result = await _run(attempt, tools, transaction)
        if attempt.stopped is Stop.CANCEL:
            return Outcome(state=State.CANCELLED, attempt_state=AttemptState.CANCELLED)
        return Outcome(
            state=State.SUCCEEDED, attempt_state=AttemptState.SUCCEEDED, result_json=job.encode_result(result)
        )
    except asyncio.CancelledError as error:
        return _stopped(attempt) if attempt.stopped else decide(error, job.options.retry, started)
    except Exception as error:
        return _stopped(attempt) if attempt.stopped else decide(error, job.options.retry, started)


def decide(error: BaseException, policy: RetryPolicy, started: Started) -> Outcome:
    """What an error means: again later, again without spending a retry, or failed."""
    described = describe(error)
    failures = started.failures + 1
    if isinstance(error, OutsideError):
        most = MAX_CRASHES - 1 if isinstance(error, PageCrashed) else MAX_INTERRUPTIONS
        if started.interruptions < most:
            return Outcome(
                state=State.QUEUED,
                attempt_state=AttemptState.INTERRUPTED,
                error=described,
                cause=Cause.INFRASTRUCTURE,
                delay_s=min(0.5 * 2**started.interruptions, 60.0),
                interruptions=1,
            )
        return Outcome(state=State.FAILED, attempt_state=AttemptState.INTERRUPTED, error=described, interruptions=1)
    attempt_state = AttemptState.TIMED_OUT if isinstance(error, JobTimeout) else AttemptState.FAILED
    hopeless = isinstance(error, InvalidArguments | ResultNotSerializable)
    wanted = isinstance(error, Retry) and failures <= policy.retries
    if not hopeless and (wanted or policy.allows(error, failures)):
        delay_s = policy.delay_s(failures)
        if isinstance(error, Retry) and error.delay is not None:
            delay_s = max(0.0, error.delay)
        return Outcome(
            state=State.QUEUED,
            attempt_state=attempt_state,
            error=described,
            cause=Cause.RETRY,
            delay_s=delay_s,
            failures=1,
        )
    return Outcome(state=State.FAILED, attempt_state=attempt_state, error=described, failures=1)


def describe(error: BaseException) -> Error:
    """An error as text: its type, its message, and a traceback that begins where the job's own code does."""
    kind = type(error)
    name = (
        kind.__qualname__
        if kind.__module__ in {"builtins", "cplane.errors"}
        else f"{kind.__module__}.{kind.__qualname__}"
    )
    told = traceback.TracebackException.from_exception(error)
    theirs = (
        n for n, frame in enumerate(told.stack) if not frame.filename.startswith(OURS) or "/tasks/" in frame.filename
    )
    first = next(theirs, len(told.stack))  # an error of ours alone needs no traceback: its message says it all
    del told.stack[:first]
    text = "".join(told.format())
    if len(text) > TRACEBACK_CHARS:
        text = f"{text[: TRACEBACK_CHARS // 2]}\n…\n{text[-TRACEBACK_CHARS // 2 :]}"
    try:
        message = str(error)
    except Exception:
        message = "(its message cannot be read)"
    return Error(name, message[:TRACEBACK_CHARS], text)


async def _run(attempt: Attempt, tools: Tools, transaction: JobTransaction) -> object:
    job = attempt.job
    arguments = job.decode(attempt.started.args_json)
    async with AsyncExitStack() as stack:
        lease = (
            await _acquire_page(attempt, tools, PageOptions.read(job.page_options(arguments)))
            if job.needs_page
            else None
        )
        if lease is not None:
            stack.callback(lease.release)
        resources = Resources(
            context=_context(attempt, tools, transaction),
            page=lease and lease.page,
            browser_context=lease and lease.context,
            session=await transaction.begin() if job.signature.wants("session") else None,
        )
        if attempt.stopped:  # a cancellation can get lost on the way (see endings.py)
            raise asyncio.CancelledError
        try:
            return await _supervise(attempt, job.call(arguments, resources, tools.threads), lease)
        except Exception as error:
            cause = transaction.cause(error) if lease is None else await lease.cause(error)
            if cause is error:
                raise
            raise cause from error


async def _acquire_page(attempt: Attempt, tools: Tools, options: PageOptions) -> PageLease:
    """A page of the pool: waiting for it is not run time."""
    try:
        return await tools.pool().acquire_page(options)
    finally:
        attempt.waits_for_page = False


async def _supervise(attempt: Attempt, run: Awaitable[object], lease: PageLease | None) -> object:
    """Wait for the job, its deadline or the loss of its page, whichever comes first."""
    work = asyncio.create_task(_guard(run), name=f"job {attempt.job.name} {attempt.started.id}")
    watched: set[asyncio.Future[object]] = {work}
    if lease is not None:
        watched.add(lease.broken)  # type: ignore[arg-type]  # Future is invariant; nothing reads its result
    timeout_s = attempt.job.options.timeout_s
    try:
        done, _ = await asyncio.wait(watched, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    except asyncio.CancelledError:
        await _end(work, attempt)
        if attempt.stopped is Stop.RELEASE and not work.cancelled() and work.done() and work.exception() is None:
            return work.result()
        raise
    if work in done:
        return work.result()
    await _end(work, attempt)
    if lease is not None and lease.broken in done:
        lease.broken.result()
    raise JobTimeout(f"'{attempt.job.name}' ran longer than {timeout_s:g} s", hint="raise it with @job(timeout=…)")


async def _guard(run: Awaitable[object]) -> object:
    """A job that calls sys.exit() fails; it does not take the worker along."""
    try:
        return await run
    except (SystemExit, KeyboardInterrupt) as error:
        raise RuntimeError(f"the job raised {error!r}") from error


async def _end(work: "asyncio.Task[object]", attempt: Attempt) -> None:
    """Cancel the job's task and give its `finally` a moment; what ignores that is left behind."""
    work.cancel()
    await asyncio.wait([work], timeout=CLEANUP_S)
    if not work.done():
        attempt.log.error("the job ignores that it was stopped and is left behind", after_s=CLEANUP_S)
    work.add_done_callback(lambda task: task.cancelled() or task.exception())


def _context(attempt: Attempt, tools: Tools, transaction: JobTransaction) -> Context:
    started = attempt.started

    async def tell_progress(progress: Progress) -> None:
        attempt.note(progress, tools.tell)

    async def keep_artifact(name: str, data: bytes | AsyncIterator[bytes], media_type: str | None) -> Artifact:
        artifact, path = await tools.artifacts.put(started.id, started.attempt, name, data, media_type)
        await tools.store.add_artifact(started.id, started.attempt, artifact, path)
        return artifact

    return Context(
        id=started.id,
        job=started.job,
        attempt=started.attempt,
        log=attempt.log,
        tell_progress=tell_progress,
        keep_artifact=keep_artifact,
        transaction=transaction.block,
    )


def _stopped(attempt: Attempt) -> Outcome:
    if attempt.stopped is Stop.CANCEL:
        return Outcome(state=State.CANCELLED, attempt_state=AttemptState.CANCELLED)
    return Outcome(state=State.QUEUED, attempt_state=AttemptState.RELEASED, cause=Cause.RELEASE)
