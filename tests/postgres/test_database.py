"""The connection to Postgres: the accepted addresses, sessions, and how errors are translated."""

import asyncio
import time
import traceback
from collections.abc import AsyncIterator, Awaitable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import pytest_asyncio
from pydantic import SecretStr
from sqlalchemy import exc
from sqlmodel import select, text
from sqlmodel.ext.asyncio.session import AsyncSession

from cplane.errors import CplaneError, DatabaseUnavailable, InvalidSettings, SchemaMismatch
from cplane.postgres.database import Database, engine_url, is_outage, sqlstate
from cplane.postgres.models import JobRecord
from cplane.postgres.statements import Statement
from cplane.postgres.store import Store
from cplane.postgres.transaction import JobTransaction

WEST = timezone(timedelta(hours=-5))

LIMIT_S = 6.0
"""The time within which every public call must return or raise."""


@pytest_asyncio.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    async with Database(SecretStr(database_url)) as database:
        yield database


async def run(database: Database, statement: str) -> list[Any]:
    async with database.session() as session:
        result = await (await session.connection()).execute(text(statement))
        return [row[0] for row in result] if result.returns_rows else []


async def unavailable(call: Awaitable[object]) -> str:
    """Return the formatted traceback of an outage, which must be raised in time."""
    began = time.monotonic()
    with pytest.raises(DatabaseUnavailable, match="Postgres did not respond") as caught:
        await call
    assert time.monotonic() - began < LIMIT_S
    assert "CPLANE_DATABASE_URL" in str(caught.value.hint)
    return "".join(traceback.format_exception(caught.value))


# addresses


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql://u@h/d", {"username": "u", "host": "h", "port": None, "database": "d", "query": {}}),
        ("postgres://u:p%40s%2Fs%23@h:5433/d", {"password": "p@s/s#", "port": 5433}),
        ("postgresql+asyncpg://u:a%25b@[::1]:5432/d", {"password": "a%b", "host": "::1"}),
        ("postgresql://h/d?sslmode=require", {"query": {"ssl": "require"}}),
        ("postgresql://h/d?sslmode=disable&target_session_attrs=any", {"query": {"ssl": "disable", "target_session_attrs": "any"}}),
        ("postgresql://u@/d?host=/run/a b", {"host": None, "query": {"host": "/run/a b"}}),
        ("postgresql:///d?host=%2Frun%2Fpg&port=5433", {"database": "d", "query": {"host": "/run/pg", "port": "5433"}}),
    ],
)  # fmt: skip
def test_an_address_is_parsed_as_libpq_does(url: str, expected: dict[str, object]) -> None:
    read = engine_url(SecretStr(url))
    assert read.drivername == "postgresql+asyncpg"
    found = {name: dict(read.query) if name == "query" else getattr(read, name) for name in expected}
    assert found == expected


@pytest.mark.parametrize(
    "url", ["postgresql://u:hunter2@h:port/d", "postgresql//u:hunter2@h", "postgresql://u:x@h:hunter2/d"]
)
async def test_an_invalid_address_raises_one_sentence_without_the_password(url: str) -> None:
    with pytest.raises(InvalidSettings, match=r"CPLANE_DATABASE_URL cannot be parsed .*percent-encoded") as caught:
        await Database(SecretStr(url)).__aenter__()
    assert (
        "hunter2" not in "".join(traceback.format_exception(caught.value, chain=True)).partition("InvalidSettings")[2]
    )


async def test_a_database_can_be_used_only_inside_its_context(database_url: str) -> None:
    database = Database(SecretStr(database_url))
    with pytest.raises(RuntimeError, match="use `async with Database"):
        _ = database.engine
    async with database:
        assert await run(database, "SELECT current_setting('application_name')") == ["cplane"]
        assert await run(database, "SELECT current_setting('TimeZone')") == ["UTC"]
    with pytest.raises(RuntimeError, match="the database is not open"):
        _ = database.engine


async def test_a_statement_in_flight_at_the_end_of_the_context_closes_its_connection(database_url: str) -> None:
    sleeping = Statement("SELECT pg_sleep(0.3), 'waited' AS result")
    async with Database(SecretStr(database_url)) as closing:
        await closing.fetch(Statement("SELECT 1"), {})
        late = asyncio.create_task(closing.fetch(sleeping, {}), name="late")
        async with Database(SecretStr(database_url)) as other:
            asleep = (
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'"
            )
            while await run(other, asleep) != [1]:
                pass
    assert (await late)[0]["result"] == "waited"
    async with Database(SecretStr(database_url)) as other, asyncio.timeout(LIMIT_S):
        left = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND backend_type = 'client backend'"
        while await run(other, left) != [1]:
            pass


