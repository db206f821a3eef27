"""Small batches are scheduled while they are flushed to disk; `submit()` returns once they are on disk."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any
from urllib.parse import urlsplit

import pytest
import pytest_asyncio
from pydantic import SecretStr

from cplane import ControlPlane, Handle, job
from cplane.errors import DatabaseUnavailable, InvalidArguments
from cplane.plane.submissions import EARLY_BATCH, PORTION_BYTES
from cplane.postgres.database import Database
from cplane.postgres.rows import NewRecord
from cplane.postgres.statements import Statement
from cplane.postgres.store import Store
from cplane.runtime.ids import new_id
from tests.conftest import execute

WAIT_S = 10.0

RECORD_SETTING_AT_COMMIT = (
    "CREATE TABLE commit_settings (setting text)",
    """CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN INSERT INTO commit_settings VALUES (current_setting('synchronous_commit')); RETURN NULL; END $$""",
    "CREATE CONSTRAINT TRIGGER note AFTER INSERT ON cplane.jobs DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION note()",
)


@job
async def submissions_noop(x: int = 0) -> int:
    return x


@job(record=False)
async def submissions_transient(x: int = 0) -> int:
    return x


@job
async def submissions_large(text: str) -> None: ...


@job(record=False)
async def submissions_large_transient(text: str) -> None: ...


@pytest_asyncio.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """A database whose commits wait for the disk, regardless of the server's own setting."""
    name = urlsplit(database_url).path.removeprefix("/")
    await execute(database_url, f'ALTER DATABASE "{name}" SET synchronous_commit = on')
    async with Database(SecretStr(database_url)) as database:
        yield database


def new_record() -> NewRecord:
    return NewRecord(id=new_id(), job="j", queue="q", args_json=b"{}")


async def column(database: Database, sql: str) -> list[object]:
    return [row[0] for row in await database.fetch(Statement(sql), {})]


async def test_flush_writes_earlier_commits_to_disk(database: Database) -> None:
    store = Store(database)
    for _ in range(20):  # a background flush of the log could hide an error once, but not 20 times
        await store.submit([new_record()], early=True)
        (written,) = await column(database, "SELECT pg_current_wal_insert_lsn()::text")
        await store.flush()
        assert await column(database, f"SELECT pg_current_wal_flush_lsn() >= '{written}'") == [True]


async def test_only_an_early_commit_is_asynchronous(database: Database, database_url: str) -> None:
    for statement in RECORD_SETTING_AT_COMMIT:
        await execute(database_url, statement)
    store = Store(database)
    await store.submit([new_record()], early=True)
    await store.submit([new_record()])
    await store.submit([new_record(), new_record()], early=True)
    assert await column(database, "SELECT setting FROM commit_settings") == ["off", "on", "off", "off"]


class SlowFlush:
    """Replaces `Store.flush`: waits until `may_flush` is set, then raises `error` or flushes."""

    def __init__(self, plane: ControlPlane, monkeypatch: pytest.MonkeyPatch, error: Exception | None = None) -> None:
        self.flushes = 0
        self.may_flush = asyncio.Event()
        self._error = error
        self._flush = plane.store.flush
        monkeypatch.setattr(plane.store, "flush", self.flush)

    async def flush(self) -> None:
        self.flushes += 1
        await self.may_flush.wait()
        if self._error is not None:
            raise self._error
        await self._flush()


async def until_ready(plane: ControlPlane, count: int) -> None:
    """Wait until `count` jobs are ready."""
    async with asyncio.timeout(WAIT_S):
        while (await plane.queue.stats("default")).ready < count:
            await asyncio.sleep(0.01)


