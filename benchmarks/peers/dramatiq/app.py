"""dramatiq on Redis: its default middleware, no result backend, one process.

The process has 16 threads, or one thread per concurrently sleeping job.

Its defaults, 8 threads and a prefetch of 16, reached 2,100 no-op jobs per second here; 16 threads and
`dramatiq_queue_prefetch` 1000 reached three times as many. It uses threads and no event loop, so it cannot use uvloop.
"""

import os
import time

import dramatiq
from dramatiq.brokers.redis import RedisBroker

from benchmarks.kit.slots import open_slots

slots = open_slots()
broker = RedisBroker(url=os.environ["BENCH_REDIS_URL"])
dramatiq.set_broker(broker)


@dramatiq.actor
def noop(slot: int) -> None:
    slots.begin(slot)
    slots.end(slot)


@dramatiq.actor
def sleep(slot: int) -> None:
    slots.begin(slot)
    time.sleep(0.1)
    slots.end(slot)
