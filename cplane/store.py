"""Records in Postgres: one verb a method, one guarded statement a verb.

Every move names the state it starts from, and a worker's moves name the attempt and the token of its lease as well; no row means
"not yours: stop". Batches travel as arrays. Rows that several transactions may want at once are locked in the order of their ids,
so that batches cannot deadlock. Deadlines are compared with the database's clock, never with a worker's.
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast
from uuid import UUID

from sqlalchemy import Row, TextClause, text
from sqlalchemy.dialects.postgresql import distinct_on
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from cplane.context import Artifact, Progress
from cplane.database import Database
from cplane.errors import ArtifactNotFound, IdempotencyConflict, IllegalMove, KeyInUse, RecordNotFound
from cplane.records import ArtifactRecord, AttemptRecord, JobRecord
from cplane.states import MAX_CRASHES, AttemptState, Cause, State

Fence = tuple[UUID, int]
"""A record and an attempt of it: a worker may meanwhile have lost one and been granted the next."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewRecord:
    """A record to be. `delay_s` counts from now by the database's clock; `run_at` is absolute; neither: at once."""

    id: UUID
    job: str
    queue: str
    args_json: bytes
    delay_s: float | None = None
    run_at: datetime | None = None
    key: str | None = None
    request_hash: bytes | None = None


@dataclass(frozen=True, slots=True)
class Submitted:
    """The record a submission led to: the new one, or the earlier one of the same idempotency key."""

    id: UUID
    created: bool
    delay_ms: int
    """Until it is due, by the database's clock."""
    state: State


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """A record this worker has started: `attempt` and `token` are its fence."""

    id: UUID
    attempt: int
    token: str
    job: str
    queue: str
    args_json: bytes
    failures: int
    interruptions: int


