"""Submissions: recorded in Postgres in batches, then scheduled in Redis; those without a record go to Redis alone."""

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from datetime import UTC
from types import TracebackType
from typing import Any, Self

import msgspec
from pydantic import JsonValue

from cplane.errors import CplaneError, IdempotencyConflict, InvalidArguments
from cplane.jobs.handle import Handle
from cplane.jobs.per_host import PerHost
from cplane.jobs.states import Priority
from cplane.jobs.submission import Submission
from cplane.plane.recorded import RecordedJobs
from cplane.plane.scheduler import SCHEDULE_WAIT_S, Scheduler
from cplane.plane.transient import TransientJobs
from cplane.postgres.rows import NewRecord, Submitted
from cplane.postgres.store import Store
from cplane.redis.messages import EnqueueRequest
from cplane.runtime.batch import Batch
from cplane.runtime.ids import new_id
from cplane.runtime.splitting import portions, send_halving
from cplane.settings import CplaneSettings

SIZED = (str, list, dict)  # faster to ask for than a union

LARGE_ARGUMENT = 10_000
"""Arguments with a text, list or object of more parts are validated in a thread: they would hold the loop."""

EARLY_BATCH = 4
"""A batch of up to this many is scheduled while it gets to disk, with one statement more: it came when there was little to do."""

MAX_REASON_CHARS = 500
"""Of why a submission was refused; the driver's text may quote the submission itself."""

PORTION_BYTES = 4 * 1024 * 1024
"""Arguments that one statement of a batch carries at most, larger ones aside, which are alone."""

SubmitResult = Submitted | IdempotencyConflict
"""The record of a submission, or why there is none."""


class Accepted(msgspec.Struct, frozen=True):
    """A submission, and the record it led to."""

    submission: Submission
    submitted: Submitted


class RecordSender:
    """Records batches and schedules them."""

    def __init__(self, store: Store, scheduler: Scheduler) -> None:
        self._store = store
        self._scheduler = scheduler

    async def __call__(self, records: Sequence[NewRecord]) -> list[SubmitResult]:
        """Record a batch in one statement, then schedule it in one call. Nobody waits long for the schedule, and it still happens.

        An early batch gets to disk concurrently. A worker's start, which commits later, takes it there too: what is not on disk is not run.
        """
        early = _is_early(records)
        results = await self._store.submit(records, early=early)
        scheduled = self._scheduler.put(
            [
                EnqueueRequest.of_record(
                    record.queue, record.priority, result.id, record.job, result.delay_ms, limit_keys=record.limit_keys
                )
                for record, result in zip(records, results, strict=True)
                if isinstance(result, Submitted) and result.created
            ]
        )
        if early:
            await self._store.flush()
        await asyncio.wait([scheduled], timeout=SCHEDULE_WAIT_S)
        return results

    async def send_apart(self, records: Sequence[NewRecord]) -> list[SubmitResult | Exception]:
        """Record submissions of several callers: one that Postgres refuses, or that is large, fails or delays no other.

        Returns:
            For each submission, in order, its result, or the error that it alone caused.
        """
        results: list[SubmitResult | Exception] = []
        for portion in portions(records, _size, PORTION_BYTES):
            results += await send_halving(portion, self, outages=(CplaneError,))
        return results


