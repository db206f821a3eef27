"""Records in Postgres: one verb a method, one guarded statement a verb.

Every move names the state it starts from, and a worker's moves name the attempt and the token of its lease as well; no row means
"not yours: stop". Batches travel as arrays. Rows that several transactions may want at once are locked in the order of their ids,
so that batches cannot deadlock. Deadlines are compared with the database's clock, never with a worker's.
"""

from collections.abc import AsyncGenerator, Sequence
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
    Fence,
    Finish,
    NewRecord,
    RecordFilter,
    Renew,
    Standing,
    Started,
    Submitted,
    finish_columns,
    is_plain,
    optional_column,
    progress_columns,
    read_standing,
    read_submitted,
    running_attempt,
    same_or_column,
)
from cplane.postgres.statements import Statement

PLAIN_CHARS = 1_000_000
"""Results of a group that go to Postgres as one object: an object has a limit of its own, and each is looked up in it."""


ABOVE_ALL = UUID(int=2**128 - 1)
"""No id is as high."""


class Store:
    """The verbs. Every one raises DatabaseUnavailable within 6 seconds when Postgres does not answer."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # what clients do

    async def submit(
        self, records: Sequence[NewRecord], *, early: bool = False
    ) -> list[Submitted | IdempotencyConflict]:
        """∅ → queued. Answers in order; a key that was used for something else answers the conflict.

        Args:
            records: what is submitted.
            early: answer once workers can see the records, before they are on disk; `flush` must follow. Without keys only.
        """
        values = {
            "ids": [record.id for record in records],
            **same_or_column("job", "jobs", [record.job for record in records]),
            **same_or_column("queue", "queues", [record.queue for record in records]),
            **same_or_column("priority", "priorities", [record.priority for record in records]),
            "args": [record.args_json.decode() for record in records],
            "delays": optional_column([record.delay_s for record in records]),
            "run_ats": optional_column([record.run_at for record in records]),
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
        """Wait until everything that was committed so far would survive a crash of Postgres."""
        await self._database.fetch(statements.FLUSH, {})

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
        if (where.job is not None or where.queue is not None) and where.state in {None, State.SUCCEEDED}:
            values = {
                "job": where.job,
                "queue": where.queue,
                "state": where.state,
                "before": before or ABOVE_ALL,
                "limit": limit,
            }
            ids = [row["id"] for row in await self._database.fetch(statements.NEWEST, values)]
            return sorted(await self.get_many(ids), key=lambda record: record.id, reverse=True)
        query = select(JobRecord).order_by(col(JobRecord.id).desc()).limit(limit)
        if where.state is not None:  # written out, so that the planner knows which index has them
            query = query.where(col(JobRecord.state) == literal_column(f"'{where.state.value}'"))
        for column, value in ((JobRecord.job, where.job), (JobRecord.queue, where.queue)):
            if value is not None:
                query = query.where(col(column) == value)
        if before is not None:
            query = query.where(col(JobRecord.id) < before)
        async with self._database.session() as session:
            return list(await session.exec(query))

    async def attempts(self, record_id: UUID) -> list[AttemptRecord]:
        """The runs of a record, first to last; one that runs now is read from the record itself."""
        query = select(AttemptRecord).where(AttemptRecord.job_id == record_id).order_by(col(AttemptRecord.attempt))
        async with self._database.session() as session:
            record = await session.get(JobRecord, record_id)
            ended = list(await session.exec(query))
        if record is None or record.state is not State.RUNNING or any(a.attempt == record.attempt for a in ended):
            return ended
        return [*ended, running_attempt(record)]

    async def cancel(self, record_id: UUID) -> State:
        """queued → cancelled; running → its worker is told. Answers the state it left.

        Raises:
            RecordNotFound: there is no such record.
            InvalidTransition: it is final.
        """
        rows = await self._database.fetch(statements.CANCEL, {"id": record_id})
        if rows:
            return State(rows[0]["state"])
        record = await self.get(record_id)
        raise InvalidTransition(
            f"the job has {record.state} already", hint="only queued and running jobs can be cancelled"
        )

    async def replay(self, record_id: UUID) -> Standing:
        """failed or cancelled → queued, all budgets new.

        Raises:
            RecordNotFound: there is no such record.
            InvalidTransition: it is in another state.
        """
        rows = await self._database.fetch(statements.REPLAY, {"id": record_id})
        if rows:
            return read_standing(rows[0])
        record = await self.get(record_id)
        raise InvalidTransition(f"the job is {record.state}", hint="only failed and cancelled jobs can be retried")

    async def replay_many(
        self, where: RecordFilter, *, before: UUID | None = None, limit: int = 1000
    ) -> list[Standing]:
        """failed or cancelled → queued, all budgets new, for the newest `limit` records that fit and are older than the id `before`."""
        values = {"state": where.state, "job": where.job, "queue": where.queue, "before": before, "limit": limit}
        return [read_standing(row) for row in await self._database.fetch(statements.REPLAY_MANY, values)]

    async def count_replayable(self, where: RecordFilter) -> int:
        """How many failed and cancelled records fit."""
        values = {"state": where.state, "job": where.job, "queue": where.queue}
        return int((await self._database.fetch(statements.REPLAYABLE, values))[0]["number"])

    async def queues(self) -> list[str]:
        """The queues in which records wait."""
        return [row["queue"] for row in await self._database.fetch(statements.QUEUES, {})]

    # what a worker does

    async def start(self, worker: str, ids: Sequence[UUID], token: str, lease_s: float) -> list[Started]:
        """queued → running, attempt + 1, for ids that one claim leased. A record that is not answered is not to be run.

        Repeating it with the same token answers the same attempts, so a lost COMMIT reply is harmless.
        """
        values = {"worker": worker, "ids": list(ids), "token": token, "lease_s": lease_s}
        rows = await self._database.fetch(statements.START, values)
        if len(rows) < len(ids):
            rows = await self._database.fetch(statements.STARTED, values)
        return [
            Started(id_, attempt, token, job, args_json.encode(), failures, interruptions)
            for id_, attempt, job, args_json, failures, interruptions in rows
        ]

    async def renew(self, renewals: Sequence[Renew], lease_s: float) -> dict[Fence, bool]:
        """Extend leases and note progress. Answers whether a cancel is wanted; who is missing has lost its lease."""
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
        """running → what each attempt came to. Answers where each record now is; who is missing was fenced.

        Repeating it changes nothing and answers the same. A record whose cancel is wanted is cancelled instead of queued again.
        With `session` it joins that transaction: the job's own writes and its success commit together.
        """
        careful = finishes if session is not None else await self._finish_plain(finishes)
        if not careful:
            exceptions: Sequence[Any] = ()
        elif session is not None:
            exceptions = await _rows(session, statements.FINISH, finish_columns(careful))
        else:
            exceptions = await self._database.fetch(statements.FINISH, finish_columns(careful))
        states: dict[Fence, State] = {(finish.id, finish.attempt): finish.state for finish in finishes}
        for record_id, attempt, state in exceptions:
            if state is None:
                states.pop((record_id, attempt), None)  # one that is named twice is answered twice
            else:
                states[record_id, attempt] = State(state)
        return states

    async def _finish_plain(self, finishes: Sequence[Finish]) -> Sequence[Finish]:
        """Finish those with which there is nothing special; answers who is left."""
        plain = {finish.id: finish for finish in finishes if is_plain(finish)}
        results = [
            f'"{id_}":{r.decode()}' for id_, f in plain.items() if (r := f.result_json) is not None and r != NULL
        ]
        if not plain or sum(map(len, results)) > PLAIN_CHARS:
            return finishes
        values = {
            "ids": list(plain),
            "attempts": [finish.attempt for finish in plain.values()],
            "tokens": [finish.token for finish in plain.values()],
            "results": f"{{{','.join(results)}}}",
        }
        left = {tuple(row) for row in await self._database.fetch(statements.FINISH_PLAIN, values)}
        return [f for f in finishes if plain.get(f.id) is not f or (f.id, f.attempt) in left]

    async def standing(self, record_ids: Sequence[UUID]) -> dict[UUID, Standing]:
        """Where records are, for ids that could not be started."""
        return {
            row["id"]: read_standing(row)
            for row in await self._database.fetch(statements.STANDING, {"ids": list(record_ids)})
        }

    # what the reconciler does

    async def reap(self, limit: int) -> list[Standing]:
        """running with a lease that has ended → queued; cancelled where that is wanted; failed after MAX_CRASHES."""
        return [
            read_standing(row)
            for row in await self._database.fetch(statements.REAP, {"limit": limit, "max_crashes": MAX_CRASHES})
        ]

    async def overdue(self, queue: str, limit: int) -> list[Standing]:
        """Queued records that should have started, of each lane the longest due: what Redis lost is in time the first of them."""
        return [
            read_standing(row)
            for row in await self._database.fetch(statements.OVERDUE, {"queue": queue, "limit": limit})
        ]

    async def queued(self, after: UUID | None, limit: int) -> list[Standing]:
        """A page of all queued records in the order of their ids, those after the id `after`: to look for what Redis lost."""
        values = {"after": after or UUID(int=0), "limit": limit}
        return [read_standing(row) for row in await self._database.fetch(statements.QUEUED, values)]

    async def epoch(self) -> int:
        """The newest value of Redis's epoch that was noted: a Redis that is behind it has lost its memory."""
        return int((await self._database.fetch(statements.EPOCH, {}))[0]["number"])

    async def note_epoch(self, number: int) -> None:
        """Note how far Redis's epoch has come."""
        await self._database.fetch(statements.NOTE_EPOCH, {"number": number})

    async def claim_restore(self, worker: str, for_s: float) -> bool:
        """Whether this worker may schedule everything again: one does, for `for_s` seconds unless it asks again."""
        return bool(await self._database.fetch(statements.CLAIM_RESTORE, {"worker": worker, "for_s": for_s}))

    # files

    async def add_artifact(self, record_id: UUID, attempt: int, artifact: Artifact, path: str) -> None:
        """Note a file an attempt left; the same name again replaces it."""
        values = {"job_id": record_id, "attempt": attempt, "path": path, **artifact.model_dump()}
        await self._database.fetch(statements.ADD_ARTIFACT, values)

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
            await (
                session.connection()
            )  # a server that is away is met here, where it can be told from an error of the job
            yield session


async def _rows(session: AsyncSession, statement: Statement, values: dict[str, Any]) -> Sequence[Any]:
    """The rows of a statement that joins a transaction."""
    connection = await session.connection()
    return (await connection.execute(statement.clause, values)).all()
