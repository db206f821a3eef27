"""The figures that the suite must reach, measured one by one."""

import asyncio
import os
import signal
import time
from dataclasses import dataclass

from cplane import State
from tests.neighbours.cases import PAGES, Offender
from tests.neighbours.cluster import DRAIN_S, Cluster
from tests.neighbours.innocents import Call, innocent_sleep, innocent_ticker, innocents
from tests.neighbours.judge import read_attempts
from tests.neighbours.trial import DEADLINE_S, until_whole

AGAIN_S = 2.0
BLOCKED_S = 0.1
STOPPED_S = DRAIN_S + 10.0
ABOARD = 12
HARM_S = 2.0
"""What an offender gets to do its harm, before its worker is told to stop."""


@dataclass(frozen=True)
class Figure:
    """A measured time and its target, in seconds."""

    what: str
    measured_s: float
    target_s: float
    where: str = ""

    @property
    def miss(self) -> str:
        """What is not as it should be; empty: nothing."""
        return f"{self.what}: {self.measured_s:.2f} s" if self.measured_s > self.target_s else ""


async def rerun_after_kill(cluster: Cluster) -> Figure:
    """Kill a worker process with jobs aboard, and measure until the last of them runs again."""
    submitted_at = time.time()
    handles = await cluster.submit([(innocent_sleep, {"seconds": 2.0})] * ABOARD)
    async with asyncio.timeout(DEADLINE_S):
        while [await handle.state() for handle in handles] != [State.RUNNING] * ABOARD:
            await asyncio.sleep(0.02)
    records = [await cluster.plane.record(handle.id) for handle in handles]
    victim = max(record.worker or "" for record in records)
    killed_at = time.time()
    os.kill(cluster.pid_of(victim), signal.SIGKILL)
    began = [(await handle.result(DEADLINE_S))[0] for handle in handles]
    again = [at - killed_at for at, record in zip(began, records, strict=True) if record.worker == victim]
    attempts = await read_attempts(cluster, submitted_at)
    assert all(len(attempts[record.id]) == 1 + (record.worker == victim) for record in records)
    await until_whole(cluster, time.time())
    return Figure("jobs of a killed process run again after", max(again), AGAIN_S, f"{len(again)} jobs")


async def blocked_by_pages(cluster: Cluster) -> Figure:
    """Run the built-in jobs on hostile pages, one by one, and measure for how long the event loop was blocked."""
    longest_s, longest = 0.0, ""
    for number, offender in enumerate(PAGES):
        go = cluster.folder / f"go-{number}"
        ticks = await cluster.submit([(innocent_ticker, {"until": str(go)})] * 2)
        async with asyncio.timeout(DEADLINE_S):
            while [await tick.state() for tick in ticks] != [State.RUNNING] * 2:
                await asyncio.sleep(0.02)
        handles = await cluster.submit([offender.call(cluster.url, quick=True), *innocents(5, cluster.url)])
        for handle in handles:
            await cluster.plane.wait(handle.id, DEADLINE_S)
        go.touch()
        blocked_s = max([await tick.result(DEADLINE_S) for tick in ticks])
        if blocked_s > longest_s:
            longest_s, longest = blocked_s, offender.name
    return Figure("event loop blocked by built-in jobs on these pages, at most", longest_s, BLOCKED_S, longest)


async def time_to_stop(cluster: Cluster, offender: Offender) -> Figure:
    """Tell a worker to stop while an offender is aboard, and measure until it has ended."""
    calls: list[Call] = [offender.call(cluster.url, quick=cluster.quick), (innocent_sleep, {"seconds": 30.0})]
    async with cluster.worker() as keeper:
        handles = await cluster.submit(calls)
        async with asyncio.timeout(DEADLINE_S):
            while (await handles[0].state()) is State.QUEUED:
                await asyncio.sleep(0.02)
        await asyncio.sleep(HARM_S)
        stopped_s = await keeper.stop()
    for handle in handles:
        if not (await handle.state()).final:
            await handle.cancel()
    return Figure(f"SIGTERM to exit with '{offender.name}' aboard", stopped_s, STOPPED_S)