@dataclass(frozen=True, slots=True)
class Error:
    """What an attempt raised, as text."""

    type: str
    message: str
    traceback: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Renew:
    """One lease to extend, with the progress of its attempt (None: as it was)."""

    id: UUID
    attempt: int
    token: str
    progress: Progress | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """How an attempt leaves its record: final, or queued again in `delay_s` seconds."""

    id: UUID
    attempt: int
    token: str
    state: State
    attempt_state: AttemptState
    result_json: bytes | None = None
    error: Error | None = None
    delay_s: float = 0.0
    cause: Cause = Cause.SUBMIT
    """Why the next attempt will be made, when queued."""
    failures: int = 0
    interruptions: int = 0
    """What this attempt adds to the budgets."""
    progress: Progress | None = None


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a record is, for a schedule that does not know: `due_in_ms` until it may start, or until its lease ends."""

    id: UUID
    state: State
    job: str
    queue: str
    due_in_ms: int


@dataclass(frozen=True, slots=True)
class RecordFilter:
    """Which records a list shows."""

    state: State | None = None
    job: str | None = None
    queue: str | None = None


class Store:
    """The verbs. Every one raises DatabaseUnavailable within 6 seconds when Postgres does not answer."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # what clients do

    async def submit(self, records: Sequence[NewRecord]) -> list[Submitted | IdempotencyConflict]:
        """∅ → queued. Answers in order; a key that was used for something else answers the conflict."""
        values = {
            "ids": [record.id for record in records],
            "jobs": [record.job for record in records],
            "queues": [record.queue for record in records],
            "args": [record.args_json.decode() for record in records],
            "delays": [record.delay_s for record in records],
            "run_ats": [record.run_at for record in records],
            "keys": [record.key for record in records],
            "hashes": [record.request_hash for record in records],
        }
        async with self._database.session() as session:
            rows = {row.id: row for row in await _rows(session, _SUBMIT, values)}
            keys = [record.key for record in records if record.id not in rows and record.key is not None]
            earlier = {row.key: row for row in await _rows(session, _BY_KEY, {"keys": keys})} if keys else {}
        return [_submitted(record, rows.get(record.id), earlier.get(record.key)) for record in records]

    async def get(self, record_id: UUID) -> JobRecord:
        """One record, whole.

        Raises:
            RecordNotFound: there is none.
        """
        async with self._database.session() as session:
            record = await session.get(JobRecord, record_id)
        if record is None:
            raise RecordNotFound(f"there is no job with the id {record_id}")
        return record

    async def get_many(self, record_ids: Sequence[UUID]) -> list[JobRecord]:
        """Those of the records that exist, in no order."""
        async with self._database.session() as session:
            return list(await session.exec(select(JobRecord).where(col(JobRecord.id).in_(record_ids))))

    async def find(self, where: RecordFilter, *, before: UUID | None = None, limit: int = 50) -> list[JobRecord]:
        """Records newest first, those older than the id `before`."""
        query = select(JobRecord).order_by(col(JobRecord.id).desc()).limit(limit)
        for column, value in (
            (JobRecord.state, where.state),
            (JobRecord.job, where.job),
            (JobRecord.queue, where.queue),
        ):
            if value is not None:
                query = query.where(col(column) == value)
        if before is not None:
            query = query.where(col(JobRecord.id) < before)
        async with self._database.session() as session:
            return list(await session.exec(query))

    async def attempts(self, record_id: UUID) -> list[AttemptRecord]:
        """The runs of a record, first to last."""
        query = select(AttemptRecord).where(AttemptRecord.job_id == record_id).order_by(col(AttemptRecord.attempt))
        async with self._database.session() as session:
            return list(await session.exec(query))

    async def cancel(self, record_id: UUID) -> State:
        """queued → cancelled; running → its worker is told. Answers the state it left.

        Raises:
            RecordNotFound: there is no such record.
            IllegalMove: it is final.
        """
        async with self._database.session() as session:
            rows = await _rows(session, _CANCEL, {"id": record_id})
        if rows:
            return State(rows[0].state)
        record = await self.get(record_id)
        raise IllegalMove(f"the job has {record.state} already", hint="only queued and running jobs can be cancelled")

    async def replay(self, record_id: UUID) -> Standing:
        """failed or cancelled → queued, all budgets new.

        Raises:
            RecordNotFound: there is no such record.
            IllegalMove: it is in another state.
        """
        async with self._database.session() as session:
            rows = await _rows(session, _REPLAY, {"id": record_id})
        if rows:
            return _standing(rows[0])
        record = await self.get(record_id)
        raise IllegalMove(f"the job is {record.state}", hint="only failed and cancelled jobs can be retried")

    # what a worker does

    async def start(self, worker: str, grants: Sequence[tuple[UUID, str]], lease_s: float) -> list[Started]:
        """queued → running, attempt + 1, for grants given as (id, token). A record that is not answered is not to be run.

        Repeating it with the same tokens answers the same attempts, so a lost COMMIT reply is harmless.
        """
        values = {
            "worker": worker,
            "ids": [record_id for record_id, _ in grants],
            "tokens": [token for _, token in grants],
            "lease_s": lease_s,
        }
        async with self._database.session() as session:
            return [_started(row) for row in await _rows(session, _START, values)]

    async def renew(self, renewals: Sequence[Renew], lease_s: float) -> dict[Fence, bool]:
        """Extend leases and note progress. Answers whether a cancel is wanted; who is missing has lost its lease."""
        values = {
            "ids": [renewal.id for renewal in renewals],
            "attempts": [renewal.attempt for renewal in renewals],
            "tokens": [renewal.token for renewal in renewals],
            **_progress_values([renewal.progress for renewal in renewals]),
            "lease_s": lease_s,
        }
        async with self._database.session() as session:
            return {(row.id, row.attempt): row.cancel_requested for row in await _rows(session, _RENEW, values)}

    async def finish(self, finishes: Sequence[Finish], session: AsyncSession | None = None) -> dict[Fence, State]:
        """running → what each attempt came to. Answers where each record now is; who is missing was fenced.

        Repeating it changes nothing and answers the same. A record whose cancel is wanted is cancelled instead of queued again.
        With `session` it joins that transaction: the job's own writes and its success commit together.
        """
        values = _finish_values(finishes)
        if session is not None:
            return {(row.id, row.attempt): State(row.state) for row in await _rows(session, _FINISH, values)}
        async with self._database.session() as own:
            return {(row.id, row.attempt): State(row.state) for row in await _rows(own, _FINISH, values)}

    async def standing(self, record_ids: Sequence[UUID]) -> dict[UUID, Standing]:
        """Where records are, for ids that could not be started."""
        async with self._database.session() as session:
            return {row.id: _standing(row) for row in await _rows(session, _STANDING, {"ids": list(record_ids)})}

    # what the reconciler does

    async def reap(self, limit: int) -> list[Standing]:
        """running with a lease that has ended → queued; cancelled where that is wanted; failed after MAX_CRASHES."""
        async with self._database.session() as session:
            return [_standing(row) for row in await _rows(session, _REAP, {"limit": limit, "max_crashes": MAX_CRASHES})]

    async def overdue(self, queue: str, limit: int) -> list[Standing]:
        """Queued records that should have started, longest due first: what Redis lost is always among the first of them."""
        async with self._database.session() as session:
            return [_standing(row) for row in await _rows(session, _OVERDUE, {"queue": queue, "limit": limit})]

    # files

    async def add_artifact(self, record_id: UUID, attempt: int, artifact: Artifact, path: str) -> None:
        """Note a file an attempt left; the same name again replaces it."""
        values = {"job_id": record_id, "attempt": attempt, "path": path, **artifact.model_dump()}
        async with self._database.session() as session:
            connection = await session.connection()
            await connection.execute(_ADD_ARTIFACT, values)

    async def artifacts(self, record_ids: Sequence[UUID]) -> list[ArtifactRecord]:
        """The files of records, of each name the one its latest attempt left."""
        name, job_id = col(ArtifactRecord.name), col(ArtifactRecord.job_id)
        query = select(ArtifactRecord).where(job_id.in_(record_ids)).ext(distinct_on(job_id, name))
        async with self._database.session() as session:
            return list(await session.exec(query.order_by(job_id, name, col(ArtifactRecord.attempt).desc())))

    async def artifact(self, record_id: UUID, name: str) -> ArtifactRecord:
        """One file of a record.

        Raises:
            RecordNotFound: there is no such record.
            ArtifactNotFound: it has no file of that name.
        """
        query = select(ArtifactRecord).where(ArtifactRecord.job_id == record_id, ArtifactRecord.name == name)
        async with self._database.session() as session:
            artifact = (await session.exec(query.order_by(col(ArtifactRecord.attempt).desc()).limit(1))).first()
        if artifact is None:
            await self.get(record_id)
            raise ArtifactNotFound(f"job {record_id} has no artifact named '{name}'")
        return artifact

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[AsyncSession]:
        """A session for the job's own writes; whoever opened it commits by leaving the block without an error."""
        async with self._database.session() as session:
            yield session


