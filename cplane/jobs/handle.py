"""The handle that `submit` returns: waits for the result of one job, reads its state, cancels it."""

from typing import Generic, Protocol, TypeVar
from uuid import UUID

import msgspec

from cplane.jobs.states import State

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class ResultSource(Protocol):
    """Where a handle reads its record. The control plane is one; so is the source of transient jobs."""

    async def result(self, record_id: UUID, timeout_s: float | None) -> bytes:
        """Wait for the result and return its JSON."""
        ...

    async def cancel(self, record_id: UUID) -> State:
        """Cancel the job; return its state."""
        ...

    async def state(self, record_id: UUID) -> State:
        """Return the current state."""
        ...


class ResultDecoder(Protocol[R_co]):
    """Turns the JSON of a result into the return type of the job; a `Job` is one."""

    def decode_result(self, result_json: bytes, /) -> R_co:
        """Return the typed result."""
        ...


class Handle(msgspec.Struct, Generic[R], frozen=True, eq=False, gc=False):
    """One submitted job.

    Attributes:
        id: id of the record; of the transient job, if it has no record.
        created: False if an idempotency key led to an earlier record.

    Example:
        ```python
        from cplane import ControlPlane, JobCancelled, State, job


        @job
        async def remind(text: str) -> str:
            return text


        async with ControlPlane():
            handle = await remind.using(delay=3600).submit("stand up")
            assert await handle.state() == State.QUEUED
            assert await handle.cancel() == State.CANCELLED
            try:
                await handle.result(timeout=30)
            except JobCancelled:
                print(f"{handle.id} was cancelled")
        ```
    """

    id: UUID
    _source: ResultSource
    _decoder: ResultDecoder[R]
    created: bool = True

    async def result(self, timeout: float | None = None) -> R:
        """Wait for the job and return its result.

        The process receives an event when the job ends; it does not poll.

        Args:
            timeout: seconds to wait; None waits indefinitely.

        Returns:
            The value that the job returned, in the return type of its function.

        Raises:
            JobFailed: the job failed; the error has the type, message and traceback of the job's error as text.
            JobCancelled: the job was cancelled.
            TimeoutError: the job did not end within `timeout` seconds; it continues.
        """
        return self._decoder.decode_result(await self._source.result(self.id, timeout))

    async def state(self) -> State:
        """Read the current state of the job."""
        return await self._source.state(self.id)

    async def cancel(self) -> State:
        """Cancel the job: a queued one immediately, a running one as soon as its worker is notified.

        Returns:
            The state after the call: CANCELLED, or RUNNING while the worker has not ended the job yet.

        Raises:
            InvalidTransition: the job is already final.
        """
        return await self._source.cancel(self.id)

    def __repr__(self) -> str:
        return f"Handle({self.id})"
