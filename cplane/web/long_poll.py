"""Waiting for a record on behalf of a client that may go away."""

import asyncio
from contextlib import suppress
from uuid import UUID

from starlette.requests import ClientDisconnect

from cplane.plane.transient import TransientJob
from cplane.postgres.models import JobRecord
from cplane.runtime.cancellation import end
from cplane.web.request import ApiRequest


async def record_after(request: ApiRequest, record_id: UUID, wait_s: float) -> JobRecord | TransientJob:
    """The record once it is final, or as it stands after `wait_s` seconds, or as it stands when the server stops.

    Raises:
        ClientDisconnect: the client went away; nothing waits any longer.
        RecordNotFound: there is none.
    """
    if wait_s > 0 and not request.stopping.is_set():
        request.allow(wait_s)
        record = await _final(request, record_id, wait_s)
        request.allow(0)
        if record is not None:
            return record
    return await request.plane.job(record_id)


async def _final(request: ApiRequest, record_id: UUID, wait_s: float) -> JobRecord | TransientJob | None:
    final = asyncio.create_task(request.plane.wait(record_id, wait_s), name=f"wait for {record_id}")
    gone = asyncio.create_task(_gone(request), name=f"listen whether the client still waits for {record_id}")
    stopping = asyncio.create_task(request.stopping.wait(), name="listen whether the server stops")
    tasks = (final, gone, stopping)
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if final.done():
            with suppress(TimeoutError):
                return final.result()
        elif gone.done():
            raise ClientDisconnect
        return None
    finally:
        await end(tasks)


async def _gone(request: ApiRequest) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