async def _rows(session: AsyncSession, statement: TextClause, values: dict[str, Any]) -> Sequence[Row[Any]]:
    connection = await session.connection()
    return (await connection.execute(statement, values)).all()


def _submitted(record: NewRecord, row: Row[Any] | None, earlier: Row[Any] | None) -> Submitted | IdempotencyConflict:
    if row is not None:
        return Submitted(record.id, created=True, delay_ms=row.due_in_ms, state=State.QUEUED)
    if earlier is None:
        # the key was taken by a transaction that has not committed, or its record was deleted a moment ago
        return KeyInUse("another request with this idempotency key is under way", hint="send it again")
    if earlier.request_hash != record.request_hash:
        return IdempotencyConflict(
            f"the idempotency key was used for another call, job {earlier.id}", hint="use a new key for a new call"
        )
    return Submitted(earlier.id, created=False, delay_ms=earlier.due_in_ms, state=State(earlier.state))


def _started(row: Row[Any]) -> Started:
    return Started(
        id=row.id,
        attempt=row.attempt,
        token=row.lease_token,
        job=row.job,
        queue=row.queue,
        args_json=cast("str", row.args_json).encode(),
        failures=row.failures,
        interruptions=row.interruptions,
    )


def _standing(row: Row[Any]) -> Standing:
    return Standing(row.id, State(row.state), row.job, row.queue, max(0, row.due_in_ms))


