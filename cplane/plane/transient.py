"""Transient jobs (`record=False`): no row in Postgres, arq's keys in Redis, a result that Redis keeps for a while."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any, Self
from uuid import UUID

import msgspec
import structlog

from cplane.errors import InvalidArguments, InvalidTransition, QueueUnavailable, RecordNotFound
from cplane.jobs.definition import AnyJob
from cplane.jobs.names import DEFAULT_QUEUE
from cplane.jobs.numbers import wide_number
from cplane.jobs.options import DEFAULT_RESULT_TTL_S, Options
from cplane.jobs.per_host import PerHost
from cplane.jobs.registry import registry
from cplane.jobs.states import Priority, State
from cplane.jobs.submission import Submission
from cplane.plane.waiters import Waiters
from cplane.postgres.rows import Submitted
from cplane.redis.envelope import ErrorText, KeptResult, decode_envelope, decode_result, encode, encode_envelope, now_ms
from cplane.redis.events import CONTROL, Event, Events
from cplane.redis.keys import lane_of, redis_name
from cplane.redis.messages import Aborted, EnqueueRequest, EnqueueResult
from cplane.redis.queue import Queue
from cplane.runtime.batch import Batch
from cplane.runtime.ids import new_id
from cplane.runtime.splitting import portions

PORTION_BYTES = 4 * 1024 * 1024
"""Payloads that one call of a batch carries at most, larger ones aside, which are alone."""

Lane = tuple[str, Priority]
"""A queue, and the priority in it."""

log = structlog.get_logger("cplane")


@dataclass(frozen=True, slots=True, kw_only=True)
class TransientJob:
    """A job without a record, as Redis knows it; the names are those of `JobRecord`."""

    id: UUID
    job: str
    queue: str
    priority: Priority
    state: State
    args: dict[str, Any]
    attempt: int
    created_at: datetime
    run_at: datetime
    """When it is due; for one that was claimed, when it was submitted."""
    result: Any = None
    error_type: str | None = None
    error_message: str | None = None
    error_traceback: str | None = None
    failures: int = 0
    cancel_requested: bool = False
    started_at: datetime | None = None
    finished_at: datetime | None = None
    progress_done: float | None = None
    progress_total: float | None = None
    progress_note: str | None = None
    key: str | None = None
    timeout_s: float | None = None
    """As it was submitted; None: the job's own, or the job has ended."""
    worker: str | None = None


