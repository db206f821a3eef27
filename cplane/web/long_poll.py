"""Long polling: waits for a record to become final, on behalf of a client that may disconnect."""

import asyncio
from contextlib import suppress
from uuid import UUID

from starlette.requests import ClientDisconnect

from cplane.plane.transient import TransientJob
from cplane.postgres.models import JobRecord
from cplane.runtime.cancellation import cancel_all
from cplane.web.request import ApiRequest


async def wait_for_record(request: ApiRequest, record_id: UUID, wait_s: float) -> JobRecord | TransientJob:
    """Return the record as soon as it is final.

    Args:
        request: the waiting request; its deadline is moved for the wait.
        record_id: id of the job.
        wait_s: maximum wait, seconds. 0 returns the current record immediately.

    Returns:
        The final record, or its current state after `wait_s` seconds or when the server stops.

    Raises:
        ClientDisconnect: the client disconnected; the wait has ended.
        RecordNotFound: there is no such record.
    """
    if wait_s > 0 and not request.stopping.is_set():
        request.move_deadline(wait_s)
        record = await _final_record(request, record_id, wait_s)
        request.move_deadline(0)
        if record is not None:
            return record
    return await request.plane.job(record_id)


async def _final_record(request: ApiRequest, record_id: UUID, wait_s: float) -> JobRecord | TransientJob | None:
    final = asyncio.create_task(request.plane.wait(record_id, wait_s), name=f"wait for {record_id}")
    disconnected = asyncio.create_task(_disconnected(request), name=f"watch the client that waits for {record_id}")
    stopping = asyncio.create_task(request.stopping.wait(), name="watch for the stop of the server")
    tasks = (final, disconnected, stopping)
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if final.done():
            with suppress(TimeoutError):
                return final.result()
        elif disconnected.done():
            raise ClientDisconnect
        return None
    finally:
        await cancel_all(tasks)


async def _disconnected(request: ApiRequest) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
