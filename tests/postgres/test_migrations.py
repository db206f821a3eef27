"""Migrations on real Postgres: from nothing to this version, and the errors if tables and version do not match."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from pydantic import SecretStr
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import create_async_engine
from sqlmodel import text

from cplane.errors import DatabaseUnavailable, SchemaMismatch
from cplane.postgres.database import COMMAND_TIMEOUT_S, Database, engine_url
from cplane.postgres.migrations import LOCK, check, head, upgrade
from cplane.postgres.models import SCHEMA, metadata

CATALOG = """
    SELECT 'column', table_name, column_name, concat_ws(' ', data_type, is_nullable, column_default)
    FROM information_schema.columns WHERE table_schema = 'cplane' AND table_name <> 'alembic_version'
    UNION ALL
    SELECT 'index', tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = 'cplane' AND tablename <> 'alembic_version'
    UNION ALL
    SELECT 'constraint', conrelid::regclass::text, conname, pg_get_constraintdef(oid)
    FROM pg_constraint WHERE connamespace = 'cplane'::regnamespace AND conrelid <> 'cplane.alembic_version'::regclass
    ORDER BY 1, 2, 3
"""


@pytest_asyncio.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    async with Database(SecretStr(database_url)) as database:
        yield database


async def run(database: Database, statement: str) -> list[tuple[object, ...]]:
    async with database.session() as session:
        result = await (await session.connection()).execute(text(statement))
        return [tuple(row) for row in result] if result.returns_rows else []


@pytest_asyncio.fixture
async def empty(database: Database) -> Database:
    """A database in which cplane was never installed."""
    await run(database, "DROP SCHEMA cplane CASCADE")
    return database


async def test_an_upgrade_creates_the_tables_once_and_does_not_touch_other_schemas(
    empty: Database, database_url: str
) -> None:
    await run(empty, "CREATE TABLE public.jobs (mine int)")
    assert await upgrade(database_url) == (None, head())
    await check(empty)
    values = "gen_random_uuid(), 'j', 'q', 'queued', 'submit', '{}'"
    await run(empty, f"INSERT INTO cplane.jobs (id, job, queue, state, cause, args) VALUES ({values})")
    assert await upgrade(SecretStr(database_url)) == (head(), head())
    assert await run(empty, "SELECT job FROM cplane.jobs") == [("j",)]
    tables = await run(empty, "SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'")
    assert tables == [("jobs",)]


async def test_concurrent_upgrades_wait_for_each_other(empty: Database, database_url: str) -> None:
    results = await asyncio.gather(*(upgrade(database_url) for _ in range(3)))
    assert sorted(results, key=str) == [(head(), head()), (head(), head()), (None, head())]
    await check(empty)


async def test_an_upgrade_waits_for_another_beyond_the_deadline_of_a_statement(
    database: Database, database_url: str
) -> None:
    async with database.session() as session:
        await (await session.connection()).execute(text(f"SELECT pg_advisory_xact_lock({LOCK})"))
        waiting = asyncio.create_task(upgrade(database_url), name="upgrade")
        done, _ = await asyncio.wait([waiting], timeout=COMMAND_TIMEOUT_S + 1)
        assert not done
    assert await waiting == (head(), head())


async def test_tables_newer_than_this_version_are_rejected_and_not_changed(
    database: Database, database_url: str
) -> None:
    await run(database, "UPDATE cplane.alembic_version SET version_num = '9999'")
    with pytest.raises(SchemaMismatch, match=r"at revision 9999, which this cplane does not know .*upgrade cplane"):
        await upgrade(database_url)
    assert await run(database, "SELECT version_num FROM cplane.alembic_version") == [("9999",)]
    with pytest.raises(SchemaMismatch, match="the tables are at revision 9999, newer than this cplane") as caught:
        await check(database)
    assert caught.value.hint


async def test_missing_tables_raise_schema_mismatch_with_a_hint(empty: Database) -> None:
    with pytest.raises(SchemaMismatch, match=r"has no cplane tables yet .*run `cplane db upgrade`"):
        await check(empty)
    await run(empty, "CREATE SCHEMA cplane")
    with pytest.raises(SchemaMismatch, match="has no cplane tables yet"):
        await check(empty)


async def test_a_failed_upgrade_leaves_nothing_behind(empty: Database, database_url: str) -> None:
    await run(empty, "CREATE SCHEMA cplane CREATE TABLE artifacts (in_the_way int)")
    with pytest.raises(Exception, match='relation "artifacts" already exists'):
        await upgrade(database_url)
    tables = await run(empty, "SELECT table_name FROM information_schema.tables WHERE table_schema = 'cplane'")
    assert tables == [("artifacts",)]


async def test_an_unreachable_postgres_raises() -> None:
    with pytest.raises(DatabaseUnavailable):
        await upgrade("postgresql://127.0.0.1:1/none")


async def test_the_revisions_lead_to_exactly_the_tables_of_the_models(database: Database, database_url: str) -> None:
    def differences(connection: Connection) -> list[object]:
        def ours(name: str | None, kind: str, parents: object) -> bool:
            return kind != "schema" or name == SCHEMA

        options = {
            "include_schemas": True,
            "include_name": ours,
            "compare_type": True,
            "compare_server_default": True,
            "version_table_schema": SCHEMA,
        }
        return list(compare_metadata(MigrationContext.configure(connection, opts=options), metadata))

    # if the role has the name of the schema, alembic takes it for the default one, and reports differences of foreign
    # keys
    elsewhere = {"server_settings": {"search_path": "public"}}
    engine = create_async_engine(engine_url(SecretStr(database_url)), connect_args=elsewhere)
    async with engine.connect() as connection:
        assert await connection.run_sync(differences) == []
    await engine.dispose()

    migrated = await run(database, CATALOG)
    await run(database, "DROP TABLE cplane.artifacts, cplane.attempts, cplane.jobs, cplane.sessions")
    async with database.session() as session:
        await (await session.connection()).run_sync(metadata.create_all)
    assert await run(database, CATALOG) == migrated, (
        "also checks and conditions of indexes, which alembic does not compare"
    )
    assert len(migrated) > 50
