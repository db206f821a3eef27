"""The tables' history: alembic revisions that ship inside the package."""

import asyncio
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from pydantic import SecretStr
from sqlalchemy import Connection, text

from cplane.database import Database
from cplane.errors import SchemaMismatch
from cplane.records import SCHEMA

LOCK = 0x63706C616E65
"""Advisory lock ("cplane" in ASCII): two deploys that upgrade at once wait for each other."""


async def upgrade(database_url: str | SecretStr) -> tuple[str | None, str]:
    """Bring the tables to this version; answers the revisions before and after. Two at once wait for each other.

    Raises:
        DatabaseUnavailable: Postgres did not answer.
        SchemaMismatch: the tables are newer than this cplane.
    """
    url = database_url if isinstance(database_url, SecretStr) else SecretStr(database_url)
    async with Database(url, pool_size=1) as database, database.session() as session:
        connection = await session.connection()
        return await connection.run_sync(_upgrade)


async def check(database: Database) -> None:
    """Whether the tables are of this version.

    Raises:
        DatabaseUnavailable: Postgres did not answer.
        SchemaMismatch: they are not.
    """
    async with database.session() as session:
        connection = await session.connection()
        found = await connection.run_sync(_revision)
    expected = await asyncio.to_thread(head)
    if found == expected:
        return
    if found is None:
        raise SchemaMismatch("the database has no cplane tables yet", hint="run `cplane db upgrade`")
    raise SchemaMismatch(
        f"the tables are at revision {found}, this cplane needs {expected}", hint="run `cplane db upgrade`"
    )


def head() -> str:
    """The revision this cplane needs."""
    revision = ScriptDirectory.from_config(_config()).get_current_head()
    if revision is None:
        raise RuntimeError("the package has no revisions")
    return revision


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    return config


def _upgrade(connection: Connection) -> tuple[str | None, str]:
    connection.execute(text(f"SELECT pg_advisory_xact_lock({LOCK})"))
    connection.execute(text(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}"))
    before = _revision(connection)
    known = {revision.revision for revision in ScriptDirectory.from_config(_config()).walk_revisions()}
    if before is not None and before not in known:
        raise SchemaMismatch(
            f"the tables are at revision {before}, which this cplane does not know", hint="upgrade cplane itself"
        )
    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
    return before, head()


def _revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection, opts={"version_table_schema": SCHEMA}).get_current_revision()
