"""Workers for tests, and what tests of workers wait for and look at."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from cplane.plane.control_plane import ControlPlane
from cplane.settings import CplaneSettings
from cplane.worker import Worker

DEADLINE_S = 40.0


class Gate:
    """Where a test's job tells that it runs, and waits to be let on."""

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.open = asyncio.Event()
        self.left: list[str] = []

    async def pass_through(self) -> None:
        self.entered.set()
        try:
            await self.open.wait()
        except asyncio.CancelledError:
            self.left.append("cancelled")
            raise
        self.left.append("passed")


@asynccontextmanager
async def running(
    settings: CplaneSettings, *, pages: bool = False, deadline_s: float = DEADLINE_S, **options: Any
) -> AsyncGenerator[Worker]:
    """A worker that claims jobs, with a browser only if `pages`, stopped in good order at the end."""
    if not pages:
        settings = settings.model_copy(update={"queues": {"default": settings.queues["default"]}})
    worker = Worker(settings=settings, handle_signals=False, **options)
    task = asyncio.create_task(worker.async_run(), name="worker under test")
    ready = asyncio.create_task(worker.ready.wait(), name="wait for worker")
    try:
        async with asyncio.timeout(deadline_s):
            await asyncio.wait([task, ready], return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                task.result()
            yield worker
    finally:
        ready.cancel()
        worker.stop()
        await task


def raw(plane: ControlPlane) -> Any:
    """The server, past the queue; its client's types are too loose to be of use."""
    return plane.redis


async def blocked(redis: Any, sleepers: int) -> None:
    """Wait until so many clients of this database sleep until a job is pushed."""
    number = (await redis.client_info())["db"]
    async with asyncio.timeout(DEADLINE_S):
        while True:
            clients = await redis.client_list()
            asleep = [each for each in clients if int(each["db"]) == number and "b" in each["flags"]]
            if sum(each["cmd"] == "blpop" for each in asleep) == sleepers:
                return


async def until_queue_empty(plane: ControlPlane) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while await plane.queue.depth("default"):
            await asyncio.sleep(0.01)


async def kept_result(plane: ControlPlane, job_id: str) -> bytes:
    """What a transient job leaves in Redis, once it has ended."""
    async with asyncio.timeout(DEADLINE_S):
        while (kept := (await plane.queue.results([job_id]))[0]) is None:
            await asyncio.sleep(0.01)
    return kept
