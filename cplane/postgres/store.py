"""Records in Postgres: one method per verb, one guarded statement per verb.

Every state change names the state it starts from, and those of a worker also name the attempt and its lease token. A
record that is not returned does not belong to the caller, which must stop. Batches are passed as arrays. Rows that
several transactions may want concurrently are locked in the order of their ids, so that batches cannot deadlock.
Deadlines are compared with the database's clock, never with a worker's.
"""

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

from sqlalchemy import literal_column
from sqlalchemy.dialects.postgresql import distinct_on
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from cplane.errors import ArtifactNotFound, IdempotencyConflict, InvalidTransition, RecordNotFound
from cplane.jobs.context import Artifact
from cplane.jobs.states import MAX_CRASHES, State
from cplane.postgres import statements
from cplane.postgres.database import Database
from cplane.postgres.models import ArtifactRecord, AttemptRecord, JobRecord
from cplane.postgres.rows import (
    NULL,
    SUMMARY_COLUMNS,
    Fence,
    Finish,
    NewRecord,
    RecordFilter,
    RecordSummary,
    Renew,
    ScheduleRow,
    Started,
    Submitted,
    finish_columns,
    is_plain,
    optional_column,
    progress_columns,
    read_schedule_row,
    read_submitted,
    read_summary,
    running_attempt,
    same_or_column,
)
from cplane.postgres.statements import Statement

MAX_PLAIN_CHARS = 1_000_000
"""Characters of the results of a batch that are sent as one JSON object: its size is limited, and each result is looked
up in it."""

select_columns: Callable[..., Any] = select
"""`select` for more columns than its overloads have types for."""

MAX_ID = UUID(int=2**128 - 1)
"""Above every id in use."""


