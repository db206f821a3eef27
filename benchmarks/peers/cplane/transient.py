"""cplane with transient jobs: no row in Postgres and no stored result, like the peers on Redis."""

import asyncio

from benchmarks.kit.slots import open_slots
from cplane import job

slots = open_slots()


@job(record=False, result_ttl=0)
async def noop(slot: int) -> None:
    slots.begin(slot)
    slots.end(slot)


@job(record=False, result_ttl=0)
async def sleep(slot: int) -> None:
    slots.begin(slot)
    await asyncio.sleep(0.1)
    slots.end(slot)