# sessions


async def test_a_session_commits_at_the_end_and_rolls_back_if_its_block_raises(database: Database) -> None:
    await run(database, "CREATE TABLE notes (n int)")

    async def note(n: int, error: Exception | None) -> None:
        async with database.session() as session:
            await (await session.connection()).execute(text(f"INSERT INTO notes VALUES ({n})"))
            if error is not None:
                raise error

    await note(1, None)
    for error in (ValueError("mine"), CplaneError("ours")):
        with pytest.raises(type(error)) as caught:
            await note(2, error)
        assert caught.value is error, "an error of the block passes unchanged"
    assert await run(database, "SELECT n FROM notes") == [1]


async def test_an_error_of_the_statement_itself_is_not_an_outage(database: Database) -> None:
    with pytest.raises(exc.ProgrammingError, match="syntax error"):
        await run(database, "SELEKT 1")
    with pytest.raises(exc.DBAPIError, match="division by zero"):
        await run(database, "SELECT 1/0")
    with pytest.raises(exc.IntegrityError):
        await run(database, "INSERT INTO cplane.jobs (id) VALUES (NULL)")


@pytest.mark.parametrize(
    "change",
    ["DROP SCHEMA cplane CASCADE", "DROP TABLE cplane.jobs CASCADE", "ALTER TABLE cplane.jobs DROP COLUMN failures"],
)
async def test_tables_of_another_version_raise_schema_mismatch_with_a_hint(database: Database, change: str) -> None:
    await run(database, change)

    async def read(session: AsyncSession) -> None:
        await session.exec(select(JobRecord))

    with pytest.raises(SchemaMismatch, match=r"no cplane tables of this version .*run `cplane db upgrade`"):
        async with database.session() as session:
            await read(session)


# outages


async def test_an_unreachable_server_raises_immediately_and_without_the_password(tmp_path: Path) -> None:
    for address in ("u:hunter2@127.0.0.1:1/d", f"u:hunter2@/d?host={tmp_path}"):
        async with Database(SecretStr(f"postgresql://{address}")) as database:
            report = await unavailable(run(database, "SELECT 1"))
            assert "hunter2" not in report
            for shown in (repr(database), str(database.engine.url), repr(database.engine)):
                assert "hunter2" not in shown


async def test_a_missing_database_or_role_is_an_outage(database_url: str) -> None:
    url = engine_url(SecretStr(database_url)).set(drivername="postgresql")
    for changed in (url.set(database="nowhere"), url.set(username="nobody", password="hunter2")):
        async with Database(SecretStr(changed.render_as_string(hide_password=False))) as database:
            assert "hunter2" not in await unavailable(run(database, "SELECT 1"))


async def test_a_server_that_never_responds_raises_in_time() -> None:
    held: list[asyncio.StreamWriter] = []

    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        held.append(writer)
        await reader.read()

    async with await asyncio.start_server(hold, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with Database(SecretStr(f"postgresql://u:hunter2@127.0.0.1:{port}/d")) as database:
            assert "hunter2" not in await unavailable(run(database, "SELECT 1"))
        for writer in held:
            writer.close()


async def test_a_statement_that_takes_too_long_raises_in_time(database: Database) -> None:
    await unavailable(run(database, "SELECT pg_sleep(60)"))
    assert await run(database, "SELECT 1") == [1]


async def test_a_pool_without_a_free_connection_raises_in_time(database_url: str) -> None:
    async with Database(SecretStr(database_url), pool_size=1) as database, database.session() as session:
        await session.connection()
        await unavailable(run(database, "SELECT 1"))


def test_a_connection_that_is_lost_during_a_statement_is_an_outage() -> None:
    """asyncpg raises an error of its own state: "cannot switch to state 11; another operation (2) is in progress"."""
    original = asyncpg.InternalClientError("cannot switch to state 11; another operation (2) is in progress")
    assert is_outage(original)
    wrapped = Exception(str(original))
    wrapped.__cause__ = original
    assert is_outage(exc.InternalError("INSERT", {}, wrapped))


async def test_a_connection_that_the_server_closes_is_an_outage_and_the_next_one_works(database: Database) -> None:
    terminate = "SELECT pg_terminate_backend(pg_backend_pid())"
    await unavailable(run(database, terminate))
    assert await run(database, "SELECT 1") == [1]


async def test_a_connection_that_is_closed_because_its_transaction_was_idle_is_an_outage(database: Database) -> None:
    """Postgres sends 25P03 while no statement runs; asyncpg drops it, and the next statement finds the connection closed."""

    async def be_idle() -> None:
        async with database.session() as session:
            connection = await session.connection()
            await connection.execute(text("SET idle_in_transaction_session_timeout = 1"))
            driver: Any = (await connection.get_raw_connection()).driver_connection
            while not driver.is_closed():
                await asyncio.sleep(0.005)
            await connection.execute(text("SELECT 1"))

    await unavailable(be_idle())
    assert await run(database, "SELECT 1") == [1]


async def test_a_connection_that_is_lost_during_a_jobs_transaction_is_an_outage(database: Database) -> None:
    async def write() -> None:
        async with JobTransaction(Store(database)).block() as session:
            await (await session.connection()).execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))

    with pytest.raises(DatabaseUnavailable, match="lost during the job's transaction"):
        await write()


