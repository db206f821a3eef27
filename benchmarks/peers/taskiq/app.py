"""taskiq with taskiq-redis: the stream broker, which was faster than the list broker here, and no result backend.

`BENCH_TASKIQ_BROKER=list` selects the list broker. taskiq uses uvloop by default. Parameters are not parsed again
(`--no-parse`), and messages are acknowledged on receipt, the cheapest of its three modes; `--max-prefetch` equals the
concurrency.
"""

import asyncio
import os

from taskiq_redis import ListQueueBroker, RedisStreamBroker

from benchmarks.kit.slots import open_slots

slots = open_slots()
if os.environ.get("BENCH_TASKIQ_BROKER") == "list":
    broker = ListQueueBroker(os.environ["BENCH_REDIS_URL"])
else:
    broker = RedisStreamBroker(os.environ["BENCH_REDIS_URL"], consumer_id="0", xread_count=256)


@broker.task
async def noop(slot: int) -> None:
    slots.begin(slot)
    slots.end(slot)


@broker.task
async def sleep(slot: int) -> None:
    slots.begin(slot)
    await asyncio.sleep(0.1)
    slots.end(slot)
