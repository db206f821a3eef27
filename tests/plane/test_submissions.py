"""Small groups are scheduled while they get to disk, and their submitters are told once they are there."""

import asyncio
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import pytest
import pytest_asyncio
from pydantic import SecretStr

from cplane import ControlPlane, job
from cplane.errors import DatabaseUnavailable
from cplane.plane.submissions import EARLY_BATCH
from cplane.postgres.database import Database
from cplane.postgres.rows import NewRecord
from cplane.postgres.statements import Statement
from cplane.postgres.store import Store
from cplane.runtime.ids import new_id
from tests.conftest import execute

WAIT_S = 10.0

NOTE_AT_COMMIT = (
    "CREATE TABLE noted (setting text)",
    """CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN INSERT INTO noted VALUES (current_setting('synchronous_commit')); RETURN NULL; END $$""",
    "CREATE CONSTRAINT TRIGGER note AFTER INSERT ON cplane.jobs DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION note()",
)


@job
async def nothing(x: int = 0) -> int:
    return x


@pytest_asyncio.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """One whose commits wait for the disk, whatever the server's own setting is."""
    name = urlsplit(database_url).path.removeprefix("/")
    await execute(database_url, f'ALTER DATABASE "{name}" SET synchronous_commit = on')
    async with Database(SecretStr(database_url)) as database:
        yield database


def new() -> NewRecord:
    return NewRecord(id=new_id(), job="j", queue="q", args_json=b"{}")


async def column(database: Database, sql: str) -> list[object]:
    return [row[0] for row in await database.fetch(Statement(sql), {})]


async def test_flush_takes_what_was_committed_before_to_disk(database: Database) -> None:
    store = Store(database)
    for _ in range(20):  # a log that is flushed by itself meanwhile would hide what is wrong once, but not each time
        await store.submit([new()], early=True)
        (written,) = await column(database, "SELECT pg_current_wal_insert_lsn()::text")
        await store.flush()
        assert await column(database, f"SELECT pg_current_wal_flush_lsn() >= '{written}'") == [True]


async def test_an_early_commit_does_not_wait_and_the_next_one_does(database: Database, database_url: str) -> None:
    for statement in NOTE_AT_COMMIT:
        await execute(database_url, statement)
    store = Store(database)
    await store.submit([new()], early=True)
    await store.submit([new()])
    await store.submit([new(), new()], early=True)
    assert await column(database, "SELECT setting FROM noted") == ["off", "on", "off", "off"]


class Disk:
    """Stands before `Store.flush`, which waits until `slow` is set."""

    def __init__(self, plane: ControlPlane, monkeypatch: pytest.MonkeyPatch, error: Exception | None = None) -> None:
        self.asked = 0
        self.slow = asyncio.Event()
        self._error = error
        self._flush = plane.store.flush
        monkeypatch.setattr(plane.store, "flush", self.flush)

    async def flush(self) -> None:
        self.asked += 1
        await self.slow.wait()
        if self._error is not None:
            raise self._error
        await self._flush()


async def scheduled(plane: ControlPlane, count: int) -> None:
    """Wait until so many jobs are due."""
    async with asyncio.timeout(WAIT_S):
        while (await plane.queue.stats("default")).ready < count:
            await asyncio.sleep(0.01)


async def test_a_job_is_scheduled_before_it_is_on_disk_and_answered_after(
    plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(plane, monkeypatch)
    submitting = asyncio.create_task(nothing.submit(1))
    await scheduled(plane, 1)
    assert disk.asked == 1
    assert not submitting.done()
    disk.slow.set()
    handle = await submitting
    assert (await plane.record(handle.id)).args == {"x": 1}


async def test_what_may_not_be_on_disk_is_not_reported_as_submitted(
    plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(plane, monkeypatch, DatabaseUnavailable("Postgres has gone"))
    disk.slow.set()
    with pytest.raises(DatabaseUnavailable, match="has gone"):
        await nothing.submit(1)
    with pytest.raises(DatabaseUnavailable, match="has gone"):
        await nothing.submit_many([{"x": 1}])
    assert disk.asked == 2


async def test_many_at_once_and_calls_with_a_key_are_on_disk_at_once(
    plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(plane, monkeypatch)
    await nothing.using(key="k").submit(1)
    await nothing.submit_many([{"x": number} for number in range(EARLY_BATCH + 1)])
    assert disk.asked == 0
    assert len(await plane.records()) == EARLY_BATCH + 2
