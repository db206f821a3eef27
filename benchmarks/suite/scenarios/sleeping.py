"""Jobs that sleep 100 ms, 32 and 256 concurrent in one worker: the overhead of a framework for jobs that wait for I/O.

They use asyncio.sleep if the system has an event loop, else time.sleep in as many threads. The upper bound is
concurrency ÷ 0.1 s. The rate is measured from the end of the first job to the end of the last.
"""

from benchmarks.suite.bench import Bench
from benchmarks.suite.processes import Unavailable
from benchmarks.suite.systems import System

NAME = "sleeping"
CONCURRENCIES = (32, 256)
SLEEP_S = 0.1


def steps(bench: Bench) -> int:
    """Return how many progress reports `run` makes."""
    return len(bench.systems) * bench.effort.rounds * len(CONCURRENCIES)


async def run(bench: Bench) -> None:
    """Run all rounds."""
    for number in range(bench.effort.rounds):
        for concurrency in CONCURRENCIES:
            for system in bench.systems:
                bench.report(f"sleeping, round {number + 1}: {system.name}, {concurrency} concurrent")
                await _measure(bench, system, concurrency)


def case(concurrency: int) -> str:
    """Return the name of the case with this concurrency."""
    return f"100 ms jobs, {concurrency} concurrent"


async def _measure(bench: Bench, system: System, concurrency: int) -> None:
    if concurrency not in system.sleeps:
        bench.results.skip(
            NAME, case(concurrency), system.name, "n/a: this machine cannot sensibly run as many processes"
        )
        return
    count = int(concurrency / SLEEP_S * bench.effort.run_s)
    try:
        async with bench.stage(system, count) as stage:
            await stage.producer.order("bulk", "sleep", 0, count)
            async with stage.workers(concurrency=concurrency) as workers:
                await stage.finish(count, workers)
                outcome = await stage.tally.count_errors(count)
            per_s = stage.tally.per_s(count)
    except (Unavailable, TimeoutError) as error:
        bench.results.skip(NAME, case(concurrency), system.name, str(error) or "no result in time")
        return
    note = f"at most {concurrency / SLEEP_S:,.0f}/s are possible"
    bench.results.add(NAME, case(concurrency), system.name, "jobs/s", per_s, count=outcome, note=note)
