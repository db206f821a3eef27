"""The control plane: submits jobs, asks after them, cancels and replays them. What HTTP, the CLI and application code all use."""

import asyncio
import hashlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self
from uuid import UUID

import msgspec
import structlog
from pydantic import JsonValue
from pydantic_core import to_json

from cplane.artifacts import ArtifactStore, open_artifacts
from cplane.errors import (
    CplaneError,
    DatabaseUnavailable,
    IdempotencyConflict,
    InfrastructureError,
    InvalidArguments,
    InvalidTransition,
    JobCancelled,
    JobFailed,
    QueueUnavailable,
    RecordNotFound,
)
from cplane.jobs import submission as current_plane
from cplane.jobs.handle import Handle
from cplane.jobs.options import Options
from cplane.jobs.registry import Registry, load_jobs
from cplane.jobs.states import Priority, State
from cplane.jobs.submission import Submission
from cplane.keyring import Keyring
from cplane.plane.dead_letters import DeadLetters
from cplane.plane.transient import TransientJob, TransientJobs
from cplane.plane.waiters import Waiters
from cplane.postgres import migrations
from cplane.postgres.database import Database
from cplane.postgres.models import ArtifactRecord, AttemptRecord, JobRecord
from cplane.postgres.rows import NewRecord, RecordFilter, Standing, Submitted
from cplane.postgres.store import Store
from cplane.redis.connection import connect
from cplane.redis.dead_letters import DeadLetterStream
from cplane.redis.events import CONTROL, EVENTS, Event, Events
from cplane.redis.limiter import Limiter, LimiterStats
from cplane.redis.messages import EnqueueRequest, QueueStats
from cplane.redis.queue import Queue
from cplane.runtime.batch import Batch
from cplane.runtime.ids import new_id
from cplane.sessions.store import Sessions
from cplane.settings import CplaneSettings, load_settings

PUSH_WAIT_S = 1.0
"""How long a submit waits for Redis before it answers: the record is the truth, the reconciler pushes what Redis missed."""

CHECK_S = 2.5
"""How long `ready` waits for each server."""

RETRY_CHUNK = 1000
"""Records that are run again in one statement."""

SIZED = (str, list, dict)  # faster to ask for than a union
LARGE = 10_000
"""Arguments with a text, list or object of so many parts are validated in a thread: they would hold the loop."""

EARLY = 4
"""A group of so few is scheduled while it gets to disk, with one statement more: it came when there was little to do."""

PUSH_PAUSE_S = 1.0
"""After Redis failed, pushes pause so long: callers do not queue up behind a dead server."""

log = structlog.get_logger("cplane")

Recorded = Submitted | IdempotencyConflict
"""What a submission led to."""


class Accepted(msgspec.Struct, frozen=True):
    """A submission, and the record it led to."""

    submission: Submission
    submitted: Submitted


