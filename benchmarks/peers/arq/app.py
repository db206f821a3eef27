"""arq: a worker with the options that its documentation offers for throughput.

uvloop. `poll_delay` is 10 ms instead of 500 (arq finds new jobs by polling only), `max_jobs` is 256 (the best of 32 to
1024 here), results are neither kept nor logged, logging is at warning. JSON would be slower than the default pickle, so
pickle stays.
"""

import asyncio
import os
from typing import Any

import uvloop
from arq.connections import RedisSettings

from benchmarks.kit.slots import open_slots

uvloop.install()
slots = open_slots()
LOGGING = {"version": 1, "disable_existing_loggers": False, "root": {"level": "WARNING"}}
REDIS = RedisSettings.from_dsn(os.environ["BENCH_REDIS_URL"])


async def noop(_: dict[str, Any], slot: int) -> None:
    slots.begin(slot)
    slots.end(slot)


async def sleep(_: dict[str, Any], slot: int) -> None:
    slots.begin(slot)
    await asyncio.sleep(0.1)
    slots.end(slot)


class Settings:
    """The settings that `arq app.Settings` reads."""

    functions = (noop, sleep)
    redis_settings = REDIS
    max_jobs = int(os.environ["BENCH_CONCURRENCY"])
    poll_delay = 0.01
    keep_result = 0
    log_results = False
