"""streaq: `enqueue`, awaited; bulk is `enqueue_many` in chunks of 1,000, which is one pipeline each."""

from contextlib import AsyncExitStack

import app

from benchmarks.kit.producer import serve

JOBS = {"noop": app.noop, "sleep": app.sleep}


class StreaqClient:
    """The client of streaq."""

    async def open(self) -> None:
        self._open = AsyncExitStack()
        await self._open.enter_async_context(app.worker)

    async def close(self) -> None:
        await self._open.aclose()

    async def submit(self, job: str, slot: int) -> None:
        await JOBS[job].enqueue(slot)

    async def submit_bulk(self, job: str, slots: range) -> None:
        for first in range(0, len(slots), 1000):
            await app.worker.enqueue_many([JOBS[job].enqueue(slot) for slot in slots[first : first + 1000]])


serve(StreaqClient)
