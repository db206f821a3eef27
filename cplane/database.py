"""The connection to Postgres: an AsyncEngine over asyncpg, and sessions from it."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Self

import asyncpg
from pydantic import SecretStr
from sqlalchemy import URL, event, make_url, text
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    DisconnectionError,
    InterfaceError,
    OperationalError,
    ProgrammingError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlmodel.ext.asyncio.session import AsyncSession

from cplane.errors import DatabaseUnavailable, InvalidSettings, SchemaMismatch

CONNECT_TIMEOUT_S = 2.0
COMMAND_TIMEOUT_S = 4.0
"""Together below the 6 seconds in which every door answers."""

POOL_SIZE = 10


class Database:
    """One Postgres. Opening it makes no connection; the first session does. `command_timeout_s` None: a statement may take for ever."""

    def __init__(
        self, url: SecretStr, *, pool_size: int = POOL_SIZE, command_timeout_s: float | None = COMMAND_TIMEOUT_S
    ) -> None:
        self._url = url
        self._pool_size = pool_size
        self._command_timeout_s = command_timeout_s
        self._engine: AsyncEngine | None = None

    async def __aenter__(self) -> Self:
        self._engine = create_async_engine(
            engine_url(self._url),
            pool_size=self._pool_size,
            max_overflow=0,
            pool_timeout=COMMAND_TIMEOUT_S,
            pool_use_lifo=True,
            connect_args={
                "timeout": CONNECT_TIMEOUT_S,
                "command_timeout": self._command_timeout_s,
                "server_settings": {"application_name": "cplane", "timezone": "UTC"},
            },
        )
        event.listen(self._engine.sync_engine, "checkout", _refuse_closed)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if self._engine is not None:
            await self._engine.dispose()
            self._engine = None

    @property
    def engine(self) -> AsyncEngine:
        """The engine.

        Raises:
            RuntimeError: outside the context.
        """
        if self._engine is None:
            raise RuntimeError("the database is not open; use `async with Database(url) as database:`")
        return self._engine

    @asynccontextmanager
    async def session(self) -> AsyncGenerator[AsyncSession]:
        """A session in one transaction: committed at the end, rolled back when the block raises.

        Raises:
            DatabaseUnavailable: Postgres did not answer.
            SchemaMismatch: the tables are missing or of another version.
        """
        with translated():
            async with AsyncSession(self.engine, expire_on_commit=False) as session, session.begin():
                yield session

    @asynccontextmanager
    async def autocommit(self) -> AsyncGenerator[AsyncConnection]:
        """A connection on which each statement commits by itself: one round trip instead of three. Raises as `session` does."""
        with translated():
            async with self.engine.connect() as connection:
                yield await connection.execution_options(isolation_level="AUTOCOMMIT")

    async def server_version(self) -> str:
        """Postgres's own version, such as 18.6.

        Raises:
            DatabaseUnavailable: Postgres did not answer.
        """
        async with self.session() as session:
            connection = await session.connection()
            return str(await connection.scalar(text("SHOW server_version")))


class translated:  # noqa: N801  used like the functions of contextlib
    """Errors of the driver and of the network become ours; every other error of the block passes."""

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if exc is None:
            return
        if isinstance(exc, ProgrammingError) and _sqlstate(exc) in {
            "42P01",
            "42703",
            "3F000",
        }:  # no such table, column, schema
            raise SchemaMismatch(
                "the database has no cplane tables of this version", hint="run `cplane db upgrade`"
            ) from exc
        if is_outage(exc):
            raise DatabaseUnavailable(
                "Postgres did not answer", hint="is CPLANE_DATABASE_URL right, and the server up?"
            ) from exc


def engine_url(url: SecretStr) -> URL:
    """The URL as SQLAlchemy wants it: asyncpg as the driver, `sslmode` under asyncpg's name.

    Raises:
        InvalidSettings: it cannot be read.
    """
    try:
        parsed = make_url(url.get_secret_value()).set(drivername="postgresql+asyncpg")
    except (ArgumentError, ValueError):  # their text may show a part of the password
        raise InvalidSettings(
            "CPLANE_DATABASE_URL cannot be read",
            hint="write postgresql://user:password@host:5432/database, special characters percent-encoded",
        ) from None
    if "sslmode" not in parsed.query:
        return parsed
    return parsed.difference_update_query(["sslmode"]).update_query_dict({"ssl": parsed.query["sslmode"]})


def _refuse_closed(connection: Any, _record: object, _proxy: object) -> None:
    """A connection that Postgres closed meanwhile is replaced before anybody meets it; asking the driver costs no round trip."""
    if connection.driver_connection.is_closed():
        raise DisconnectionError("Postgres closed the connection")


OUTAGES: tuple[type[BaseException], ...] = (
    OSError,
    TimeoutError,
    PoolTimeoutError,
    asyncpg.InterfaceError,
    asyncpg.PostgresConnectionError,
)


def is_outage(error: BaseException) -> bool:
    """Whether Postgres is to blame, not the statement."""
    if isinstance(error, OUTAGES):
        return True
    if not isinstance(error, DBAPIError):
        return False
    if error.connection_invalidated or isinstance(error, OperationalError | InterfaceError):
        return True
    # shutting down, starting up, too many connections, no disk, read-only after a failover, no such database or role
    return (_sqlstate(error) or "")[:2] in {"08", "53", "57", "25", "28", "3D"}


def _sqlstate(error: DBAPIError) -> str | None:
    original: Any = error.orig
    return getattr(original, "sqlstate", None) or getattr(original, "pgcode", None)
