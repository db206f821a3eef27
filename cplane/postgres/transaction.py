"""A job's own database transaction, which commits together with the job's success or not at all."""

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from types import TracebackType
from typing import Self

import asyncpg
from sqlalchemy.exc import DBAPIError
from sqlmodel.ext.asyncio.session import AsyncSession

from cplane.errors import DatabaseUnavailable
from cplane.postgres.database import is_outage
from cplane.postgres.rows import Finish
from cplane.postgres.store import Store


class Fenced(Exception):
    """The attempt no longer owns its record."""


ROLLED_BACK = (Fenced, DatabaseUnavailable, DBAPIError, asyncpg.PostgresError, asyncpg.InterfaceError)
"""What a rollback may end with: a connection that is lost, or still busy, is closed, and Postgres rolls back."""


class JobTransaction:
    """The transaction of one attempt. It begins when the job first uses it; leaving without `commit` rolls back."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._session: AsyncSession | None = None
        self._open = AsyncExitStack()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.rollback()

    @property
    def has_begun(self) -> bool:
        """Whether the job has used it."""
        return self._session is not None

    async def begin(self) -> AsyncSession:
        """Return the session; the first call opens it, and every further call returns the same one."""
        if self._session is None:
            self._session = await self._open.enter_async_context(self._store.transaction())
        return self._session

    @asynccontextmanager
    async def block(self) -> AsyncGenerator[AsyncSession]:
        """Yield the session for a block; an error in the block rolls back everything the job has written."""
        try:
            yield await self.begin()
        except BaseException as error:
            cause = self.cause(error)  # before the rollback, which forgets that the transaction has begun
            await self.rollback()
            if cause is error:
                raise
            raise cause from error

    async def commit(self, finish: Finish | None) -> bool:
        """Commit the job's writes and its success together.

        Args:
            finish: the success; None for a transient job, which has no record.

        Returns:
            False if the attempt no longer owned its record: everything was rolled back.

        Raises:
            DatabaseUnavailable: Postgres did not respond; whether the transaction was committed is unknown.
            Exception: Postgres refused it, because of what the job has sent before; everything was rolled back.
        """
        session = await self.begin()
        try:
            async with self._open:
                if finish is not None and not await self._store.finish([finish], session):
                    raise Fenced
        except Fenced:
            return False
        finally:
            self._session = None
        return True

    def cause(self, error: BaseException) -> BaseException:
        """Return the cause of a job's `error`: the loss of its connection, or `error` itself."""
        if self.has_begun and isinstance(error, DBAPIError) and is_outage(error):
            return DatabaseUnavailable("the connection to Postgres was lost during the job's transaction")
        return error

    async def rollback(self) -> None:
        """Roll back what the job wrote, if it has used the transaction."""
        if self._session is None:
            return
        self._session = None
        with suppress(*ROLLED_BACK):
            async with self._open:
                raise Fenced
