"""Workers for tests, and helpers that wait for and read their effects."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from cplane.plane.control_plane import ControlPlane
from cplane.settings import CplaneSettings
from cplane.worker import Worker
from cplane.worker.quarantine import Quarantines

DEADLINE_S = 40.0


class Gate:
    """Signals to the test that its job runs, and blocks the job until the test opens it."""

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
    """Run a worker that claims jobs, with a browser only if `pages`, and stop it gracefully at the end."""
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


def no_quarantines() -> Quarantines:
    """Return what a reconciler needs of a worker that serves no queue."""
    return Quarantines((), None, asyncio.Event())


def raw(plane: ControlPlane) -> Any:
    """Return the Redis client behind the queue, as Any: its types are too loose to be useful."""
    return plane.redis


async def blocked(redis: Any, sleepers: int) -> None:
    """Wait until `sleepers` clients of this database block on a wakeup list."""
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
    """Wait until a transient job has ended, and return the result that Redis keeps."""
    async with asyncio.timeout(DEADLINE_S):
        while (kept := (await plane.queue.results([job_id]))[0]) is None:
            await asyncio.sleep(0.01)
    return kept


async def until_written(file: Path) -> list[int]:
    async with asyncio.timeout(DEADLINE_S):
        while not file.exists():
            await asyncio.sleep(0.01)
    return [int(pid) for pid in file.read_text().split()]


async def until_gone(pids: list[int]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while any(state_of(pid) not in {"", "Z"} for pid in pids):
            await asyncio.sleep(0.01)


def stat_of(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ["", "0"]


def state_of(pid: int) -> str:
    return stat_of(pid)[0]


def parent_of(pid: int) -> int:
    return int(stat_of(pid)[1])