class Submissions:
    """Where jobs are submitted.

    Args:
        store: Postgres.
        scheduler: schedules what is recorded.
        recorded: where the handles of recorded jobs find them.
        transient: takes jobs without a record.
        settings: the limits of arguments and hosts.
    """

    def __init__(
        self,
        store: Store,
        scheduler: Scheduler,
        recorded: RecordedJobs,
        transient: TransientJobs,
        settings: CplaneSettings,
    ) -> None:
        self._recorded = recorded
        self._transient = transient
        self._max_bytes = settings.max_body_bytes
        self._per_host: PerHost | None = settings.per_host
        self._send = RecordSender(store, scheduler)
        self._batch = Batch(self._send.send_apart, name="record submitted jobs", overlap=True)

    async def __aenter__(self) -> Self:
        await self._batch.__aenter__()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self._batch.__aexit__(exc_type, exc, tb)

    async def submit(self, submission: Submission) -> Submitted:
        """Submit one job, with the next batch.

        Raises:
            InvalidArguments: the arguments are too large, or Postgres cannot store the submission.
            IdempotencyConflict: the key was used for another call.
            DatabaseUnavailable: Postgres did not respond.
            QueueUnavailable: the same of Redis, for a job without a record.
        """
        self.check_size(submission)
        if not submission.job.options.record:
            return await self._transient.submit(submission)
        submitted = await self._batch(self._new_record(submission))
        if isinstance(submitted, CplaneError):
            raise submitted
        if isinstance(submitted, Exception):
            reason = str(submitted).partition("\n")[0][:MAX_REASON_CHARS]
            raise InvalidArguments(
                f"'{submission.job.name}' cannot be recorded: Postgres refused it: {reason}"
            ) from submitted
        return submitted

    async def submit_many(self, submissions: Sequence[Submission]) -> list[Submitted]:
        """Submit a batch of one job, of which each has passed `check_size`, in one statement and one call of Redis.

        Raises:
            DatabaseUnavailable, QueueUnavailable: as `submit` does.
        """
        if not submissions:
            return []
        if not submissions[0].job.options.record:
            return await self._transient.submit_many(submissions)
        accepted: list[Submitted] = []
        for result in await self._send([self._new_record(submission) for submission in submissions]):
            if isinstance(result, IdempotencyConflict):
                raise result
            accepted.append(result)
        return accepted

    def handle(self, submission: Submission, submitted: Submitted) -> Handle[Any]:
        """Return the handle of a submitted job."""
        if not submission.job.options.record:
            return Handle(submitted.id, self._transient.source(submission), submission.job)
        return Handle(submitted.id, self._recorded, submission.job, created=submitted.created)

    def check_size(self, submission: Submission) -> None:
        """Raise InvalidArguments if the arguments are larger than a body may be."""
        size = len(submission.args_json)
        if size > self._max_bytes:
            raise InvalidArguments(
                f"the arguments of '{submission.job.name}' are {size} bytes, the limit is {self._max_bytes}",
                hint="keep large data in files or tables and pass a reference",
            )

    def _new_record(self, submission: Submission) -> NewRecord:
        return NewRecord(
            id=new_id(),
            job=submission.job.name,
            queue=submission.queue,
            priority=submission.priority,
            args_json=submission.args_json,
            delay_s=submission.delay_s,
            run_at=submission.run_at,
            key=submission.key,
            request_hash=_request_hash(submission) if submission.key is not None else None,
            limit_keys=submission.limit_keys(self._per_host),
            timeout_s=submission.timeout_s,
        )


def _size(record: NewRecord) -> int:
    return len(record.args_json)


def is_large(args: Mapping[str, JsonValue]) -> bool:
    """Whether validating takes so long that the loop should not wait for it."""
    return any([isinstance(value, SIZED) and len(value) > LARGE_ARGUMENT for value in args.values()])  # noqa: C419  a generator costs more


def _is_early(records: Sequence[NewRecord]) -> bool:
    """Whether a batch is scheduled before it is on disk. One with a key is not: another call may be told of its record."""
    return len(records) <= EARLY_BATCH and all(record.key is None for record in records)


def _request_hash(submission: Submission) -> bytes:
    """What makes two calls the same: the job, its arguments in canonical order, and its options."""
    args = msgspec.json.decode(submission.args_json)
    at = None if submission.run_at is None else submission.run_at.astimezone(UTC)
    same: list[object] = [submission.job.name, args, submission.queue, submission.delay_s, at]
    if submission.priority is not Priority.NORMAL:
        same.append(submission.priority)
    if submission.timeout_s is not None:
        same.append(submission.timeout_s)
    return hashlib.sha256(msgspec.json.encode(same, order="sorted")).digest()