def _finish_values(finishes: Sequence[Finish]) -> dict[str, Any]:
    return {
        "ids": [finish.id for finish in finishes],
        "attempts": [finish.attempt for finish in finishes],
        "tokens": [finish.token for finish in finishes],
        "states": [finish.state.value for finish in finishes],
        "attempt_states": [finish.attempt_state.value for finish in finishes],
        "results": [None if finish.result_json is None else finish.result_json.decode() for finish in finishes],
        "error_types": [None if finish.error is None else _storable(finish.error.type) for finish in finishes],
        "error_messages": [None if finish.error is None else _storable(finish.error.message) for finish in finishes],
        "error_tracebacks": [
            None if finish.error is None else _storable(finish.error.traceback) for finish in finishes
        ],
        "delays": [finish.delay_s for finish in finishes],
        "causes": [finish.cause.value for finish in finishes],
        "failures": [finish.failures for finish in finishes],
        "interruptions": [finish.interruptions for finish in finishes],
        **_progress_values([finish.progress for finish in finishes]),
    }


def _progress_values(steps: Sequence[Progress | None]) -> dict[str, Any]:
    return {
        "dones": [None if step is None else step.done for step in steps],
        "totals": [None if step is None else step.total for step in steps],
        "notes": [None if step is None else _storable(step.note) for step in steps],
    }


def _storable(value: str) -> str:
    """Text that Postgres takes: no NUL, no lone surrogate."""
    return value.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode()


_DUE_IN_MS = "ceil(extract(epoch FROM run_at - clock_timestamp()) * 1000)::bigint AS due_in_ms"

_SUBMIT = text(f"""
    INSERT INTO cplane.jobs (id, job, queue, state, cause, args, run_at, key, request_hash)
    SELECT id, job, queue, 'queued', 'submit', args::jsonb,
           coalesce(run_at, clock_timestamp() + coalesce(delay_s, 0) * interval '1 second'), key, request_hash
    FROM unnest(CAST(:ids AS uuid[]), CAST(:jobs AS text[]), CAST(:queues AS text[]), CAST(:args AS text[]), CAST(:delays AS float8[]),
                CAST(:run_ats AS timestamptz[]), CAST(:keys AS text[]), CAST(:hashes AS bytea[]))
         AS new (id, job, queue, args, delay_s, run_at, key, request_hash)
    ORDER BY key
    ON CONFLICT (key) DO NOTHING
    RETURNING id, {_DUE_IN_MS}
""")

_BY_KEY = text(
    f"SELECT id, key, request_hash, state, {_DUE_IN_MS} FROM cplane.jobs WHERE key = ANY(CAST(:keys AS text[]))"
)

_CANCEL = text("""
    UPDATE cplane.jobs
    SET cancel_requested = true,
        state = CASE WHEN state = 'queued' THEN 'cancelled' ELSE state END,
        finished_at = CASE WHEN state = 'queued' THEN clock_timestamp() END
    WHERE id = :id AND state IN ('queued', 'running')
    RETURNING state
""")

_REPLAY = text(f"""
    UPDATE cplane.jobs
    SET state = 'queued', cause = 'replay', failures = 0, crashes = 0, interruptions = 0, cancel_requested = false,
        run_at = clock_timestamp(), finished_at = NULL, result = NULL, error_type = NULL, error_message = NULL, error_traceback = NULL,
        progress_done = NULL, progress_total = NULL, progress_note = NULL
    WHERE id = :id AND state IN ('failed', 'cancelled')
    RETURNING id, state, job, queue, {_DUE_IN_MS}
""")

