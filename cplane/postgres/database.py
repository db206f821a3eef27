"""The connection to Postgres: an AsyncEngine over asyncpg, sessions, and single statements."""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from types import TracebackType
from typing import Any, Self, TypeVar

import asyncpg
from pydantic import SecretStr
from sqlalchemy import URL, event, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError, DisconnectionError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlmodel.ext.asyncio.session import AsyncSession

from cplane.errors import DatabaseUnavailable, InvalidSettings
from cplane.postgres.outages import (
    OUTAGE_STATES,
    OUTAGES,
    SCHEMA_STATES,
    is_invalid_value,
    may_pass,
    schema_mismatch,
)
from cplane.postgres.statements import Statement

CONNECT_TIMEOUT_S = 2.0
COMMAND_TIMEOUT_S = 4.0
"""The sum of both is below 6 seconds, within which every public call returns or raises."""

POOL_SIZE = 10
"""Connections of each of the two pools: sessions, and single statements."""

STATEMENT_SETTINGS = {
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
}
"""Settings of the connections for single statements. Each is planned once, for batches of any size: planning takes as
long as the rest of a small batch. And plans follow the index, row by row, in its order: a plan that was made while a
table was small must still be right when it has grown, and all transactions lock rows in the same order."""


SQLALCHEMY_ONLY = frozenset({"prepared_statement_cache_size", "prepared_statement_name_func", "async_fallback"})
"""Options of a URL that SQLAlchemy's dialect reads itself, and does not pass to asyncpg."""


class Database:
    """One Postgres. Opening it connects to nothing; the first session or statement connects.

    Args:
        url: address of the database.
        pool_size: maximum number of connections of each of the two pools.
        command_timeout_s: deadline of one statement, seconds; None: no deadline.
    """

    def __init__(
        self, url: SecretStr, *, pool_size: int = POOL_SIZE, command_timeout_s: float | None = COMMAND_TIMEOUT_S
    ) -> None:
        self._url = url
        self._pool_size = pool_size
        self._command_timeout_s = command_timeout_s
        self._engine: AsyncEngine | None = None
        self._statements: _DriverConnections | None = None

    async def __aenter__(self) -> Self:
        self._engine = self._create(self._pool_size)
        self._statements = _DriverConnections(self._create(self._pool_size, **STATEMENT_SETTINGS), self._pool_size)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        engine, statements = self._engine, self._statements
        self._engine = self._statements = None
        try:
            if statements is not None:
                await statements.dispose()
        finally:
            if engine is not None:
                await engine.dispose()

    def _create(self, pool_size: int, **server_settings: str) -> AsyncEngine:
        engine = create_async_engine(
            engine_url(self._url),
            pool_size=pool_size,
            max_overflow=0,
            pool_timeout=COMMAND_TIMEOUT_S,
            pool_use_lifo=True,
            connect_args={
                "timeout": CONNECT_TIMEOUT_S,
                "command_timeout": self._command_timeout_s,
                "server_settings": {"application_name": "cplane", "timezone": "UTC", **server_settings},
            },
        )
        event.listen(engine.sync_engine, "checkout", _refuse_closed)
        return engine

    @property
    def engine(self) -> AsyncEngine:
        """The engine of the sessions.

        Raises:
            RuntimeError: the database is not open.
        """
        return _opened(self._engine)

    @asynccontextmanager
    async def session(self, *, of_job: bool = False) -> AsyncGenerator[AsyncSession]:
        """Open a session in one transaction: committed at the end, rolled back if the block raises.

        Args:
            of_job: the block has statements of a job; one that is refused, even for now, is the job's failure.

        Raises:
            DatabaseUnavailable: Postgres did not respond.
            SchemaMismatch: the tables are missing or of another version.
        """
        with translated(of_job=of_job):
            async with AsyncSession(self.engine, expire_on_commit=False) as session, session.begin():
                yield session

    async def fetch(self, statement: Statement, values: Mapping[str, object]) -> list[Any]:
        """Run one statement in its own transaction, and return its rows.

        It is sent by the driver itself, in one round trip; a session with a transaction takes three, and several times
        as long.

        Args:
            statement: the statement.
            values: the values of its parameters, by name.

        Raises:
            DatabaseUnavailable: Postgres did not respond; whether the statement was applied is unknown.
            SchemaMismatch: the tables are missing or of another version.
            Exception: the driver's own error: Postgres, or the driver, refused the statement with these values.
        """
        with translated():
            return await _opened(self._statements).fetch(statement.sql, statement.arguments(values))

    async def server_version(self) -> str:
        """Return the version of Postgres, such as 18.6.

        Raises:
            DatabaseUnavailable: Postgres did not respond.
        """
        async with self.session() as session:
            connection = await session.connection()
            return str(await connection.scalar(text("SHOW server_version")))


