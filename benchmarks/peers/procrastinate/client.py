"""procrastinate: `defer_async`, awaited; bulk is `batch_defer_async` in chunks of 1,000."""

import app

from benchmarks.kit.producer import serve

JOBS = {"noop": app.noop, "sleep": app.sleep}


class ProcrastinateClient:
    """The client of procrastinate."""

    async def open(self) -> None:
        await app.app.open_async()

    async def close(self) -> None:
        await app.app.close_async()

    async def submit(self, job: str, slot: int) -> None:
        await JOBS[job].defer_async(slot=slot)

    async def submit_bulk(self, job: str, slots: range) -> None:
        for first in range(0, len(slots), 1000):
            await JOBS[job].batch_defer_async(*({"slot": slot} for slot in slots[first : first + 1000]))


serve(ProcrastinateClient)
