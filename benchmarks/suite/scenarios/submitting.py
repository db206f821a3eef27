"""Submit rates without a worker: one submission after another, 32 submitters in one process, the fastest bulk call.

Each system defines what accepted means: cplane has committed a row when `submit` returns, unless the job is transient.
"""

from benchmarks.suite.bench import Bench, Stage
from benchmarks.suite.processes import Unavailable
from benchmarks.suite.systems import System

NAME = "submitting"
SINGLE, CONCURRENT, BULK = "one after another", "32 submitters", "bulk"
SUBMITTERS = 32
WARM = 100
"""Submissions before the measurement, so that connections are open and scripts are loaded."""

BULK_JOBS = 20_000
"""A smaller number is accepted within one cycle of Python's garbage collector."""


def steps(bench: Bench) -> int:
    """Return how many progress reports `run` makes."""
    return len(bench.systems) * bench.effort.rounds


async def run(bench: Bench) -> None:
    """Run all rounds."""
    for number in range(bench.effort.rounds):
        for system in bench.systems:
            bench.report(f"submitting, round {number + 1}: {system.name}")
            await _measure(bench, system)


async def submit_per_s(bench: Bench, system: System) -> float:
    """Return the submit rate of 32 submitters; a short measurement if this scenario did not run."""
    if system.name not in bench.submit_per_s:
        async with bench.stage(system, WARM + 1000) as stage:
            await stage.producer.order("concurrent", "noop", 0, WARM, submitters=SUBMITTERS)
            took_s = await stage.producer.order("concurrent", "noop", WARM, 1000, submitters=SUBMITTERS)
            bench.submit_per_s[system.name] = 1000 / took_s
    return bench.submit_per_s[system.name]


async def _measure(bench: Bench, system: System) -> None:
    sizes = (bench.effort.sized(300, 1500), bench.effort.sized(1000, 6000), BULK_JOBS)
    try:
        async with bench.stage(system, WARM + sum(sizes)) as stage:
            await stage.producer.order("concurrent", "noop", 0, WARM, submitters=SUBMITTERS)
            await _time(stage, SINGLE, "single", WARM, sizes[0])
            per_s = await _time(stage, CONCURRENT, "concurrent", WARM + sizes[0], sizes[1], submitters=SUBMITTERS)
            bench.submit_per_s[system.name] = per_s
            await _time(stage, BULK, "bulk", WARM + sizes[0] + sizes[1], sizes[2])
    except (Unavailable, TimeoutError) as error:
        bench.results.skip(NAME, SINGLE, system.name, str(error) or "no result in time")


async def _time(stage: Stage, case: str, do: str, first: int, count: int, **more: float) -> float:
    per_s = count / await stage.producer.order(do, "noop", first, count, **more)
    stage.bench.results.add(NAME, case, stage.system.name, "jobs/s", per_s)
    return per_s
