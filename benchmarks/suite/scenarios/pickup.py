"""The latency from just before the submission to the first line of the job.

It is measured for one job at a time with random pauses, and at half load.

Half load is half of the no-op throughput, or half of the submit rate of 32 submitters if that is lower, because jobs
cannot arrive faster than they are submitted. Both times are read from CLOCK_MONOTONIC and written to shared memory.
"""

from benchmarks.suite.bench import Bench, Stage
from benchmarks.suite.processes import Unavailable
from benchmarks.suite.scenarios.submitting import submit_per_s
from benchmarks.suite.scenarios.throughput import noop_per_s
from benchmarks.suite.systems import System
from benchmarks.suite.tally import percentile

NAME = "pickup"
IDLE, LOADED = "idle", "half load"
PAUSE_S = 0.07
WARM = 20


def steps(bench: Bench) -> int:
    """Return how many progress reports `run` makes."""
    return len(bench.systems) * bench.effort.rounds


async def run(bench: Bench) -> None:
    """Run all rounds."""
    for number in range(bench.effort.rounds):
        for system in bench.systems:
            bench.report(f"pickup, round {number + 1}: {system.name}")
            await _measure(bench, system)


async def _measure(bench: Bench, system: System) -> None:
    sparse = bench.effort.sized(40, 150)
    try:
        able = await noop_per_s(bench, system)
        if not able:
            bench.results.skip(NAME, f"{IDLE}, p50", system.name, "cannot run jobs")
            return
        rate = min(able, await submit_per_s(bench, system)) / 2
        steady = max(50, int(rate * bench.effort.run_s))
        async with bench.stage(system, WARM + sparse + steady) as stage, stage.workers() as workers:
            await stage.warm(workers, WARM)
            await stage.producer.order("sparse", "noop", WARM, sparse, pause_s=PAUSE_S)
            await _record(stage, IDLE, WARM, sparse, "")
            await stage.producer.order("steady", "noop", WARM + sparse, steady, rate=rate)
            await stage.finish(WARM + sparse + steady, workers)
            await _record(stage, LOADED, WARM + sparse, steady, f"at {rate:,.0f} jobs/s")
    except (Unavailable, TimeoutError) as error:
        bench.results.skip(NAME, f"{IDLE}, p50", system.name, str(error) or "no result in time")


async def _record(stage: Stage, case: str, first: int, count: int, note: str) -> None:
    outcome = await stage.tally.count_errors(count, first=first)
    waits = stage.tally.waits_ms(count, first=first)
    for name, part in (("p50", 0.5), ("p99", 0.99)):
        value = percentile(waits, part)
        stage.bench.results.add(NAME, f"{case}, {name}", stage.system.name, "ms", value, count=outcome, note=note)
