"""The keeper's connection: an outage is reported as one, and a statement that is refused as what it is."""

from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest
import pytest_asyncio
from pydantic import SecretStr

from cplane.errors import DatabaseUnavailable, SchemaMismatch
from cplane.postgres.database import connect_arguments
from cplane.postgres.driver import DriverConnection
from cplane.postgres.outages import driver_state
from cplane.postgres.statements import Statement

RAISE = "DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '{}'; END $$"
PID = Statement("SELECT pg_backend_pid()")


@pytest_asyncio.fixture
async def driver(database_url: str) -> AsyncIterator[DriverConnection]:
    async with DriverConnection(connect_arguments(SecretStr(database_url))) as driver:
        yield driver


async def fails(driver: DriverConnection, sql: str, **values: object) -> None:
    await driver.fetch(Statement(sql), values)


async def test_a_statement_that_is_refused_is_no_outage_and_leaves_the_connection(
    driver: DriverConnection, subtests: pytest.Subtests
) -> None:
    (before,) = await driver.fetch(PID, {})
    for state in ("22003", "23505", "53200", "XX000", "P0001"):
        with subtests.test(state=state):
            with pytest.raises(asyncpg.PostgresError) as caught:
                await fails(driver, RAISE.format(state))
            assert driver_state(caught.value) == state
    with pytest.raises(asyncpg.DataError, match="invalid input for query argument"):
        await fails(driver, "SELECT CAST(:value AS int)", value="one")
    for sql in ("SELECT 1 FROM cplane.nothing", "SELECT nothing FROM cplane.jobs"):
        with pytest.raises(SchemaMismatch, match="no cplane tables of this version"):
            await fails(driver, sql)
    (after,) = await driver.fetch(PID, {})
    assert before[0] == after[0], "the same connection"


async def test_a_postgres_that_cannot_serve_is_an_outage_and_the_next_statement_connects_again(
    driver: DriverConnection, subtests: pytest.Subtests
) -> None:
    for state in ("57P01", "53300", "25006", "25P03", "40P01", "42501", "57014"):
        with subtests.test(state=state), pytest.raises(DatabaseUnavailable, match="Postgres did not respond"):
            await fails(driver, RAISE.format(state))
    with pytest.raises(DatabaseUnavailable, match="Postgres did not respond"):
        await fails(driver, "SELECT pg_terminate_backend(pg_backend_pid())")
    assert await driver.fetch(PID, {})


async def test_a_postgres_that_is_away_is_an_outage(tmp_path: Path) -> None:
    arguments = connect_arguments(SecretStr(f"postgresql://u@/d?host={tmp_path}"))
    async with DriverConnection(arguments) as driver:
        with pytest.raises(DatabaseUnavailable, match="Postgres did not respond"):
            await driver.fetch(PID, {})
