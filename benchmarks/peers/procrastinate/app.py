"""procrastinate on Postgres with binary psycopg: uvloop, a pool of 20 connections, LISTEN/NOTIFY, logging at warning.

Finished jobs stay in its table, which is its default; those of cplane stay too.
"""

import asyncio
import os

import uvloop
from procrastinate import App, PsycopgConnector

from benchmarks.kit.slots import open_slots

uvloop.install()
slots = open_slots()
app = App(connector=PsycopgConnector(conninfo=os.environ["BENCH_DATABASE_URL"], min_size=4, max_size=20))


@app.task(name="noop")
async def noop(slot: int) -> None:
    slots.begin(slot)
    slots.end(slot)


@app.task(name="sleep")
async def sleep(slot: int) -> None:
    slots.begin(slot)
    await asyncio.sleep(0.1)
    slots.end(slot)