async def test_a_server_that_is_unavailable_when_a_job_begins_its_transaction_is_an_outage(tmp_path: Path) -> None:
    async def begin() -> None:
        async with (
            Database(SecretStr(f"postgresql://u@/d?host={tmp_path}")) as database,
            JobTransaction(Store(database)).block() as session,
        ):
            await session.connection()

    await unavailable(begin())


RAISE = "DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '{}'; END $$"


@pytest.mark.parametrize("state", ["57P01", "53100", "53300", "57P03", "25006", "25P03", "08006"])
async def test_a_server_that_cannot_serve_is_an_outage(database: Database, state: str) -> None:
    await unavailable(run(database, RAISE.format(state)))


@pytest.mark.parametrize("state", ["22003", "22P05", "23505", "25P02", "53200", "53400", "54000", "P0001", "XX000"])
async def test_a_statement_that_postgres_refuses_is_not_an_outage(database: Database, state: str) -> None:
    with pytest.raises(exc.DBAPIError) as caught:
        await run(database, RAISE.format(state))
    assert sqlstate(caught.value) == state
    assert not is_outage(caught.value)


@pytest.mark.parametrize("state", ["40P01", "40001", "42501", "55P03", "57014"])
async def test_what_passes_by_itself_is_an_outage_for_our_statements_and_a_failure_of_a_job(
    database: Database, state: str
) -> None:
    await unavailable(run(database, RAISE.format(state)))

    async def of_job() -> None:
        async with database.session(of_job=True) as session:
            await (await session.connection()).execute(text(RAISE.format(state)))

    with pytest.raises(exc.DBAPIError) as caught:
        await of_job()
    assert sqlstate(caught.value) == state


@pytest.mark.parametrize(
    ("kind", "value"),
    [("float8", "many"), ("float8", 10**400), ("int", 2**40), ("timestamptz", datetime.max.replace(tzinfo=WEST)), ("text", "\udce9")],
)  # fmt: skip
async def test_a_value_that_the_driver_cannot_encode_is_not_an_outage(
    database: Database, kind: str, value: object
) -> None:
    with pytest.raises(asyncpg.DataError, match="invalid input for query argument") as caught:
        await database.fetch(Statement(f"SELECT CAST(:value AS {kind}) AS value"), {"value": value})
    assert not is_outage(caught.value)
    assert [row["one"] for row in await database.fetch(Statement("SELECT 1 AS one"), {})] == [1]


async def test_a_value_of_a_job_that_the_driver_cannot_encode_is_the_jobs_failure(database: Database) -> None:
    async def write() -> None:
        async with JobTransaction(Store(database)).block() as session:
            await (await session.connection()).execute(text("SELECT CAST(:n AS int)"), {"n": "one"})

    with pytest.raises(exc.DBAPIError, match="cannot be interpreted as an integer"):
        await write()


async def test_a_transaction_of_a_job_that_postgres_cannot_commit_says_why(database: Database) -> None:
    await run(
        database, "CREATE TABLE nodes (id int PRIMARY KEY, up int REFERENCES nodes DEFERRABLE INITIALLY DEFERRED)"
    )
    transaction = JobTransaction(Store(database))
    async with transaction.block() as session:
        await (await session.connection()).execute(text("INSERT INTO nodes VALUES (1, 2)"))
    with pytest.raises(exc.IntegrityError, match="violates foreign key constraint"):
        await transaction.commit(None)
    assert not transaction.has_begun
    assert await run(database, "SELECT count(*) FROM nodes") == [0]