class TransientJobs:
    """Where transient jobs are submitted, read and cancelled. Submissions that arrive while a batch is in flight form the next one."""

    def __init__(self, queue: Queue, events: Events, waiters: Waiters, per_host: PerHost | None) -> None:
        self._queue = queue
        self._events = events
        self._waiters = waiters
        self._per_host = per_host
        self._schedule: Batch[EnqueueRequest, EnqueueResult] = Batch(self._enqueue, name="schedule transient jobs")

    async def __aenter__(self) -> Self:
        await self._schedule.__aenter__()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self._schedule.__aexit__(exc_type, exc, tb)

    async def submit(self, submission: Submission) -> Submitted:
        """Schedule one job, with the next batch. Raises QueueUnavailable: it is unknown whether it is scheduled."""
        id_ = new_id()
        request = await self._request(submission, id_)
        await self._schedule(request)
        return _submitted(id_, request)

    async def submit_many(self, submissions: Sequence[Submission]) -> list[Submitted]:
        """Schedule a batch in one call of Redis. Raises QueueUnavailable: it is unknown whether it is scheduled."""
        ids = [new_id() for _ in submissions]
        requests = [await self._request(submission, id_) for submission, id_ in zip(submissions, ids, strict=True)]
        await self._queue.enqueue(requests)
        return [_submitted(id_, request) for id_, request in zip(ids, requests, strict=True)]

    async def _enqueue(self, requests: Sequence[EnqueueRequest]) -> list[EnqueueResult]:
        """Schedule a batch, in portions that Redis takes in quickly."""
        results: list[EnqueueResult] = []
        for portion in portions(requests, _size, PORTION_BYTES):
            results += await self._queue.enqueue(portion)
        return results

    async def _request(self, submission: Submission, id_: UUID) -> EnqueueRequest:
        delay_ms = int((submission.delay_s or 0) * 1000)
        if submission.run_at is not None:
            delay_ms = await self._delay_ms(submission.run_at)
        options = submission.job.options
        overrides = {
            name: value
            for name, value, own in (
                ("queue", submission.queue, options.queue),
                ("priority", submission.priority.value, options.priority.value),
            )
            if value != own
        }
        timeout = submission.timeout_s
        limit_keys, args = submission.limit_keys(self._per_host), msgspec.json.decode(submission.args_json)
        try:
            payload = encode_envelope(
                submission.job.name, (), args, limit_keys=limit_keys, timeout=timeout, **overrides
            )
        except OverflowError:
            raise wide_number(submission.job.name, args) or InvalidArguments("the arguments have no msgpack") from None
        return EnqueueRequest(submission.queue, str(id_), payload, delay_ms, submission.priority)

    async def _delay_ms(self, run_at: datetime) -> int:
        """Milliseconds until a moment, by Redis's clock; 0 if it is past."""
        return max(0, int(run_at.timestamp() * 1000) - await self._queue.now_ms())

    async def job(self, job_id: UUID) -> TransientJob:
        """Return a job as it is now. Raises RecordNotFound if there is none, or it has ended and its result is no longer kept."""
        found = await self._queue.read_job(str(job_id))
        if found.payload is None:
            if found.result is None:
                raise RecordNotFound(f"there is no job with the id {job_id}, or its result is no longer kept")
            return _ended(job_id, decode_result(found.result))
        envelope = decode_envelope(found.payload)
        if envelope.record:  # what a deleted record left in the schedule
            raise RecordNotFound(f"there is no job with the id {job_id}")
        options = _options(envelope.f)
        queue = envelope.queue or (DEFAULT_QUEUE if options is None else options.queue)
        due_ms = None if found.leased else await self._queue.due_ms(queue, str(job_id))
        return TransientJob(
            id=job_id,
            job=envelope.f,
            queue=queue,
            priority=_priority(envelope.priority, options),
            state=State.RUNNING if found.leased else State.QUEUED,
            args=envelope.k,
            attempt=found.tries,
            failures=envelope.failures,
            timeout_s=envelope.timeout,
            cancel_requested=found.abort_wanted,
            created_at=_time(envelope.et),
            run_at=_time(max(envelope.et, due_ms or 0)),
        )

    async def wait(self, job_id: UUID) -> TransientJob:
        """Return the job once it has ended; waits by push. Raises RecordNotFound as `job` does."""
        return _ended(job_id, await self._waiters.wait_result(job_id))

    async def cancel(self, job_id: UUID) -> State:
        """Cancel a job by its id. Returns the state it is in then. Raises RecordNotFound, InvalidTransition."""
        found = await self.job(job_id)
        if found.state.final:
            hint = "only queued and running jobs can be cancelled"
            raise InvalidTransition(f"the job has {found.state} already", hint=hint)
        return await cancel(self._queue, self._events, job_id, found.job, (found.queue, found.priority))

    async def retry(self, job_id: UUID) -> None:
        """Refuse: the job has no record to run again from. Raises RecordNotFound, InvalidTransition."""
        await self.job(job_id)
        raise InvalidTransition("the job has no record to run again from", hint="submit it once more")

    async def has(self, job_id: UUID) -> bool:
        """Whether Redis holds this job, or its result. False if Redis does not answer."""
        with suppress(RecordNotFound, QueueUnavailable):
            await self.job(job_id)
            return True
        return False

    def source(self, submission: Submission) -> "TransientSource":
        """Return where the handle of a submitted job finds it."""
        lane = submission.queue, submission.priority
        return TransientSource(self._queue, self._events, self._waiters, lane, submission.job)


