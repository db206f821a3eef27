"""Transient jobs (`record=False`): no row in Postgres, arq's keys in Redis, a result that Redis keeps for a while."""

import asyncio
from collections.abc import Sequence
from datetime import datetime
from types import TracebackType
from typing import Any, Self
from uuid import UUID

import msgspec
import structlog

from cplane.batch import Batch
from cplane.envelope import ErrorText, KeptResult, encode, encode_envelope, now_ms
from cplane.errors import IllegalMove, QueueUnavailable, RecordNotFound
from cplane.events import CONTROL, Event, Events
from cplane.handle import Handle
from cplane.jobs import AnyJob, Submission
from cplane.queue import Aborted, Push, Pushed, Queue, redis_name
from cplane.states import State
from cplane.uuid7 import new_id
from cplane.waiters import Waiters

log = structlog.get_logger("cplane")


class TransientJobs:
    """Where transient jobs are submitted. Submissions that gather while one call is under way go together in the next."""

    def __init__(self, queue: Queue, events: Events, waiters: Waiters) -> None:
        self._queue = queue
        self._events = events
        self._waiters = waiters
        self._schedule: Batch[Push, Pushed] = Batch(queue.enqueue, name="schedule transient jobs")

    async def __aenter__(self) -> Self:
        await self._schedule.__aenter__()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self._schedule.__aexit__(exc_type, exc, tb)

    async def submit(self, submission: Submission) -> Handle[Any]:
        """Schedule one job. Raises QueueUnavailable: whether it is scheduled is unknown."""
        id_ = new_id()
        await self._schedule(await self._push(submission, id_))
        return self._handle(submission, id_)

    async def submit_many(self, submissions: Sequence[Submission]) -> list[Handle[Any]]:
        """Schedule a batch in one push. Raises QueueUnavailable: whether it is scheduled is unknown."""
        ids = [new_id() for _ in submissions]
        await self._queue.enqueue([await self._push(s, id_) for s, id_ in zip(submissions, ids, strict=True)])
        return [self._handle(submission, id_) for submission, id_ in zip(submissions, ids, strict=True)]

    async def _push(self, submission: Submission, id_: UUID) -> Push:
        delay_ms = int((submission.delay_s or 0) * 1000)
        if submission.run_at is not None:
            delay_ms = await self._delay_ms(submission.run_at)
        payload = encode_envelope(submission.job.name, (), msgspec.json.decode(submission.args_json))
        return Push(submission.queue, str(id_), payload, delay_ms, submission.priority)

    async def _delay_ms(self, run_at: datetime) -> int:
        """How far ahead a moment is by Redis's clock."""
        return max(0, int(run_at.timestamp() * 1000) - await self._queue.now_ms())

    def _handle(self, submission: Submission, id_: UUID) -> Handle[Any]:
        source = TransientSource(self._queue, self._events, self._waiters, submission.queue, submission.job)
        return Handle(id_, source, submission.job)


class TransientSource:
    """Where the handle of a transient job finds it."""

    __slots__ = ("_events", "_job", "_queue", "_queue_name", "_waiters")

    def __init__(self, queue: Queue, events: Events, waiters: Waiters, queue_name: str, job: AnyJob) -> None:
        self._queue = queue
        self._events = events
        self._waiters = waiters
        self._queue_name = queue_name
        self._job = job

    async def result(self, record_id: UUID, timeout_s: float | None) -> bytes:
        """The JSON of the result, once it is there. Raises JobFailed, JobCancelled, RecordNotFound, TimeoutError."""
        async with asyncio.timeout(timeout_s):
            kept = await self._waiters.wait_result(record_id)
        if isinstance(kept.r, ErrorText):
            raise kept.r.exception(kept.f)
        return msgspec.json.encode(kept.r)

    async def state(self, record_id: UUID) -> State:
        """Where the job is. Raises RecordNotFound when it has ended and its result is not kept any more."""
        there, leased = await self._queue.standing(str(record_id))
        if there:
            return State.RUNNING if leased else State.QUEUED
        (kept,) = await self._waiters.results([record_id])
        if kept is None:
            raise RecordNotFound(f"there is no job with the id {record_id}, or its result is not kept any more")
        if kept.s:
            return State.SUCCEEDED
        cancelled = isinstance(kept.r, ErrorText) and kept.r.type == "CancelledError"
        return State.CANCELLED if cancelled else State.FAILED

    async def cancel(self, record_id: UUID) -> State:
        """Cancel the job: a queued one at once, a running one as soon as its worker hears of it. Raises IllegalMove: it has ended."""
        error = ErrorText("CancelledError", "it was cancelled").packed()
        now, name = now_ms(), self._job.name
        result = KeptResult(0, name, (), {}, now, False, error, now, now, redis_name(self._queue_name), str(record_id))
        ttl_s = self._job.options.result_ttl_s
        aborted = await self._queue.abort(self._queue_name, str(record_id), encode(result), ttl_s)
        if aborted is Aborted.UNKNOWN:
            raise IllegalMove("the job has ended already", hint="only queued and running jobs can be cancelled")
        state = State.RUNNING if aborted is Aborted.TOLD else State.CANCELLED
        try:
            if aborted is Aborted.TOLD:
                await self._events.publish([Event(record_id, State.RUNNING)], CONTROL)
            else:
                await self._events.publish([Event(record_id, State.CANCELLED)])
        except QueueUnavailable:
            log.warning("a worker hears of the cancel when it renews its lease", record=str(record_id))
        return state
