"""SAQ on Redis: uvloop, hiredis, jobs are dropped when they are done (`ttl=-1`), logging is at warning, its default.

Each unit of concurrency is a task that waits in BLMOVE on its own connection, so more is not faster for no-op jobs: 16
was the best of 2 to 128 here.
"""

import asyncio
import os
from typing import Any

import uvloop
from saq.queue.redis import RedisQueue

from benchmarks.kit.slots import open_slots

uvloop.install()
slots = open_slots()
queue = RedisQueue.from_url(os.environ["BENCH_REDIS_URL"], max_concurrent_ops=64)


async def noop(_: dict[str, Any], *, slot: int) -> None:
    slots.begin(slot)
    slots.end(slot)


async def sleep(_: dict[str, Any], *, slot: int) -> None:
    slots.begin(slot)
    await asyncio.sleep(0.1)
    slots.end(slot)


settings = {"queue": queue, "functions": [noop, sleep], "concurrency": int(os.environ["BENCH_CONCURRENCY"])}