class ControlPlane:
    """Opens the gateways from the settings, makes itself the process's current plane, and closes in reverse order.

        async with ControlPlane() as plane:
            handle = await add.submit(1, 2)

    Attributes of an open plane: `settings`, `database`, `store`, `queue`, `events`, `artifacts`, `sessions`.

    Raises:
        InvalidSettings: when opened, if CPLANE_DATABASE_URL or CPLANE_REDIS_URL is missing or wrong.
    """

    store: Store
    database: Database
    queue: Queue
    dead_letters: DeadLetters
    limiter: Limiter
    events: Events
    artifacts: ArtifactStore
    sessions: Sessions
    settings: CplaneSettings

    def __init__(self, settings: CplaneSettings | None = None) -> None:
        self._given = settings
        self._open = AsyncExitStack()
        self._push_again_at = 0.0
        self._registry: Registry | None = None

    async def __aenter__(self) -> Self:
        self.settings = self._given or load_settings()
        async with AsyncExitStack() as opening:
            self.artifacts = await asyncio.to_thread(open_artifacts, self.settings.artifacts_url)
            self.database = await opening.enter_async_context(Database(self.settings.database_url))
            redis = await opening.enter_async_context(connect(self.settings.redis_url))
            self.redis = redis
            self.store, self.queue, self.events = Store(self.database), Queue(redis), Events(redis)
            self.dead_letters = DeadLetters(DeadLetterStream(redis), self.queue)
            self.limiter, self._per_host = Limiter(redis), self.settings.per_host
            self.sessions = Sessions(self.database, Keyring(self.settings.secret_key))
            self._waiters = await opening.enter_async_context(Waiters(self.store, self.queue, self.events))
            self._transient = await opening.enter_async_context(
                TransientJobs(self.queue, self.events, self._waiters, self._per_host)
            )
            self._schedule = await opening.enter_async_context(Batch(self._push, name="schedule submitted jobs"))
            self._record = await opening.enter_async_context(
                Batch(self._accept_group, name="record submitted jobs", overlap=True)
            )
            current_plane.enter(self)
            opening.callback(current_plane.leave, self)
            self._open = opening.pop_all()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self._open.aclose()

    # submitting

    async def submit(self, submission: Submission) -> Handle[Any]:
        """Record one job, then schedule it.

        Raises:
            InvalidArguments: they are too large.
            IdempotencyConflict: the key was used for another call.
            DatabaseUnavailable: Postgres did not answer.
        """
        return self._handle(submission, await self._submit(submission))

    async def _submit(self, submission: Submission) -> Submitted:
        self.check_size(submission)
        if not submission.job.options.record:
            return await self._transient.submit(submission)
        submitted = await self._record(self._new_record(submission))
        if isinstance(submitted, IdempotencyConflict):
            raise submitted
        return submitted

    async def submit_many(self, submissions: list[Submission]) -> list[Handle[Any]]:
        """Record a batch, of which each has passed `check_size`, in one statement, then schedule it in one push.

        Raises:
            DatabaseUnavailable: Postgres did not answer.
        """
        if not submissions:
            return []
        if not submissions[0].job.options.record:
            placed = await self._transient.submit_many(submissions)
            return [self._handle(submission, each) for submission, each in zip(submissions, placed, strict=True)]
        handles: list[Handle[Any]] = []
        records = [self._new_record(submission) for submission in submissions]
        answers = await self._accept_group(records)
        for submission, submitted in zip(submissions, answers, strict=True):
            if isinstance(submitted, IdempotencyConflict):
                raise submitted
            handles.append(self._handle(submission, submitted))
        return handles

    async def create_job(
        self,
        name: str,
        args: Mapping[str, JsonValue],
        *,
        key: str | None = None,
        delay: float | None = None,
        at: datetime | None = None,
        queue: str | None = None,
        priority: str | None = None,
    ) -> Handle[Any]:
        """Submit a job by name, with arguments that came as JSON; answers its handle. Raises what `accept` does."""
        accepted = await self.accept(name, args, key=key, delay=delay, at=at, queue=queue, priority=priority)
        return self._handle(accepted.submission, accepted.submitted)

    async def accept(
        self,
        name: str,
        args: Mapping[str, JsonValue],
        *,
        key: str | None = None,
        delay: float | None = None,
        at: datetime | None = None,
        queue: str | None = None,
        priority: str | None = None,
    ) -> Accepted:
        """Submit a job by name, with arguments that came as JSON; answers what was recorded, without reading it again.

        Raises:
            UnknownJob: no such job was imported; the message names those that were.
            InvalidArguments: they do not fit; `problems` has the path to each field.
        """
        job = self.catalog.get(name)
        call = job.using(delay=delay, at=at, key=key, queue=queue, priority=priority)
        args_json = await asyncio.to_thread(job.encode_json, args) if _is_large(args) else job.encode_json(args)
        submission = call.submission(args_json)
        return Accepted(submission, await self._submit(submission))

    @property
    def catalog(self) -> Registry:
        """Every job this process knows, the built-ins included."""
        if self._registry is None:
            self._registry = load_jobs(self.settings.imports)
        return self._registry

    def options(self, name: str) -> Options:
        """What the job was declared with. Raises UnknownJob."""
        return self.catalog.get(name).options

    def check_size(self, submission: Submission) -> None:
        """Raises InvalidArguments if the arguments are larger than a body may be."""
        if len(submission.args_json) > self.settings.max_body_bytes:
            raise InvalidArguments(
                f"the arguments of '{submission.job.name}' are {len(submission.args_json)} bytes, the limit is {self.settings.max_body_bytes}",
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
        )

    def _handle(self, submission: Submission, submitted: Submitted) -> Handle[Any]:
        if not submission.job.options.record:
            return Handle(submitted.id, self._transient.source(submission), submission.job)
        return Handle(submitted.id, self, submission.job, created=submitted.created)

    async def _accept_group(self, records: Sequence[NewRecord]) -> list[Recorded]:
        """Record a group, then schedule it in one push; nobody waits for that too long, and it happens all the same.

        An early one gets to disk meanwhile. A worker's start, committed later, takes it there too: what is not on disk is not run.
        """
        early = _is_early(records)
        answers = await self.store.submit(records, early=early)
        pushes = [
            EnqueueRequest.of_record(
                record.queue, record.priority, answer.id, record.job, answer.delay_ms, limit_keys=record.limit_keys
            )
            for record, answer in zip(records, answers, strict=True)
            if isinstance(answer, Submitted) and answer.created
        ]
        scheduled = self._schedule.put(pushes)
        if early:
            await self.store.flush()
        await asyncio.wait([scheduled], timeout=PUSH_WAIT_S)
        return answers

    async def _push(self, groups: list[list[EnqueueRequest]]) -> list[None]:
        """Schedule what was recorded; when Redis is away the records wait for the reconciler."""
        pushes = [push for group in groups for push in group]
        try:
            if pushes and time.monotonic() >= self._push_again_at:
                await self.queue.enqueue(pushes)
        except QueueUnavailable as error:
            self._push_again_at = time.monotonic() + PUSH_PAUSE_S
            log.warning("jobs are recorded but not scheduled yet", count=len(pushes), reason=str(error))
        return [None] * len(groups)

    # asking

    async def record(self, record_id: UUID) -> JobRecord:
        """One record. Raises RecordNotFound."""
        return await self.store.get(record_id)

    async def job(self, job_id: UUID) -> JobRecord | TransientJob:
        """One job: its record, or of a transient job what Redis holds, while Postgres is away too.

        Raises:
            RecordNotFound: there is none.
            DatabaseUnavailable: Postgres did not answer, and Redis holds no transient job of that id.
        """
        try:
            return await self.store.get(job_id)
        except RecordNotFound:
            return await self._transient.job(job_id)
        except DatabaseUnavailable:
            if (found := await self._without_postgres(job_id)) is None:
                raise
            return found

    async def _without_postgres(self, job_id: UUID) -> TransientJob | None:
        """What Redis knows while Postgres is away: a transient job, or nothing that could be told."""
        with suppress(RecordNotFound, QueueUnavailable):
            return await self._transient.job(job_id)
        return None

    async def records(
        self, where: RecordFilter | None = None, *, before: UUID | None = None, limit: int = 50
    ) -> list[JobRecord]:
        """Records newest first, those older than the id `before`."""
        return await self.store.find(where or RecordFilter(), before=before, limit=limit)

    async def attempts(self, record_id: UUID) -> list[AttemptRecord]:
        """The runs of a record, first to last."""
        return await self.store.attempts(record_id)

    async def artifacts_of(self, record_ids: Sequence[UUID]) -> list[ArtifactRecord]:
        """The files of records, of each name the latest."""
        return await self.store.artifacts(record_ids)

    @asynccontextmanager
    async def open_artifact(
        self, record_id: UUID, name: str
    ) -> AsyncGenerator[tuple[ArtifactRecord, AsyncIterator[bytes]]]:
        """One file of a record: its reference and its chunks. Raises RecordNotFound, ArtifactNotFound, ArtifactsUnavailable."""
        artifact = await self.store.artifact(record_id, name)
        async with self.artifacts.open(artifact.path) as chunks:
            yield artifact, chunks

    async def wait(self, record_id: UUID, timeout: float | None = None) -> JobRecord | TransientJob:
        """The record once it is final, or a transient job once it has ended; waits by push.

        Raises:
            RecordNotFound: there is none.
            DatabaseUnavailable: as `job` does; who has begun to wait waits through an outage.
            TimeoutError: it is not final after `timeout` seconds.
        """
        async with asyncio.timeout(timeout):
            try:
                return await self._waiters.wait(record_id)
            except RecordNotFound:
                return await self._transient.wait(record_id)
            except DatabaseUnavailable:
                if (found := await self._without_postgres(record_id)) is None:
                    raise
                return found if found.state.final else await self._transient.wait(record_id)

    async def state(self, record_id: UUID) -> State:
        """The state now. Raises RecordNotFound."""
        return (await self.job(record_id)).state

    async def result(self, record_id: UUID, timeout_s: float | None) -> bytes:
        """The JSON of a result, once it is there. Raises JobFailed, JobCancelled, TimeoutError."""
        record = await self.wait(record_id, timeout_s)
        if record.state == State.FAILED:
            raise JobFailed(
                record.job, record.error_type or "Error", record.error_message or "", record.error_traceback or ""
            )
        if record.state == State.CANCELLED:
            raise JobCancelled(f"job '{record.job}' was cancelled")
        return to_json(record.result)

    async def progress(self, record_id: UUID) -> AsyncIterator[list[Event]]:
        """Batches of this record's events from now on, for ever; an empty batch first, once listening."""
        async for events in self.events.follow():
            yield [event for event in events if event.record_id == record_id]

    async def ready(self) -> dict[str, str | None]:
        """What this plane depends on: name → what is wrong with it, or None."""

        async def within(check: Coroutine[Any, Any, None]) -> None:
            try:
                async with asyncio.timeout(CHECK_S):
                    await check
            except TimeoutError:
                raise InfrastructureError(f"no answer within {CHECK_S:g} s") from None

        checks = {"database": within(migrations.check(self.database)), "redis": within(self.queue.ping())}
        answers = await asyncio.gather(*checks.values(), return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException) and not isinstance(answer, CplaneError):
                raise answer
        return {name: None if answer is None else str(answer) for name, answer in zip(checks, answers, strict=True)}

    # steering

    async def cancel(self, record_id: UUID) -> State:
        """Cancel a job: a queued one at once, a running one as soon as its worker hears of it. Answers the state it is left in.

        Raises:
            RecordNotFound: there is none.
            InvalidTransition: it is final.
            DatabaseUnavailable: as `job` does.
        """
        try:
            state = await self.store.cancel(record_id)
        except RecordNotFound:
            return await self._transient.cancel(record_id)
        except DatabaseUnavailable:
            if await self._without_postgres(record_id) is None:
                raise
            return await self._transient.cancel(record_id)
        event = Event(record_id, state)
        try:
            async with asyncio.timeout(PUSH_WAIT_S):
                await self.events.publish([event], CONTROL if state is State.RUNNING else EVENTS)
        except (QueueUnavailable, TimeoutError):
            log.warning("the cancel is recorded; a worker hears of it when it renews its lease", record=str(record_id))
        return state

    async def retry(self, record_id: UUID) -> None:
        """Run a failed or cancelled job again, with all budgets new. Raises RecordNotFound, InvalidTransition."""
        try:
            standing = await self.store.replay(record_id)
        except RecordNotFound:
            await self._transient.job(record_id)
            raise InvalidTransition("the job has no record to run again from", hint="submit it once more") from None
        await self._schedule_again([standing])

    async def retry_many(
        self, where: RecordFilter, *, before: UUID | None = None, limit: int | None = None
    ) -> AsyncIterator[list[UUID]]:
        """Run failed and cancelled jobs again, newest first, all that fit or at most `limit`, those older than the id `before`.

        Each step answers the ids of a chunk that is queued again; the last of them is where to go on. A record that another call
        replays at the same time is left to it, and one that fails again meanwhile is not met twice.
        """
        left = limit
        while left is None or left > 0:
            chunk = RETRY_CHUNK if left is None else min(RETRY_CHUNK, left)
            standings = await self.store.replay_many(where, before=before, limit=chunk)
            if not standings:
                return
            await self._schedule_again(standings)
            ids = sorted((standing.id for standing in standings), reverse=True)
            before = ids[-1]
            left = None if left is None else left - len(ids)
            yield ids

    async def count_retriable(self, where: RecordFilter) -> int:
        """How many jobs `retry_many` would run again."""
        return await self.store.count_replayable(where)

    async def _schedule_again(self, standings: Sequence[Standing]) -> None:
        pushes = [
            EnqueueRequest.of_record(
                each.queue, each.priority, each.id, each.job, 0, limit_keys=each.limit_keys, late_ms=0
            )
            for each in standings
        ]
        await asyncio.wait([self._schedule.put(pushes)], timeout=PUSH_WAIT_S)

    # queues

    async def queues(self) -> list[QueueStats]:
        """How each queue stands: those of the settings, of the jobs known here, and those in which records wait."""
        names = {job.options.queue for job in self.catalog.jobs.values()}
        names.update(self.settings.queues, await self.store.queues())
        return [await self.queue.stats(name) for name in sorted(names)]

    async def limiter_stats(self, limit: int = 100) -> list[LimiterStats]:
        """The hosts for which jobs wait, that cool down, or whose places are taken; those somebody waited for last come first."""
        return await self.limiter.stats(limit)


def _is_large(args: Mapping[str, JsonValue]) -> bool:
    """Whether validating takes so long that the loop should not wait for it."""
    return any([isinstance(value, SIZED) and len(value) > LARGE for value in args.values()])  # noqa: C419  a generator costs more


def _is_early(records: Sequence[NewRecord]) -> bool:
    """Whether a group is scheduled before it is on disk. One with a key is not: another call may be told of its record."""
    return len(records) <= EARLY and all(record.key is None for record in records)


def _request_hash(submission: Submission) -> bytes:
    """What makes two calls the same: the job, its arguments in canonical order, and its options."""
    args = msgspec.json.decode(submission.args_json)
    at = None if submission.run_at is None else submission.run_at.astimezone(UTC)
    same: list[object] = [submission.job.name, args, submission.queue, submission.delay_s, at]
    if submission.priority is not Priority.NORMAL:
        same.append(submission.priority)
    return hashlib.sha256(msgspec.json.encode(same, order="sorted")).digest()