class Store:
    """The verbs of records. Each raises DatabaseUnavailable within 6 seconds if Postgres does not respond."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # for clients

    async def submit(
        self, records: Sequence[NewRecord], *, early: bool = False
    ) -> list[Submitted | IdempotencyConflict]:
        """Create records: ∅ → queued.

        Args:
            records: the records to create.
            early: return once workers can see the records, before they are on disk; `flush` must follow. Only for
                records without keys.

        Returns:
            The outcome of each, in order: the new record, the earlier record of the same key and call, or the conflict.
        """
        values = {
            "ids": [record.id for record in records],
            **same_or_column("job", "jobs", [record.job for record in records]),
            **same_or_column("queue", "queues", [record.queue for record in records]),
            **same_or_column("priority", "priorities", [record.priority for record in records]),
            "args": [record.args_json.decode() for record in records],
            "delays": optional_column([record.delay_s for record in records]),
            "run_ats": optional_column([record.run_at for record in records]),
            "timeouts": optional_column([record.timeout_s for record in records]),
            "limit_keys": optional_column([" ".join(record.limit_keys) or None for record in records]),
        }
        earlier: dict[str, Any] = {}
        if any(record.key is not None for record in records):
            values |= {
                "keys": [record.key for record in records],
                "hashes": [record.request_hash for record in records],
            }
            rows = {row[0]: row for row in await self._database.fetch(statements.SUBMIT_KEYED, values)}
            if keys := [record.key for record in records if record.id not in rows and record.key is not None]:
                earlier = {row["key"]: row for row in await self._database.fetch(statements.BY_KEY, {"keys": keys})}
        else:
            statement = statements.SUBMIT_EARLY if early else statements.SUBMIT
            rows = {row[0]: row for row in await self._database.fetch(statement, values)}
        return [read_submitted(record, rows.get(record.id), earlier.get(record.key or "")) for record in records]

    async def flush(self) -> None:
        """Wait until everything committed so far would survive a crash of Postgres."""
        await self._database.fetch(statements.FLUSH, {})

    async def get(self, record_id: UUID) -> JobRecord:
        """Return one record with all its columns.

        Raises:
            RecordNotFound: there is no such record.
        """
        async with self._database.session() as session:
            record = await session.get(JobRecord, record_id)
        if record is None:
            raise RecordNotFound(f"there is no job with the id {record_id}")
        return record

    async def get_many(self, record_ids: Sequence[UUID]) -> list[JobRecord]:
        """Return the records that exist, in no particular order."""
        async with self._database.session() as session:
            return list(await session.exec(select(JobRecord).where(col(JobRecord.id).in_(record_ids))))

    async def find(self, where: RecordFilter, *, before: UUID | None = None, limit: int = 50) -> list[RecordSummary]:
        """Return up to `limit` records that match, newest first, without their arguments and results.

        Args:
            where: which records.
            before: only records older than this id: the cursor of a page.
            limit: maximum number of records.
        """
        query = select_columns(*SUMMARY_COLUMNS).order_by(col(JobRecord.id).desc())
        if (where.job is not None or where.queue is not None) and where.state in {None, State.SUCCEEDED}:
            values = {
                "job": where.job,
                "queue": where.queue,
                "state": where.state,
                "before": before or MAX_ID,
                "limit": limit,
            }
            ids = [row["id"] for row in await self._database.fetch(statements.NEWEST, values)]
            return await self._summaries(query.where(col(JobRecord.id).in_(ids)))
        if where.state is not None:  # a literal, so that the planner knows which partial index has them
            query = query.where(col(JobRecord.state) == literal_column(f"'{where.state.value}'"))
        for column, value in ((JobRecord.job, where.job), (JobRecord.queue, where.queue)):
            if value is not None:
                query = query.where(col(column) == value)
        if before is not None:
            query = query.where(col(JobRecord.id) < before)
        return await self._summaries(query.limit(limit))

    async def _summaries(self, query: Any) -> list[RecordSummary]:
        async with self._database.session() as session:
            rows: Sequence[Any] = (await (await session.connection()).execute(query)).all()
        return [read_summary(row) for row in rows]

    async def attempts(self, record_id: UUID) -> list[AttemptRecord]:
        """Return the attempts of a record, first to last; a running one is built from the record itself."""
        query = select(AttemptRecord).where(AttemptRecord.job_id == record_id).order_by(col(AttemptRecord.attempt))
        async with self._database.session() as session:
            record = await session.get(JobRecord, record_id)
            ended = list(await session.exec(query))
        if record is None or record.state is not State.RUNNING or any(a.attempt == record.attempt for a in ended):
            return ended
        return [*ended, running_attempt(record)]

    async def cancel(self, record_id: UUID) -> State:
        """Cancel a record: queued → cancelled; a running one is marked, and its worker cancels it.

        Returns:
            The state afterwards: CANCELLED or RUNNING.

        Raises:
            RecordNotFound: there is no such record.
            InvalidTransition: the record is final.
        """
        rows = await self._database.fetch(statements.CANCEL, {"id": record_id})
        if rows:
            return State(rows[0]["state"])
        record = await self.get(record_id)
        raise InvalidTransition(
            f"the job has {record.state} already", hint="only queued and running jobs can be cancelled"
        )

    async def replay(self, record_id: UUID) -> ScheduleRow:
        """Queue a failed or cancelled record again, with its budgets reset.

        Raises:
            RecordNotFound: there is no such record.
            InvalidTransition: the record is in another state.
        """
        rows = await self._database.fetch(statements.REPLAY, {"id": record_id})
        if rows:
            return read_schedule_row(rows[0])
        record = await self.get(record_id)
        raise InvalidTransition(f"the job is {record.state}", hint="only failed and cancelled jobs can be retried")

    async def replay_many(
        self, where: RecordFilter, *, before: UUID | None = None, limit: int = 1000
    ) -> list[ScheduleRow]:
        """Queue failed and cancelled records again, with their budgets reset.

        Args:
            where: which records.
            before: only records older than this id.
            limit: maximum number of records, the newest first.
        """
        values = {"state": where.state, "job": where.job, "queue": where.queue, "before": before, "limit": limit}
        return [read_schedule_row(row) for row in await self._database.fetch(statements.REPLAY_MANY, values)]

    async def count_replayable(self, where: RecordFilter) -> int:
        """Return the number of failed and cancelled records that match."""
        values = {"state": where.state, "job": where.job, "queue": where.queue}
        return int((await self._database.fetch(statements.COUNT_REPLAYABLE, values))[0]["number"])

    async def queues(self) -> list[str]:
        """Return the names of the queues that have queued records."""
        return [row["queue"] for row in await self._database.fetch(statements.QUEUES, {})]

    # for workers

    async def start(
        self, worker: str, ids: Sequence[UUID], token: str, lease_s: float, *, alone: bool = False
    ) -> list[Started]:
        """Start records that one claim leased: queued → running, attempt + 1.

        Args:
            worker: name of the worker.
            ids: the leased records.
            token: the lease token of the claim.
            lease_s: length of the lease, seconds.
            alone: whether they were leased from a quarantine; else records that must run alone are not started.

        Returns:
            The attempts. A record that is missing must not be run. Repeating the call with the same token returns the
            same attempts, so a lost COMMIT reply is harmless.
        """
        values = {"worker": worker, "ids": list(ids), "token": token, "lease_s": lease_s, "alone": alone}
        rows = await self._database.fetch(statements.START, values)
        if len(rows) < len(ids):
            rows = await self._database.fetch(statements.STARTED, values)
        return [
            Started(id_, attempt, token, job, args_json.encode(), failures, interruptions, timeout_s)
            for id_, attempt, job, args_json, failures, interruptions, timeout_s in rows
        ]

    async def renew(self, renewals: Sequence[Renew], lease_s: float) -> dict[Fence, bool]:
        """Extend leases, and record progress.

        Returns:
            For each attempt, whether a cancel is wanted. An attempt that is missing has lost its lease.
        """
        values = {
            "ids": [renewal.id for renewal in renewals],
            "attempts": [renewal.attempt for renewal in renewals],
            "tokens": [renewal.token for renewal in renewals],
            **progress_columns([renewal.progress for renewal in renewals]),
            "lease_s": lease_s,
        }
        return {
            (row["id"], row["attempt"]): row["cancel_requested"]
            for row in await self._database.fetch(statements.RENEW, values)
        }

    async def finish(self, finishes: Sequence[Finish], session: AsyncSession | None = None) -> dict[Fence, State]:
        """Record the outcomes of attempts: running → final, or queued again.

        A record whose cancel is wanted is cancelled instead of queued again. Repeating the call changes nothing and
        returns the same.

        Args:
            finishes: the outcomes.
            session: the transaction to join, so that the job's own writes commit together with its success.

        Returns:
            The state of each record afterwards. An attempt that is missing was fenced.
        """
        remaining = finishes if session is not None else await self._finish_plain(finishes)
        if not remaining:
            exceptions: Sequence[Any] = ()
        elif session is not None:
            exceptions = await _rows(session, statements.FINISH, finish_columns(remaining))
        else:
            exceptions = await self._database.fetch(statements.FINISH, finish_columns(remaining))
        states: dict[Fence, State] = {(finish.id, finish.attempt): finish.state for finish in finishes}
        for record_id, attempt, state in exceptions:
            if state is None:
                states.pop((record_id, attempt), None)  # one that is named twice is returned twice
            else:
                states[record_id, attempt] = State(state)
        return states

    async def _finish_plain(self, finishes: Sequence[Finish]) -> Sequence[Finish]:
        """Record the plain successes. Returns the outcomes that FINISH must record."""
        plain = {finish.id: finish for finish in finishes if is_plain(finish)}
        results = [
            f'"{id_}":{r.decode()}' for id_, f in plain.items() if (r := f.result_json) is not None and r != NULL
        ]
        if not plain or sum(map(len, results)) > MAX_PLAIN_CHARS:
            return finishes
        values = {
            "ids": list(plain),
            "attempts": [finish.attempt for finish in plain.values()],
            "tokens": [finish.token for finish in plain.values()],
            "results": f"{{{','.join(results)}}}",
        }
        left = {tuple(row) for row in await self._database.fetch(statements.FINISH_PLAIN, values)}
        return [f for f in finishes if plain.get(f.id) is not f or (f.id, f.attempt) in left]

    async def schedule_rows(self, record_ids: Sequence[UUID]) -> dict[UUID, ScheduleRow]:
        """Return what the schedule needs to know of records that could not be started."""
        return {
            row["id"]: read_schedule_row(row)
            for row in await self._database.fetch(statements.SCHEDULE_ROWS, {"ids": list(record_ids)})
        }

    # for the reconciler

    async def reap(self, limit: int) -> list[ScheduleRow]:
        """End up to `limit` expired leases, the oldest first.

        The records are queued again, cancelled if a cancel is wanted, or failed after MAX_CRASHES crashes. A record counts
        a crash if it ran alone, and else a suspicion: nobody knows which of the jobs aboard ended the worker.
        """
        return [
            read_schedule_row(row)
            for row in await self._database.fetch(statements.REAP, {"limit": limit, "max_crashes": MAX_CRASHES})
        ]

    async def overdue(self, queue: str, limit: int) -> list[ScheduleRow]:
        """Return queued records that should have started, up to `limit` of each lane, the longest due first.

        A record that Redis lost becomes one of the first sooner or later.
        """
        return [
            read_schedule_row(row)
            for row in await self._database.fetch(statements.OVERDUE, {"queue": queue, "limit": limit})
        ]

    async def queued(self, after: UUID | None, limit: int) -> list[ScheduleRow]:
        """Return a page of all queued records in the order of their ids, to find what Redis lost.

        Args:
            after: the last id of the page before; None: the first page.
            limit: maximum number of records.
        """
        values = {"after": after or UUID(int=0), "limit": limit}
        return [read_schedule_row(row) for row in await self._database.fetch(statements.QUEUED, values)]

    async def epoch(self) -> int:
        """Return the recorded value of Redis's epoch: a Redis with a lower value has lost its data."""
        return int((await self._database.fetch(statements.EPOCH, {}))[0]["number"])

    async def record_epoch(self, number: int) -> None:
        """Record the value of Redis's epoch."""
        await self._database.fetch(statements.RECORD_EPOCH, {"number": number})

    async def claim_restore(self, worker: str, for_s: float) -> bool:
        """Return whether this worker may schedule every record again.

        One worker may at a time, for `for_s` seconds unless it calls this again.
        """
        return bool(await self._database.fetch(statements.CLAIM_RESTORE, {"worker": worker, "for_s": for_s}))

    # files

    async def add_artifact(self, record_id: UUID, attempt: int, artifact: Artifact, path: str) -> None:
        """Record a file of an attempt; the same name replaces the earlier one."""
        values = {"job_id": record_id, "attempt": attempt, "path": path, **artifact.model_dump()}
        await self._database.fetch(statements.ADD_ARTIFACT, values)

    async def artifacts(self, record_ids: Sequence[UUID]) -> list[ArtifactRecord]:
        """Return the files of records; of files with the same name, the one of the latest attempt."""
        name, job_id = col(ArtifactRecord.name), col(ArtifactRecord.job_id)
        query = select(ArtifactRecord).where(job_id.in_(record_ids)).ext(distinct_on(job_id, name))
        async with self._database.session() as session:
            return list(await session.exec(query.order_by(job_id, name, col(ArtifactRecord.attempt).desc())))

    async def artifact_names(self, record_id: UUID) -> set[str]:
        """Return the names of a record's files."""
        query = select(ArtifactRecord.name).where(ArtifactRecord.job_id == record_id).distinct()
        async with self._database.session() as session:
            return set(await session.exec(query))

    async def artifact(self, record_id: UUID, name: str) -> ArtifactRecord:
        """Return one file of a record.

        Raises:
            RecordNotFound: there is no such record.
            ArtifactNotFound: the record has no file of that name.
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
        """Open a session for the job's own writes; leaving the block without an error commits."""
        async with self._database.session(of_job=True) as session:
            # an unavailable server raises here, where it can be distinguished from an error of the job
            await session.connection()
            yield session


async def _rows(session: AsyncSession, statement: Statement, values: dict[str, Any]) -> Sequence[Any]:
    """Run a statement in a session's transaction, and return its rows."""
    connection = await session.connection()
    return (await connection.execute(statement.clause, values)).all()
