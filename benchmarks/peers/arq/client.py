"""arq: `enqueue_job`, awaited; there is no bulk call, so bulk is 64 of them concurrently."""

from app import REDIS
from arq import ArqRedis, create_pool

from benchmarks.kit.bulk import submit_concurrently
from benchmarks.kit.producer import serve


class ArqClient:
    """The client of arq."""

    pool: ArqRedis

    async def open(self) -> None:
        self.pool = await create_pool(REDIS)

    async def close(self) -> None:
        await self.pool.aclose()

    async def submit(self, job: str, slot: int) -> None:
        await self.pool.enqueue_job(job, slot)

    async def submit_bulk(self, job: str, slots: range) -> None:
        await submit_concurrently(64, (self.submit(job, slot) for slot in slots))


serve(ArqClient)
