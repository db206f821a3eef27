"""One connection to Postgres by the driver alone: for the keeper, which must stay small."""

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self, cast

import asyncpg

from cplane.errors import DatabaseUnavailable
from cplane.postgres.outages import SCHEMA_STATES, driver_state, may_pass, means_outage, schema_mismatch
from cplane.postgres.statements import Statement

TIMEOUT_S = 4.0
"""Deadline of connecting, and of a statement."""


class DriverConnection:
    """Connects when it is first used, and again after an outage.

    Args:
        arguments: asyncpg's arguments of a connection, as `connect_arguments` returns them.
    """

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        self._arguments = arguments
        self._connection: Any = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._drop()

    async def fetch(self, statement: Statement, values: Mapping[str, object]) -> list[Any]:
        """Run one statement in its own transaction, and return its rows.

        Raises:
            DatabaseUnavailable: Postgres did not respond; whether the statement was applied is unknown.
            SchemaMismatch: the tables are missing or of another version.
            Exception: the driver's own error: Postgres, or the driver, refused the statement with these values.
        """
        try:
            if self._connection is None:
                self._connection = await cast("Any", asyncpg).connect(
                    **self._arguments, timeout=TIMEOUT_S, command_timeout=TIMEOUT_S
                )
            rows: list[Any] = await self._connection.fetch(statement.sql, *statement.arguments(values))
        except Exception as error:
            state = driver_state(error)
            if means_outage(error) or may_pass(state):
                self._drop()
                raise DatabaseUnavailable(f"Postgres did not respond: {type(error).__name__}") from error
            if state in SCHEMA_STATES:
                raise schema_mismatch() from error
            raise  # a statement that is refused leaves the connection as it was
        except BaseException:
            self._drop()
            raise
        return rows

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None