async def test_a_job_is_scheduled_before_it_is_on_disk_and_submit_returns_after(
    plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow_flush = SlowFlush(plane, monkeypatch)
    submitting = asyncio.create_task(submissions_noop.submit(1))
    await until_ready(plane, 1)
    assert slow_flush.flushes == 1
    assert not submitting.done()
    slow_flush.may_flush.set()
    handle = await submitting
    assert (await plane.record(handle.id)).args == {"x": 1}


async def test_a_failed_flush_fails_the_submission(plane: ControlPlane, monkeypatch: pytest.MonkeyPatch) -> None:
    slow_flush = SlowFlush(plane, monkeypatch, DatabaseUnavailable("Postgres has gone"))
    slow_flush.may_flush.set()
    with pytest.raises(DatabaseUnavailable, match="has gone"):
        await submissions_noop.submit(1)
    with pytest.raises(DatabaseUnavailable, match="has gone"):
        await submissions_noop.submit_many([{"x": 1}])
    assert slow_flush.flushes == 2


async def test_large_batches_and_calls_with_a_key_need_no_separate_flush(
    plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow_flush = SlowFlush(plane, monkeypatch)
    await submissions_noop.using(key="k").submit(1)
    await submissions_noop.submit_many([{"x": number} for number in range(EARLY_BATCH + 1)])
    assert slow_flush.flushes == 0
    assert len(await plane.records()) == EARLY_BATCH + 2


# submissions that Postgres refuses


REFUSE_POISON = (
    """CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    IF NEW.args->>'x' = '-1' THEN RAISE EXCEPTION 'too much' USING ERRCODE = '54000'; END IF; RETURN NEW; END $$""",
    "CREATE TRIGGER refuse BEFORE INSERT ON cplane.jobs FOR EACH ROW EXECUTE FUNCTION refuse()",
)


async def test_a_submission_that_postgres_refuses_fails_alone(plane: ControlPlane, database_url: str) -> None:
    for statement in REFUSE_POISON:
        await execute(database_url, statement)
    numbers = [*range(12), -1, *range(12, 20)]
    outcomes = await asyncio.gather(
        *(submissions_noop.using(key=f"key {number}").submit(number) for number in numbers), return_exceptions=True
    )
    refused = outcomes.pop(12)
    assert isinstance(refused, InvalidArguments)
    assert refused.message == "'submissions_noop' cannot be recorded: Postgres refused it: too much"
    assert [type(outcome) for outcome in outcomes] == [Handle] * 20
    assert len(await plane.records(limit=50)) == 20


EAST, WEST = timezone(timedelta(hours=14)), timezone(timedelta(hours=-12))


@pytest.mark.parametrize("at", [datetime.max.replace(tzinfo=WEST), datetime.min.replace(tzinfo=EAST)])
async def test_a_moment_that_no_store_takes_is_refused_at_the_door(plane: ControlPlane, at: datetime) -> None:
    for any_job in (submissions_noop, submissions_transient):
        with pytest.raises(InvalidArguments, match="at must be a moment of the years 1 to 9999 in UTC"):
            any_job.using(at=at)


@pytest.mark.parametrize("key", ["a\0b", "caf\udce9"])
async def test_a_key_that_no_store_takes_is_refused_at_the_door(plane: ControlPlane, key: str) -> None:
    with pytest.raises(InvalidArguments, match="an idempotency key has neither NUL nor lone surrogates"):
        submissions_noop.using(key=key)


async def test_large_submissions_of_many_callers_are_recorded_in_portions(
    plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    submit = plane.store.submit

    async def measured(records: Sequence[NewRecord], *, early: bool = False) -> list[Any]:
        sizes.append(sum(len(record.args_json) for record in records))
        return await submit(records, early=early)

    monkeypatch.setattr(plane.store, "submit", measured)
    handles = await asyncio.gather(*(submissions_large.submit("x" * 1_000_000) for _ in range(20)))
    assert len({handle.id for handle in handles}) == 20
    assert max(sizes) <= PORTION_BYTES
    assert len(await asyncio.gather(*(submissions_large_transient.submit("x" * 1_000_000) for _ in range(20)))) == 20
