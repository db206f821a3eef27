"""Celery on Redis, with JSON, a prefetch of 64 per process and early acknowledgement.

There is no result backend and there are no events, gossip, mingle or heartbeat.

Its two processes (`prefork`, one per core) count as one worker, which favours Celery; `celery-threads` is the same with
threads. Celery has no event loop, so it cannot use uvloop, and its sleeping jobs sleep in threads.
"""

import os
import time
from urllib.parse import urlsplit

from celery import Celery

from benchmarks.kit.slots import open_slots

slots = open_slots()
app = Celery("bench", broker=f"redis+socket://{urlsplit(os.environ['BENCH_REDIS_URL']).path}?virtual_host=0")
app.conf.update(
    task_ignore_result=True,
    task_store_errors_even_if_ignored=False,
    worker_prefetch_multiplier=64,
    worker_send_task_events=False,
    worker_hijack_root_logger=False,
    broker_connection_retry_on_startup=True,
    broker_pool_limit=40,
    task_compression=None,
)


@app.task(name="noop")
def noop(slot: int) -> None:
    slots.begin(slot)
    slots.end(slot)


@app.task(name="sleep")
def sleep(slot: int) -> None:
    slots.begin(slot)
    time.sleep(0.1)
    slots.end(slot)