class TransientSource(msgspec.Struct, frozen=True, eq=False, gc=False):
    """Where the handle of a transient job finds it."""

    _queue: Queue
    _events: Events
    _waiters: Waiters
    _lane: Lane
    _job: AnyJob

    async def result(self, record_id: UUID, timeout_s: float | None) -> bytes:
        """Return the JSON of the result, once it is there.

        Raises:
            JobFailed, JobCancelled, RecordNotFound, TimeoutError.
            InvalidTransition: the job keeps no result.
        """
        if not self._job.options.keeps_result:
            raise InvalidTransition(
                self._job.options.no_result_message, hint="@job(result_ttl=…) says for how many seconds to keep it"
            )
        async with asyncio.timeout(timeout_s):
            kept = await self._waiters.wait_result(record_id)
        if isinstance(kept.r, ErrorText):
            raise kept.r.exception(kept.f)
        return msgspec.json.encode(kept.r)

    async def state(self, record_id: UUID) -> State:
        """Return the state now. Raises RecordNotFound if it has ended and its result is no longer kept."""
        there, leased = await self._queue.presence(str(record_id))
        if there:
            return State.RUNNING if leased else State.QUEUED
        (kept,) = await self._waiters.results([record_id])
        if kept is None:
            raise RecordNotFound(f"there is no job with the id {record_id}, or its result is no longer kept")
        return _final_state(kept)

    async def cancel(self, record_id: UUID) -> State:
        """Cancel the job: a queued one at once, a running one as soon as its worker is notified. Raises InvalidTransition: it has ended."""
        return await cancel(self._queue, self._events, record_id, self._job.name, self._lane)


async def cancel(queue: Queue, events: Events, job_id: UUID, name: str, lane: Lane) -> State:
    """Cancel a job of that name in that lane. Returns the state it is in then. Raises InvalidTransition: it has ended."""
    error, now = ErrorText("CancelledError", "it was cancelled").packed(), now_ms()
    result = KeptResult(0, name, (), {}, now, False, error, now, now, redis_name(*lane), str(job_id))
    options = _options(name)
    aborted = await queue.abort(
        lane[0], str(job_id), encode(result), DEFAULT_RESULT_TTL_S if options is None else options.error_ttl_s
    )
    if aborted is Aborted.UNKNOWN:
        raise InvalidTransition("the job has ended already", hint="only queued and running jobs can be cancelled")
    try:
        if aborted is Aborted.TOLD:
            await events.publish([Event(job_id, State.RUNNING)], CONTROL)
        else:
            await events.publish([Event(job_id, State.CANCELLED)])
    except QueueUnavailable:
        log.warning("cancel_not_published", record=str(job_id), hint="its worker learns of it with the next renewal")
    return State.RUNNING if aborted is Aborted.TOLD else State.CANCELLED


def _size(request: EnqueueRequest) -> int:
    return len(request.payload)


def _ended(job_id: UUID, kept: KeptResult) -> TransientJob:
    error = kept.r if isinstance(kept.r, ErrorText) else None
    queue, priority = lane_of(kept.q)
    return TransientJob(
        id=job_id,
        job=kept.f,
        queue=queue,
        priority=priority,
        state=_final_state(kept),
        args=kept.k,
        result=kept.r if kept.s else None,
        error_type=None if error is None else error.type,
        error_message=None if error is None else error.message,
        error_traceback=None if error is None else error.traceback,
        attempt=kept.t,
        created_at=_time(kept.et),
        run_at=_time(kept.et),
        started_at=_time(kept.st) if kept.t else None,
        finished_at=_time(kept.ft),
    )


def _final_state(kept: KeptResult) -> State:
    if kept.s:
        return State.SUCCEEDED
    cancelled = isinstance(kept.r, ErrorText) and kept.r.type == "CancelledError"
    return State.CANCELLED if cancelled else State.FAILED


def _options(name: str) -> Options | None:
    job = registry.jobs.get(name)
    return None if job is None else job.options


def _priority(named: str | None, options: Options | None) -> Priority:
    if named is not None:
        return Priority(named)
    return Priority.NORMAL if options is None else options.priority


def _time(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1000, UTC)


def _submitted(id_: UUID, request: EnqueueRequest) -> Submitted:
    """What a submission of a job without a record returns, by this machine's clock."""
    now = datetime.now(UTC)
    return Submitted(id_, True, request.delay_ms, State.QUEUED, now, now + timedelta(milliseconds=request.delay_ms))
