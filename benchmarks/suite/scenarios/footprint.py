"""The footprint of one worker: its memory after 1,000 jobs, and its CPU time while it is idle.

Both count the worker's whole process tree. Memory is the proportional set (PSS), with the resident set (RSS) in the
note. Idle time starts 2 s after the last job.
"""

import asyncio

from benchmarks.suite.bench import Bench
from benchmarks.suite.process_tree import cpu_s, memory_mb, tree
from benchmarks.suite.processes import Unavailable
from benchmarks.suite.systems import System

NAME = "footprint"
MEMORY, IDLE = "memory of a worker", "idle worker"
JOBS = 1000
IDLE_DELAY_S = 2.0


def steps(bench: Bench) -> int:
    """Return how many progress reports `run` makes."""
    return len(bench.systems) * bench.effort.rounds


async def run(bench: Bench) -> None:
    """Run all rounds."""
    for number in range(bench.effort.rounds):
        for system in bench.systems:
            bench.report(f"footprint, round {number + 1}: {system.name}")
            await _measure(bench, system)


async def _measure(bench: Bench, system: System) -> None:
    idle_s = 4.0 if bench.effort.quick else 12.0
    try:
        async with bench.stage(system, JOBS) as stage, stage.workers() as workers:
            await stage.producer.order("bulk", "noop", 0, JOBS)
            await stage.finish(JOBS, workers)
            outcome = await stage.tally.count_errors(JOBS)
            await asyncio.sleep(IDLE_DELAY_S)
            pids = tree(workers[0].pid)
            pss_mb, rss_mb = memory_mb(pids)
            before_s = cpu_s(pids)
            await asyncio.sleep(idle_s)
            idle = (cpu_s(pids) - before_s) / idle_s * 100
    except (Unavailable, TimeoutError) as error:
        bench.results.skip(NAME, MEMORY, system.name, str(error) or "no result in time")
        return
    processes = f"{len(pids)} process{'es' if len(pids) > 1 else ''}, "
    note = f"PSS; {processes}RSS {rss_mb:.0f} MB"
    bench.results.add(NAME, MEMORY, system.name, "MB", pss_mb, count=outcome, note=note)
    bench.results.add(NAME, IDLE, system.name, "% CPU", idle)
