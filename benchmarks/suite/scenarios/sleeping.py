"""Jobs that sleep 100 ms, 32 and 256 at once in one worker: what a framework adds to jobs that wait for others.

asyncio.sleep where the system has an event loop, time.sleep in as many threads where it has not. Nothing can be faster than
concurrency ÷ 0.1 s. The clock runs from the first job that ended to the last.
"""

from benchmarks.suite.bench import Bench
from benchmarks.suite.processes import Unavailable
from benchmarks.suite.systems import System

NAME = "sleeping"
CONCURRENCIES = (32, 256)
SLEEP_S = 0.1


def steps(bench: Bench) -> int:
    """How often `run` tells what it does."""
    return len(bench.systems) * bench.effort.rounds * len(CONCURRENCIES)


async def run(bench: Bench) -> None:
    """All rounds."""
    for number in range(bench.effort.rounds):
        for concurrency in CONCURRENCIES:
            for system in bench.systems:
                bench.tell(f"sleeping, round {number + 1}: {system.name}, {concurrency} concurrent")
                await _measure(bench, system, concurrency)


def case(concurrency: int) -> str:
    """How a concurrency is called."""
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
                outcome = await stage.tally.settle(count)
            per_s = stage.tally.per_s(count)
    except (Unavailable, TimeoutError) as error:
        bench.results.skip(NAME, case(concurrency), system.name, str(error) or "no answer in time")
        return
    note = f"at most {concurrency / SLEEP_S:,.0f}/s are possible"
    bench.results.add(NAME, case(concurrency), system.name, "jobs/s", per_s, count=outcome, note=note)
