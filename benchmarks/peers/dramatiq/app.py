"""dramatiq on Redis: its default middleware, no result backend, one process with 16 threads, or with as many as jobs sleep at once.

Its defaults, 8 threads and a prefetch of 16, reached 2,100 no-op jobs a second here; 16 threads and `dramatiq_queue_prefetch` 1000 three times
as many. It has threads and no event loop of its own, so there is no uvloop.
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
