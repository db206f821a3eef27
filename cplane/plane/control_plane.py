"""The control plane: submits jobs, reads, cancels and replays them. What HTTP, the CLI and application code all use."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime
from types import TracebackType
from typing import Any, Self
from uuid import UUID

from pydantic import JsonValue

from cplane.artifacts import ArtifactStore, open_artifacts
from cplane.errors import CplaneError, InfrastructureError
from cplane.jobs import submission as current_plane
from cplane.jobs.handle import Handle
from cplane.jobs.names import quarantine_of
from cplane.jobs.options import Options
from cplane.jobs.registry import Registry, load_jobs
from cplane.jobs.states import State
from cplane.jobs.submission import Submission
from cplane.keyring import Keyring
from cplane.plane.client import AnyJobs
from cplane.plane.dead_letters import DeadLetters
from cplane.plane.recorded import RecordedJobs, result_json
from cplane.plane.scheduler import Scheduler
from cplane.plane.submissions import Accepted, Submissions, is_large
from cplane.plane.transient import TransientJob, TransientJobs
from cplane.plane.waiters import Waiters
from cplane.postgres import migrations
from cplane.postgres.database import Database
from cplane.postgres.models import ArtifactRecord, AttemptRecord, JobRecord
from cplane.postgres.rows import RecordFilter, RecordSummary
from cplane.postgres.store import Store
from cplane.redis.connection import connect
from cplane.redis.dead_letters import DeadLetterStream
from cplane.redis.events import Event, Events
from cplane.redis.limiter import Limiter, LimiterStats
from cplane.redis.messages import QueueStats
from cplane.redis.queue import Queue
from cplane.sessions.store import SessionStore
from cplane.settings import CplaneSettings, load_settings

CHECK_TIMEOUT_S = 2.5
"""How long `ready` waits for each server."""


class ControlPlane:
    """Opens the gateways from the settings, makes itself the process's current plane, and closes in reverse order.

    Attributes of an open plane: `settings`, `database`, `store`, `queue`, `limiter`, `events`, `artifacts`, `sessions`, `dead_letters`.

    Args:
        settings: by default those of the environment (`CPLANE_*`).

    Raises:
        InvalidSettings: when opened, if CPLANE_DATABASE_URL or CPLANE_REDIS_URL is missing or wrong.

    Example:
        ```python
        from cplane import ControlPlane, State, job


        @job
        async def add(x: int, y: int) -> int:
            return x + y


        async with ControlPlane() as plane:
            handle = await add.submit(1, 2)
            assert await handle.result(timeout=30) == 3
            record = await plane.record(handle.id)
            assert (record.job, record.state) == ("add", State.SUCCEEDED)
        ```
    """

    store: Store
    database: Database
    queue: Queue
    dead_letters: DeadLetters
    limiter: Limiter
    events: Events
    artifacts: ArtifactStore
    sessions: SessionStore
    settings: CplaneSettings

    def __init__(self, settings: CplaneSettings | None = None) -> None:
        self._given = settings
        self._open = AsyncExitStack()
        self._registry: Registry | None = None

    async def __aenter__(self) -> Self:
        self.settings = self._given or load_settings()
        async with AsyncExitStack() as opening:
            await self._open_gateways(opening)
            await self._open_parts(opening)
            current_plane.enter(self)
            opening.callback(current_plane.leave, self)
            self._open = opening.pop_all()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self._open.aclose()

    async def _open_gateways(self, opening: AsyncExitStack) -> None:
        """Open Postgres, Redis and the artifact store."""
        max_bytes = self.settings.artifact_max_mb * 1024 * 1024
        self.artifacts = await asyncio.to_thread(open_artifacts, self.settings.artifacts_url, max_bytes)
        self.database = await opening.enter_async_context(Database(self.settings.database_url))
        self.redis = await opening.enter_async_context(connect(self.settings.redis_url))
        self.store, self.queue, self.events = Store(self.database), Queue(self.redis), Events(self.redis)
        self.limiter = Limiter(self.redis)
        self.sessions = SessionStore(self.database, Keyring(self.settings.secret_key))

    async def _open_parts(self, opening: AsyncExitStack) -> None:
        """Open what the plane's methods hand on to."""
        waiters = await opening.enter_async_context(Waiters(self.store, self.queue, self.events))
        transient = await opening.enter_async_context(
            TransientJobs(self.queue, self.events, waiters, self.settings.per_host)
        )
        scheduler = await opening.enter_async_context(Scheduler(self.queue))
        self._recorded = RecordedJobs(self.store, self.events, waiters, scheduler)
        self._submissions = await opening.enter_async_context(
            Submissions(self.store, scheduler, self._recorded, transient, self.settings)
        )
        self._jobs = AnyJobs(self._recorded, transient)
        self.dead_letters = DeadLetters(DeadLetterStream(self.redis), self.queue)

    # submitting

    async def submit(self, submission: Submission) -> Handle[Any]:
        """Record one job, then schedule it. Raises as `Submissions.submit` does."""
        return self._submissions.handle(submission, await self._submissions.submit(submission))

    async def submit_many(self, submissions: list[Submission]) -> list[Handle[Any]]:
        """Record a batch of one job, of which each has passed `check_size`, then schedule it. Raises as `Submissions.submit_many` does."""
        submitted = await self._submissions.submit_many(submissions)
        return [self._submissions.handle(each, record) for each, record in zip(submissions, submitted, strict=True)]

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
        timeout: float | None = None,
    ) -> Handle[Any]:
        """Submit a job by name, with arguments that came as JSON, and return its handle. Arguments and errors are those of `accept`."""
        accepted = await self.accept(
            name, args, key=key, delay=delay, at=at, queue=queue, priority=priority, timeout=timeout
        )
        return self._submissions.handle(accepted.submission, accepted.submitted)

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
        timeout: float | None = None,
    ) -> Accepted:
        """Submit a job by name, with arguments that came as JSON. Nothing is read again to return the record.

        Args:
            name: the job's name.
            args: its arguments by name.
            key: an idempotency key, at most 255 characters.
            delay: seconds from now until it may start.
            at: an aware datetime at which it may start.
            queue: another queue than the job's own.
            priority: "high", "normal" or "low", instead of the job's own.
            timeout: maximum duration of each attempt, seconds; at most the job's own.

        Returns:
            The submission and its record; of a key that was used for the same call, the earlier record.

        Raises:
            UnknownJob: no such job was imported; the message names those that were.
            InvalidArguments: they do not fit; `problems` has the path to each field.
            IdempotencyConflict: the key was used for another call.
            DatabaseUnavailable, QueueUnavailable: it is unknown whether the job was recorded.
        """
        job = self.catalog.get(name)
        call = job.using(delay=delay, at=at, key=key, queue=queue, priority=priority, timeout=timeout)
        args_json = await asyncio.to_thread(job.encode_json, args) if is_large(args) else job.encode_json(args)
        submission = call.submission(args_json)
        return Accepted(submission, await self._submissions.submit(submission))

    @property
    def catalog(self) -> Registry:
        """Every job this process knows, the built-ins included."""
        if self._registry is None:
            self._registry = load_jobs(self.settings.imports)
        return self._registry

    def options(self, name: str) -> Options:
        """Return the options a job was declared with. Raises UnknownJob."""
        return self.catalog.get(name).options

    def check_size(self, submission: Submission) -> None:
        """Raise InvalidArguments if the arguments are larger than a body may be."""
        self._submissions.check_size(submission)

    # reading

    async def record(self, record_id: UUID) -> JobRecord:
        """Return one record. Raises RecordNotFound."""
        return await self.store.get(record_id)

    async def job(self, job_id: UUID) -> JobRecord | TransientJob:
        """Return one job: its record, or of a job without one what Redis holds, during an outage of Postgres too.

        Raises:
            RecordNotFound: there is none.
            DatabaseUnavailable: Postgres did not respond, and Redis holds no job of that id.
        """
        return await self._jobs.ask(job_id, lambda jobs: jobs.job(job_id))

    async def records(
        self, where: RecordFilter | None = None, *, before: UUID | None = None, limit: int = 50
    ) -> list[RecordSummary]:
        """Return up to `limit` records, newest first, those older than the id `before`; `record` has the rest of each."""
        return await self.store.find(where or RecordFilter(), before=before, limit=limit)

    async def attempts(self, record_id: UUID) -> list[AttemptRecord]:
        """Return the attempts of a record, first to last."""
        return await self.store.attempts(record_id)

    async def artifacts_of(self, record_ids: Sequence[UUID]) -> list[ArtifactRecord]:
        """Return the files of records, of each name the latest."""
        return await self.store.artifacts(record_ids)

    @asynccontextmanager
    async def open_artifact(
        self, record_id: UUID, name: str
    ) -> AsyncGenerator[tuple[ArtifactRecord, AsyncIterator[bytes]]]:
        """Open one file of a record: its reference and its chunks. Raises RecordNotFound, ArtifactNotFound, ArtifactsUnavailable."""
        artifact = await self.store.artifact(record_id, name)
        async with self.artifacts.open(artifact.path) as chunks:
            yield artifact, chunks

    async def wait(self, record_id: UUID, timeout: float | None = None) -> JobRecord | TransientJob:
        """Return the job once it has ended; waits by push.

        Args:
            record_id: its id.
            timeout: seconds to wait; None waits for ever.

        Raises:
            RecordNotFound: there is none.
            DatabaseUnavailable: as `job` does; a wait that has begun goes on through an outage.
            TimeoutError: it has not ended in time.
        """
        async with asyncio.timeout(timeout):
            return await self._jobs.ask(record_id, lambda jobs: jobs.wait(record_id))

    async def state(self, record_id: UUID) -> State:
        """Return the state now. Raises RecordNotFound."""
        return (await self.job(record_id)).state

    async def result(self, record_id: UUID, timeout_s: float | None) -> bytes:
        """Return the JSON of a result, once it is there. Raises JobFailed, JobCancelled, RecordNotFound, TimeoutError."""
        return result_json(await self.wait(record_id, timeout_s))

    async def progress(self, record_id: UUID) -> AsyncIterator[list[Event]]:
        """Yield batches of this record's events from now on, for ever; an empty batch first, once it listens."""
        async for events in self.events.follow():
            yield [event for event in events if event.record_id == record_id]

    async def ready(self) -> dict[str, str | None]:
        """Return what this plane depends on: name → what is wrong with it, or None."""
        checks = {"database": _within(migrations.check(self.database)), "redis": _within(self.queue.ping())}
        results = await asyncio.gather(*checks.values(), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException) and not isinstance(result, CplaneError):
                raise result
        return {name: None if result is None else str(result) for name, result in zip(checks, results, strict=True)}

    # steering

    async def cancel(self, record_id: UUID) -> State:
        """Cancel a job: a queued one at once, a running one as soon as its worker is notified. Returns its state then.

        Raises:
            RecordNotFound: there is none.
            InvalidTransition: it has ended.
            DatabaseUnavailable: as `job` does.
        """
        return await self._jobs.ask(record_id, lambda jobs: jobs.cancel(record_id))

    async def retry(self, record_id: UUID) -> None:
        """Run a failed or cancelled job again, with all budgets reset. Raises RecordNotFound, InvalidTransition."""
        await self._jobs.ask(record_id, lambda jobs: jobs.retry(record_id))

    def retry_many(
        self, where: RecordFilter, *, before: UUID | None = None, limit: int | None = None
    ) -> AsyncIterator[list[UUID]]:
        """Run failed and cancelled jobs again, newest first.

        Args:
            where: which.
            before: only those older than this id.
            limit: how many, at most; None: all.

        Returns:
            An iterator; each step yields the ids of a chunk that is queued again, and the last of them is where to go on. A record that
            another call replays at the same time is left to it. One that fails again meanwhile is not replayed twice.
        """
        return self._recorded.retry_many(where, before=before, limit=limit)

    async def count_retriable(self, where: RecordFilter) -> int:
        """Return how many jobs `retry_many` would run again."""
        return await self.store.count_replayable(where)

    # queues

    async def queues(self) -> list[QueueStats]:
        """Return the state of each queue: those of the settings, of the jobs known here, and those with queued records.

        A queue is followed by its quarantine, where jobs wait to run alone, if there are any.
        """
        names = {job.options.queue for job in self.catalog.jobs.values()}
        names.update(self.settings.queues, await self.store.queues())
        return [stats for name in sorted(names) for stats in await self._stats(name)]

    async def _stats(self, queue: str) -> list[QueueStats]:
        """Return the state of a queue, and of its quarantine if anything is in it."""
        stats, alone = await self.queue.stats(queue), await self.queue.stats(quarantine_of(queue))
        return [stats, alone] if alone.ready or alone.scheduled or alone.running else [stats]

    async def limiter_stats(self, limit: int = 100) -> list[LimiterStats]:
        """Return the state of hosts and sessions that jobs wait for, that cool down or have no free slot; latest waited for first."""
        return await self.limiter.stats(limit)


async def _within(check: Coroutine[Any, Any, None]) -> None:
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_S):
            await check
    except TimeoutError:
        raise InfrastructureError(f"no answer within {CHECK_TIMEOUT_S:g} s") from None
