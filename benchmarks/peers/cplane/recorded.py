"""cplane with recorded jobs.

Every submission is committed to Postgres before it is scheduled, and every attempt is a row too.
"""

import asyncio

from benchmarks.kit.slots import open_slots
from cplane import job

slots = open_slots()


@job
async def noop(slot: int) -> None:
    slots.begin(slot)
    slots.end(slot)


@job
async def sleep(slot: int) -> None:
    slots.begin(slot)
    await asyncio.sleep(0.1)
    slots.end(slot)
