"""SAQ: `enqueue`, awaited; its bulk calls wait for results, so bulk is 64 concurrent enqueues."""

from app import queue

from benchmarks.kit.bulk import submit_concurrently
from benchmarks.kit.producer import serve


class SaqClient:
    """The client of SAQ."""

    async def open(self) -> None:
        await queue.connect()

    async def close(self) -> None:
        await queue.disconnect()

    async def submit(self, job: str, slot: int) -> None:
        await queue.enqueue(job, slot=slot, ttl=-1)

    async def submit_bulk(self, job: str, slots: range) -> None:
        await submit_concurrently(64, (self.submit(job, slot) for slot in slots))


serve(SaqClient)
