"""SAQ: `enqueue`, awaited; its bulk calls wait for results, so bulk is 64 enqueues side by side."""

from app import queue

from benchmarks.kit.bulk import side_by_side
from benchmarks.kit.producer import serve


class SaqClient:
    """SAQ's own client."""

    async def open(self) -> None:
        await queue.connect()

    async def close(self) -> None:
        await queue.disconnect()

    async def submit(self, job: str, slot: int) -> None:
        await queue.enqueue(job, slot=slot, ttl=-1)

    async def submit_bulk(self, job: str, slots: range) -> None:
        await side_by_side(64, (self.submit(job, slot) for slot in slots))


serve(SaqClient)