# the last SELECT sees the rows as they were before the UPDATE: it answers starts that are repeated, not those just made
_START = text("""
    WITH granted AS (SELECT * FROM unnest(CAST(:ids AS uuid[]), CAST(:tokens AS text[])) AS granted (id, token)),
    due AS (
        SELECT jobs.id, token FROM cplane.jobs JOIN granted ON jobs.id = granted.id
        WHERE state = 'queued' AND NOT cancel_requested AND run_at <= clock_timestamp() + interval '100 milliseconds'
        ORDER BY jobs.id FOR UPDATE OF jobs
    ),
    started AS (
        UPDATE cplane.jobs
        SET state = 'running', attempt = attempt + 1, lease_token = token, worker = :worker, started_at = clock_timestamp(),
            lease_until = clock_timestamp() + CAST(:lease_s AS float8) * interval '1 second',
            progress_done = NULL, progress_total = NULL, progress_note = NULL
        FROM due WHERE jobs.id = due.id
        RETURNING jobs.id, attempt, lease_token, job, queue, args::text AS args_json, failures, interruptions, cause
    ),
    noted AS (
        INSERT INTO cplane.attempts (job_id, attempt, worker, cause, state, started_at)
        SELECT id, attempt, :worker, cause, 'running', clock_timestamp() FROM started
    )
    SELECT id, attempt, lease_token, job, queue, args_json, failures, interruptions FROM started
    UNION ALL
    SELECT jobs.id, attempt, lease_token, job, queue, args::text, failures, interruptions
    FROM cplane.jobs JOIN granted ON jobs.id = granted.id AND jobs.lease_token = granted.token
    WHERE state = 'running'
""")

_RENEW = text("""
    WITH fence AS (
        SELECT * FROM unnest(CAST(:ids AS uuid[]), CAST(:attempts AS int[]), CAST(:tokens AS text[]),
                             CAST(:dones AS float8[]), CAST(:totals AS float8[]), CAST(:notes AS text[]))
        AS fence (id, attempt, token, done, total, note)
    ),
    mine AS (
        SELECT jobs.id, done, total, note FROM cplane.jobs JOIN fence ON jobs.id = fence.id
        WHERE state = 'running' AND jobs.attempt = fence.attempt AND lease_token = token
        ORDER BY jobs.id FOR UPDATE OF jobs
    )
    UPDATE cplane.jobs
    SET lease_until = clock_timestamp() + CAST(:lease_s AS float8) * interval '1 second',
        progress_done = CASE WHEN done IS NULL THEN progress_done ELSE done END,
        progress_total = CASE WHEN done IS NULL THEN progress_total ELSE total END,
        progress_note = CASE WHEN done IS NULL THEN progress_note ELSE note END
    FROM mine WHERE jobs.id = mine.id
    RETURNING jobs.id, attempt, cancel_requested
""")

# a finish that is repeated finds its own row (same attempt, same token, the state it wanted) and answers it
_FINISH = text("""
    WITH outcome AS (
        SELECT * FROM unnest(
            CAST(:ids AS uuid[]), CAST(:attempts AS int[]), CAST(:tokens AS text[]), CAST(:states AS text[]), CAST(:attempt_states AS text[]),
            CAST(:results AS text[]), CAST(:error_types AS text[]), CAST(:error_messages AS text[]), CAST(:error_tracebacks AS text[]),
            CAST(:delays AS float8[]), CAST(:causes AS text[]), CAST(:failures AS int[]), CAST(:interruptions AS int[]),
            CAST(:dones AS float8[]), CAST(:totals AS float8[]), CAST(:notes AS text[]))
        AS outcome (id, attempt, token, state, attempt_state, result, error_type, error_message, error_traceback,
                    delay_s, cause, failures, interruptions, done, total, note)
    ),
    mine AS (
        SELECT jobs.id FROM cplane.jobs JOIN outcome ON jobs.id = outcome.id
        WHERE jobs.state = 'running' AND jobs.attempt = outcome.attempt AND lease_token = token
        ORDER BY jobs.id FOR UPDATE OF jobs
    ),
    finished AS (
        UPDATE cplane.jobs
        SET state = CASE WHEN outcome.state = 'queued' AND cancel_requested THEN 'cancelled' ELSE outcome.state END,
            cause = CASE WHEN outcome.state = 'queued' THEN outcome.cause ELSE jobs.cause END,
            result = outcome.result::jsonb,
            error_type = outcome.error_type, error_message = outcome.error_message, error_traceback = outcome.error_traceback,
            failures = jobs.failures + outcome.failures, interruptions = jobs.interruptions + outcome.interruptions,
            run_at = CASE WHEN outcome.state = 'queued' THEN clock_timestamp() + delay_s * interval '1 second' ELSE run_at END,
            finished_at = CASE WHEN outcome.state = 'queued' AND NOT cancel_requested THEN NULL ELSE clock_timestamp() END,
            lease_until = NULL, progress_done = done, progress_total = total, progress_note = note
        FROM outcome, mine
        WHERE jobs.id = mine.id AND outcome.id = mine.id AND outcome.attempt = jobs.attempt AND outcome.token = lease_token
        RETURNING jobs.id, jobs.attempt, jobs.state
    ),
    noted AS (
        UPDATE cplane.attempts
        SET state = outcome.attempt_state, finished_at = clock_timestamp(),
            error_type = outcome.error_type, error_message = outcome.error_message, error_traceback = outcome.error_traceback
        FROM outcome JOIN finished ON outcome.id = finished.id AND outcome.attempt = finished.attempt
        WHERE attempts.job_id = outcome.id AND attempts.attempt = outcome.attempt
    )
    SELECT id, attempt, state FROM finished
    UNION ALL
    SELECT jobs.id, jobs.attempt, jobs.state FROM cplane.jobs JOIN outcome ON jobs.id = outcome.id
    WHERE jobs.attempt = outcome.attempt AND lease_token = token
          AND (jobs.state = outcome.state OR outcome.state = 'queued' AND jobs.state = 'cancelled' AND lease_until IS NULL)
          AND jobs.state <> 'running'
""")

