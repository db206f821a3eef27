"""One protocol for jobs with and without a record, and the order in which the two are asked."""

from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar
from uuid import UUID

from cplane.errors import DatabaseUnavailable, RecordNotFound
from cplane.jobs.states import State
from cplane.plane.recorded import RecordedJobs
from cplane.plane.transient import TransientJob, TransientJobs
from cplane.postgres.models import JobRecord

T = TypeVar("T")


class JobClient(Protocol):
    """What clients do with a job by its id. Every method raises RecordNotFound."""

    async def job(self, job_id: UUID, /) -> JobRecord | TransientJob:
        """Return the job as it is now."""
        ...

    async def wait(self, job_id: UUID, /) -> JobRecord | TransientJob:
        """Return the job once it has ended."""
        ...

    async def cancel(self, job_id: UUID, /) -> State:
        """Cancel the job. Returns the state it is in then. Raises InvalidTransition."""
        ...

    async def retry(self, job_id: UUID, /) -> None:
        """Run a failed or cancelled job again. Raises InvalidTransition."""
        ...


class AnyJobs:
    """Jobs of either kind: Postgres is asked first, then Redis, which knows those without a record."""

    def __init__(self, recorded: RecordedJobs, transient: TransientJobs) -> None:
        self._recorded = recorded
        self._transient = transient

    async def ask(self, job_id: UUID, verb: Callable[[JobClient], Awaitable[T]]) -> T:
        """Return what `verb` returns of the kind that has the job.

        Raises:
            RecordNotFound: neither has it.
            DatabaseUnavailable: Postgres did not respond, and Redis has no job of that id.
        """
        try:
            return await verb(self._recorded)
        except RecordNotFound:
            return await verb(self._transient)
        except DatabaseUnavailable:
            if not await self._transient.has(job_id):
                raise
            return await verb(self._transient)
