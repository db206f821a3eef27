"""Migrations of the tables: alembic revisions that ship inside the package."""

from pathlib import Path

from pydantic import SecretStr
from sqlalchemy import Connection, text

from cplane.errors import SchemaMismatch
from cplane.postgres.database import Database
from cplane.postgres.models import SCHEMA

LOCK = 0x63706C616E65
"""Advisory lock ("cplane" in ASCII): concurrent upgrades wait for each other."""

HERE = Path(__file__).parent


async def upgrade(database_url: str | SecretStr) -> tuple[str | None, str]:
    """Migrate the tables to this version. Concurrent upgrades wait for each other.

    Args:
        database_url: address of the database.

    Returns:
        The revisions before (None: there were no tables) and after.

    Raises:
        DatabaseUnavailable: Postgres did not respond.
        SchemaMismatch: the tables are newer than this cplane.
    """
    url = database_url if isinstance(database_url, SecretStr) else SecretStr(database_url)
    # no deadline: the change of a large table, or the wait for another upgrade, may take long
    async with Database(url, pool_size=1, command_timeout_s=None) as database, database.session() as session:
        connection = await session.connection()
        return await connection.run_sync(_upgrade)


async def check(database: Database) -> None:
    """Check that the tables are of this version.

    Raises:
        DatabaseUnavailable: Postgres did not respond.
        SchemaMismatch: the tables are missing, older or newer.
    """
    async with database.session() as session:
        connection = await session.connection()
        found = await connection.run_sync(_revision)
    if found == head():
        return
    if found is None:
        raise SchemaMismatch("the database has no cplane tables yet", hint="run `cplane db upgrade`")
    if found not in _known():
        raise SchemaMismatch(f"the tables are at revision {found}, newer than this cplane", hint="upgrade cplane")
    raise SchemaMismatch(
        f"the tables are at revision {found}, this cplane needs {head()}", hint="run `cplane db upgrade`"
    )


def head() -> str:
    """Return the revision this cplane needs. Files are named NUMBER_subject, and the newest has the highest number."""
    return max(_known())


def _known() -> set[str]:
    return {path.name.partition("_")[0] for path in (HERE / "versions").glob("[0-9]*_*.py")}


def _upgrade(connection: Connection) -> tuple[str | None, str]:
    # importing alembic takes as long as all other imports together, and only an upgrade needs it
    from alembic import command  # noqa: PLC0415
    from alembic.config import Config  # noqa: PLC0415

    connection.execute(text(f"SELECT pg_advisory_xact_lock({LOCK})"))
    connection.execute(text(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}"))
    before = _revision(connection)
    if before is not None and before not in _known():
        raise SchemaMismatch(
            f"the tables are at revision {before}, which this cplane does not know", hint="upgrade cplane"
        )
    config = Config()
    config.set_main_option("script_location", str(HERE).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
    return before, head()


def _revision(connection: Connection) -> str | None:
    if connection.execute(text(f"SELECT to_regclass('{SCHEMA}.alembic_version')")).scalar() is None:
        return None
    return connection.execute(text(f"SELECT version_num FROM {SCHEMA}.alembic_version")).scalar()
