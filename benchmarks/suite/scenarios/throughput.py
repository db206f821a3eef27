"""No-op jobs per second with 1, 2 and 4 workers: jobs are enqueued first, then the workers start.

The rate is measured from the end of the first job to the end of the last, by the times in shared memory; with several
processes, from when each had run its first job. A short trial decides how many jobs a system gets, so that fast and
slow ones run for about the same time. The number does not depend on the number of workers, because the number of queued
jobs affects the cost of a job in Redis, and whether Redis rewrites its log during the measurement.
"""

import asyncio
import time

from benchmarks.suite.bench import Bench, Stage
from benchmarks.suite.processes import Unavailable
from benchmarks.suite.systems import System

NAME = "throughput"
WORKERS = (1, 2, 4)
TRIAL = 300
FINAL_TIMEOUT_S = 10.0
START_ALLOWANCE_S = 2.0
"""Jobs for this many extra seconds: the first of several workers run jobs while the others still start, which does
not count.
"""

MAX_JOBS = 400_000
"""Of one measurement."""


def steps(bench: Bench) -> int:
    """Return how many progress reports `run` makes."""
    return len(bench.systems) * (1 + bench.effort.rounds * len(WORKERS))


async def run(bench: Bench) -> None:
    """Run all rounds."""
    working = [system for system in bench.systems if await _trial(bench, system)]
    for number in range(bench.effort.rounds):
        for workers in WORKERS:
            for system in working:
                bench.report(f"throughput, round {number + 1}: {system.name}, {workers} workers")
                await _measure(bench, system, workers)
    for system in working:
        if row := bench.results.find(NAME, case(1), system.name):
            bench.noop_per_s[system.name] = row.value


def case(workers: int) -> str:
    """Return the name of the case with this number of workers."""
    return f"{workers} worker{'s' if workers > 1 else ''}"


async def noop_per_s(bench: Bench, system: System) -> float:
    """Return the throughput with one worker; that of a short trial if this scenario did not run."""
    if system.name not in bench.noop_per_s:
        await _trial(bench, system)
    return bench.noop_per_s.get(system.name, 0.0)


async def _trial(bench: Bench, system: System) -> bool:
    """Return whether the system works, and estimate its speed: two trials, the second one long enough."""
    bench.report(f"trying {system.name}")
    count = TRIAL
    try:
        for _ in range(2):
            async with bench.stage(system, count) as stage:
                bench.noop_per_s[system.name] = await _drain(stage, count, 1)
            count = _size(bench, system, 0.5)
    except (Unavailable, TimeoutError) as error:
        bench.results.skip(NAME, case(1), system.name, str(error) or "no result in time")
        return False
    return True


def _size(bench: Bench, system: System, run_s: float) -> int:
    return max(TRIAL, min(int(bench.noop_per_s[system.name] * run_s), MAX_JOBS)) // 100 * 100


async def _measure(bench: Bench, system: System, workers: int) -> None:
    count = _size(bench, system, bench.effort.run_s + START_ALLOWANCE_S)
    try:
        async with bench.stage(system, count) as stage:
            per_s = await _drain(stage, count, workers)
            outcome = await stage.tally.count_errors(count)
            note = system.note
            if unfinished := await _records_open(stage):
                note = f"{unfinished} records not final after {FINAL_TIMEOUT_S:g} s"
    except (Unavailable, TimeoutError) as error:
        bench.results.skip(NAME, case(workers), system.name, str(error) or "no result in time")
        return
    bench.results.add(NAME, case(workers), system.name, "jobs/s", per_s, count=outcome, note=note)


async def _drain(stage: Stage, count: int, workers: int) -> float:
    await stage.producer.order("bulk", "noop", 0, count)
    async with stage.workers(workers) as started:
        await stage.finish(count, started)
        await stage.tally.count_errors(count)
        await _records_open(stage)
    return stage.tally.per_s(count)


async def _records_open(stage: Stage) -> int:
    """Return how many records have not succeeded after up to 10 s."""
    until = time.monotonic() + FINAL_TIMEOUT_S
    while (unfinished := await stage.records_open()) and time.monotonic() < until:
        await asyncio.sleep(0.2)
    return unfinished
