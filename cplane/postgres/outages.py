"""What an error of the driver says of Postgres: it cannot serve, or it refused the statement. Without SQLAlchemy, for the keeper."""

import asyncpg

from cplane.errors import SchemaMismatch

OUTAGES: tuple[type[BaseException], ...] = (
    OSError,
    TimeoutError,
    # asyncpg's own state, inconsistent after a connection ended during a statement; not Postgres's internal errors
    asyncpg.InternalClientError,
)

OUTAGE_STATES = ("08", "28", "3D", "57P", "25006", "25P03", "53100", "53300")
"""SQLSTATEs, or their beginnings, of a Postgres that cannot serve: connection lost, no such role or database, shutdown
and startup, read-only after a failover, disk full, too many connections.

25P03 ends a connection that was idle in a transaction for too long: Postgres rolls back and closes it. asyncpg drops the
message, which belongs to no statement, and says with the next statement that the connection is closed, which is an
outage. Where the state itself arrives, it means the same."""

PASSING_STATES = ("40", "42501", "55P03", "57014")
"""SQLSTATEs of our own statements that the same statement may get past later: deadlock, a missing privilege, a lock or
a statement that took longer than the server's settings allow. In a job's statement they are the job's failure."""

SCHEMA_STATES = frozenset({"42P01", "42703", "3F000"})
"""No such table, column, schema."""


def driver_state(error: BaseException | None) -> str | None:
    """Return the SQLSTATE of an error of the driver; None if Postgres did not send one."""
    return getattr(error, "sqlstate", None) if isinstance(error, asyncpg.PostgresError) else None


def means_outage(error: BaseException | None) -> bool:
    """Return whether an error of the driver says that Postgres cannot serve or that the connection is lost."""
    if (state := driver_state(error)) is not None:
        return state.startswith(OUTAGE_STATES)
    if isinstance(error, asyncpg.InterfaceError):
        return not is_invalid_value(error)
    return isinstance(error, OUTAGES)


def may_pass(state: str | None) -> bool:
    """Return whether the same statement may get past this SQLSTATE later."""
    return (state or "").startswith(PASSING_STATES)


def is_invalid_value(error: BaseException) -> bool:
    """Return whether asyncpg could not encode a value: its DataError, which it does not export by that name."""
    return isinstance(error, ValueError) and not isinstance(error, asyncpg.ClientConfigurationError)


def schema_mismatch() -> SchemaMismatch:
    """Return the error of tables that are missing or of another version."""
    return SchemaMismatch("the database has no cplane tables of this version", hint="run `cplane db upgrade`")