_STANDING = text("""
    SELECT id, state, job, queue,
           ceil(extract(epoch FROM CASE WHEN state = 'running' THEN lease_until ELSE run_at END - clock_timestamp()) * 1000)::bigint AS due_in_ms
    FROM cplane.jobs WHERE id = ANY(CAST(:ids AS uuid[]))
""")

_REAP = text(f"""
    WITH dead AS (
        SELECT id FROM cplane.jobs WHERE state = 'running' AND lease_until < clock_timestamp()
        ORDER BY lease_until LIMIT :limit FOR UPDATE SKIP LOCKED
    ),
    reaped AS (
        UPDATE cplane.jobs
        SET crashes = crashes + 1, cause = 'lost', lease_until = NULL, run_at = clock_timestamp(),
            state = CASE WHEN cancel_requested THEN 'cancelled' WHEN crashes + 1 >= CAST(:max_crashes AS int) THEN 'failed' ELSE 'queued' END,
            error_type = 'WorkerLost',
            error_message = 'its worker ' || worker || ' died or lost its lease (' || crashes + 1 || ' of ' || CAST(:max_crashes AS int) || ')',
            error_traceback = '',
            finished_at = CASE WHEN cancel_requested OR crashes + 1 >= CAST(:max_crashes AS int) THEN clock_timestamp() END
        FROM dead WHERE jobs.id = dead.id
        RETURNING jobs.id, state, job, queue, attempt, error_message, run_at
    ),
    noted AS (
        UPDATE cplane.attempts
        SET state = 'lost', finished_at = clock_timestamp(), error_type = 'WorkerLost', error_message = reaped.error_message
        FROM reaped WHERE attempts.job_id = reaped.id AND attempts.attempt = reaped.attempt
    )
    SELECT id, state, job, queue, {_DUE_IN_MS} FROM reaped
""")

_OVERDUE = text(f"""
    SELECT id, state, job, queue, {_DUE_IN_MS} FROM cplane.jobs
    WHERE state = 'queued' AND queue = :queue AND run_at < clock_timestamp() - interval '1 second'
    ORDER BY run_at LIMIT :limit
""")

_ADD_ARTIFACT = text("""
    INSERT INTO cplane.artifacts (job_id, attempt, name, media_type, size, sha256, path)
    VALUES (:job_id, :attempt, :name, :media_type, :size, :sha256, :path)
    ON CONFLICT (job_id, attempt, name)
    DO UPDATE SET media_type = excluded.media_type, size = excluded.size, sha256 = excluded.sha256, path = excluded.path
""")