class _DriverConnections:
    """Driver connections that are kept between statements: a checkout from the pool costs as much as a statement."""

    def __init__(self, engine: AsyncEngine, size: int) -> None:
        self._engine = engine
        self._slots = asyncio.Semaphore(size)
        self._idle: list[tuple[AsyncConnection, Any]] = []
        self._disposed = False

    async def fetch(self, sql: str, arguments: Sequence[object]) -> list[Any]:
        """Run one statement. A connection on which anything failed returns to the engine, which repairs or closes it."""
        async with asyncio.timeout(COMMAND_TIMEOUT_S) if self._slots.locked() else nullcontext():
            await self._slots.acquire()
        try:
            connection, driver = await self._take()
            async with AsyncExitStack() as failing:
                failing.push_async_exit(connection)
                rows: list[Any] = await driver.fetch(sql, *arguments)
                if self._disposed:  # the engine's pool is disposed of too
                    await connection.invalidate()
                    return rows
                failing.pop_all()
            self._idle.append((connection, driver))
            return rows
        finally:
            self._slots.release()

    async def dispose(self) -> None:
        """Close every idle connection; one in use is closed when its statement ends."""
        self._disposed = True
        try:
            while self._idle:
                await self._idle.pop()[0].close()
        finally:
            await self._engine.dispose()

    async def _take(self) -> tuple[AsyncConnection, Any]:
        while self._idle:
            connection, driver = self._idle.pop()
            if not driver.is_closed():
                return connection, driver
            await connection.invalidate()
            await connection.close()
        connection = await self._engine.connect()
        try:
            return connection, (await connection.get_raw_connection()).driver_connection
        except BaseException:
            await connection.close()
            raise


Opened = TypeVar("Opened")


def _opened(engine: Opened | None) -> Opened:
    if engine is None:
        raise RuntimeError("the database is not open; use `async with Database(url) as database:`")
    return engine


class translated:  # noqa: N801  used like the functions of contextlib
    """Turn outages into our errors. Every other error passes unchanged: a statement that is refused is no outage.

    Args:
        of_job: the block has statements of a job (see `Database.session`).
    """

    def __init__(self, *, of_job: bool = False) -> None:
        self._of_job = of_job

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if exc is None:
            return
        if sqlstate(exc) in SCHEMA_STATES:
            raise schema_mismatch() from exc
        if is_outage(exc) or (not self._of_job and may_pass(sqlstate(exc))):
            raise DatabaseUnavailable(
                "Postgres did not respond", hint="is CPLANE_DATABASE_URL right, and the server up?"
            ) from exc


def engine_url(url: SecretStr) -> URL:
    """Return the URL in SQLAlchemy's form: asyncpg as the driver, `sslmode` by asyncpg's name.

    Raises:
        InvalidSettings: the URL cannot be parsed.
    """
    try:
        parsed = make_url(url.get_secret_value()).set(drivername="postgresql+asyncpg")
    except (ArgumentError, ValueError):  # their text may contain a part of the password
        raise InvalidSettings(
            "CPLANE_DATABASE_URL cannot be parsed",
            hint="write postgresql://user:password@host:5432/database, special characters percent-encoded",
        ) from None
    if "sslmode" not in parsed.query:
        return parsed
    return parsed.difference_update_query(["sslmode"]).update_query_dict({"ssl": parsed.query["sslmode"]})


def connect_arguments(url: SecretStr) -> dict[str, Any]:
    """Return asyncpg's arguments of a connection to this URL, such as `host`, `user` and `password`.

    Raises:
        InvalidSettings: the URL cannot be parsed.
    """
    parsed = engine_url(url)
    _, arguments = parsed.get_dialect()().create_connect_args(parsed)
    return {name: value for name, value in arguments.items() if name not in SQLALCHEMY_ONLY}


def _refuse_closed(connection: Any, _record: object, _proxy: object) -> None:
    """Make the pool replace a connection that Postgres has closed; the check costs no round trip."""
    if connection.driver_connection.is_closed():
        raise DisconnectionError("Postgres closed the connection")


def is_outage(error: BaseException) -> bool:
    """Return whether Postgres cannot serve or the connection is lost.

    A statement that is refused is no outage, whether Postgres refuses it or the driver, which cannot encode its values.
    """
    state = sqlstate(error)
    if state is not None:  # what Postgres says counts, also where it closed the connection after it
        return state.startswith(OUTAGE_STATES)
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return True
    driver_error = _driver_error(error)
    if isinstance(driver_error, asyncpg.InterfaceError):
        return not isinstance(error, DBAPIError) and not is_invalid_value(driver_error)
    return isinstance(error, (*OUTAGES, PoolTimeoutError)) or isinstance(driver_error, OUTAGES)


def _driver_error(error: BaseException) -> BaseException | None:
    """Return the driver's error inside SQLAlchemy's."""
    if not isinstance(error, DBAPIError):
        return error
    return error.orig.__cause__ if error.orig is not None and error.orig.__cause__ is not None else error.orig


def sqlstate(error: BaseException) -> str | None:
    """Return the SQLSTATE of a driver's error, bare or wrapped by SQLAlchemy; None if Postgres did not send one."""
    original: Any = error.orig if isinstance(error, DBAPIError) else error
    if not isinstance(error, DBAPIError | asyncpg.PostgresError):
        return None
    return getattr(original, "sqlstate", None) or getattr(original, "pgcode", None)
