"""A job's own database transaction, which commits with the job's success or not at all."""

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from types import TracebackType
from typing import Self

from sqlalchemy.exc import DBAPIError
from sqlmodel.ext.asyncio.session import AsyncSession

from cplane.errors import DatabaseUnavailable
from cplane.postgres.database import is_outage
from cplane.postgres.rows import Finish
from cplane.postgres.store import Store


class Fenced(Exception):
    """The attempt no longer owns its record."""


class JobTransaction:
    """Opened when the job first asks for it. Leaving it without `commit` rolls back."""

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
    def begun(self) -> bool:
        """Whether the job has asked for it."""
        return self._session is not None

    async def begin(self) -> AsyncSession:
        """The session: the same one however often it is asked for."""
        if self._session is None:
            self._session = await self._open.enter_async_context(self._store.transaction())
        return self._session

    @asynccontextmanager
    async def block(self) -> AsyncGenerator[AsyncSession]:
        """The session for a block; an error that leaves the block rolls back what the job wrote so far."""
        try:
            yield await self.begin()
        except BaseException as error:
            cause = self.cause(error)  # asked while the transaction is still known to have begun
            await self.rollback()
            if cause is error:
                raise
            raise cause from error

    async def commit(self, finish: Finish | None) -> bool:
        """Commit the job's writes and its success together; answers whether the attempt still owned its record.

        None: a transient job has no record, and commits what it wrote.
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
        """What really happened when a job raised `error`: the loss of its connection, or `error` itself."""
        if self.begun and isinstance(error, DBAPIError) and is_outage(error):
            return DatabaseUnavailable("Postgres went away under the job's transaction")
        return error

    async def rollback(self) -> None:
        """Undo what the job wrote; nothing happens if it never asked."""
        if self._session is None:
            return
        self._session = None
        with suppress(Fenced, DatabaseUnavailable):  # Postgres that is away has rolled back already
            async with self._open:
                raise Fenced
