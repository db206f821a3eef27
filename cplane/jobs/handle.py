"""What `submit` answers: a handle on one job's record."""

from typing import Generic, Protocol, TypeVar
from uuid import UUID

import msgspec

from cplane.jobs.states import State

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class ResultSource(Protocol):
    """Where a handle finds its record; the control plane is one."""

    async def result(self, record_id: UUID, timeout_s: float | None) -> bytes:
        """The JSON of the result, once it is there."""
        ...

    async def cancel(self, record_id: UUID) -> State:
        """Cancel the job."""
        ...

    async def state(self, record_id: UUID) -> State:
        """The state now."""
        ...


class ResultDecoder(Protocol[R_co]):
    """How the JSON of a result becomes the job's return type."""

    def decode_result(self, result_json: bytes, /) -> R_co:
        """The typed result."""
        ...


class Handle(msgspec.Struct, Generic[R], frozen=True, eq=False, gc=False):
    """One submitted job. `id` is its record's id; `created` is False when an idempotency key led to an earlier record."""

    id: UUID
    _source: ResultSource
    _decoder: ResultDecoder[R]
    created: bool = True

    async def result(self, timeout: float | None = None) -> R:
        """Wait for the job and return what it returned.

        Waits by push, never by polling.

        Args:
            timeout: seconds to wait; None waits for ever.

        Raises:
            JobFailed: the job failed; carries the error's type, message and traceback text.
            JobCancelled: the job was cancelled.
            TimeoutError: the result did not come in time; the job goes on.
        """
        return self._decoder.decode_result(await self._source.result(self.id, timeout))

    async def state(self) -> State:
        """The record's state now."""
        return await self._source.state(self.id)

    async def cancel(self) -> State:
        """Cancel the job: a queued one at once, a running one as soon as its worker hears of it.

        Raises:
            InvalidTransition: the job is already final.
        """
        return await self._source.cancel(self.id)

    def __repr__(self) -> str:
        return f"Handle({self.id})"
