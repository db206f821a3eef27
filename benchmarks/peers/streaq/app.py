"""streaq: uvloop through anyio, results not kept (`ttl=0`), task logs off (`silent`).

The prefetch equals the concurrency, which is its default.

For no-op jobs, a concurrency of 32 to 512 made no difference here.
"""

import asyncio
import os

from streaq import Worker

from benchmarks.kit.slots import open_slots

slots = open_slots()
worker = Worker(
    redis_url=os.environ["BENCH_REDIS_URL"],
    concurrency=int(os.environ["BENCH_CONCURRENCY"]),
    anyio_kwargs={"use_uvloop": True},
)


@worker.task(ttl=0, silent=True)
async def noop(slot: int) -> None:
    slots.begin(slot)
    slots.end(slot)


@worker.task(ttl=0, silent=True)
async def sleep(slot: int) -> None:
    slots.begin(slot)
    await asyncio.sleep(0.1)
    slots.end(slot)
