"""No-op jobs a second with 1, 2 and 4 workers: jobs are enqueued first, then the workers start.

The clock runs from the first job that ended to the last, by the marks that jobs leave in shared memory; with several processes, from when each had
run its first job. How many jobs a system gets follows from a short trial, so that fast and slow ones run about as long. It gets as many whatever
the number of workers: how many wait decides what a job costs Redis, and whether Redis rewrites its log meanwhile.
"""

import asyncio
import time

from benchmarks.suite.bench import Bench, Stage
from benchmarks.suite.processes import Unavailable
from benchmarks.suite.systems import System

NAME = "throughput"
WORKERS = (1, 2, 4)
TRIAL = 300
FINAL_S = 10.0
STARTING_S = 2.0
"""There is so much more to do: of several workers, those that are up first run jobs while the others still start, and none of that counts."""

MOST = 400_000
"""Jobs of one measurement."""


def steps(bench: Bench) -> int:
    """How often `run` tells what it does."""
    return len(bench.systems) * (1 + bench.effort.rounds * len(WORKERS))


async def run(bench: Bench) -> None:
    """All rounds."""
    able = [system for system in bench.systems if await _trial(bench, system)]
    for number in range(bench.effort.rounds):
        for workers in WORKERS:
            for system in able:
                bench.tell(f"throughput, round {number + 1}: {system.name}, {workers} workers")
                await _measure(bench, system, workers)
    for system in able:
        if row := bench.results.find(NAME, case(1), system.name):
            bench.noop_per_s[system.name] = row.value


def case(workers: int) -> str:
    """How a number of workers is called."""
    return f"{workers} worker{'s' if workers > 1 else ''}"


async def noop_per_s(bench: Bench, system: System) -> float:
    """What this scenario measured with one worker, or a short trial if it did not run."""
    if system.name not in bench.noop_per_s:
        await _trial(bench, system)
    return bench.noop_per_s.get(system.name, 0.0)


async def _trial(bench: Bench, system: System) -> bool:
    """Whether the system works, and about how fast: twice, the second time long enough to tell."""
    bench.tell(f"trying {system.name}")
    count = TRIAL
    try:
        for _ in range(2):
            async with bench.stage(system, count) as stage:
                bench.noop_per_s[system.name] = await _drain(stage, count, 1)
            count = _size(bench, system, 0.5)
    except (Unavailable, TimeoutError) as error:
        bench.results.skip(NAME, case(1), system.name, str(error) or "no answer in time")
        return False
    return True


def _size(bench: Bench, system: System, run_s: float) -> int:
    return max(TRIAL, min(int(bench.noop_per_s[system.name] * run_s), MOST)) // 100 * 100


async def _measure(bench: Bench, system: System, workers: int) -> None:
    count = _size(bench, system, bench.effort.run_s + STARTING_S)
    try:
        async with bench.stage(system, count) as stage:
            per_s = await _drain(stage, count, workers)
            outcome = await stage.tally.settle(count)
            note = system.note
            if unfinished := await _records_open(stage):
                note = f"{unfinished} records not final after {FINAL_S:g} s"
    except (Unavailable, TimeoutError) as error:
        bench.results.skip(NAME, case(workers), system.name, str(error) or "no answer in time")
        return
    bench.results.add(NAME, case(workers), system.name, "jobs/s", per_s, count=outcome, note=note)


async def _drain(stage: Stage, count: int, workers: int) -> float:
    await stage.producer.order("bulk", "noop", 0, count)
    async with stage.workers(workers) as started:
        await stage.finish(count, started)
        await stage.tally.settle(count)
        await _records_open(stage)
    return stage.tally.per_s(count)


async def _records_open(stage: Stage) -> int:
    """Records that have not succeeded, once they had time to."""
    until = time.monotonic() + FINAL_S
    while (unfinished := await stage.records_open()) and time.monotonic() < until:
        await asyncio.sleep(0.2)
    return unfinished
