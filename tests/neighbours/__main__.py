"""The neighbour suite: `python -m tests.neighbours`. 200 innocent jobs run next to each offender, in turn.

Prints what became of them, and the figures that must be reached. Exits with 0 if nothing was missed, else with 1.
"""

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from cplane import CplaneSettings
from cplane.dev import DevStack
from cplane.postgres.migrations import upgrade
from cplane.settings import load_settings
from tests.neighbours.cases import CASES, STAYING, Offender
from tests.neighbours.cluster import Cluster, open_cluster
from tests.neighbours.measures import Figure, blocked_by_pages, rerun_after_kill, time_to_stop
from tests.neighbours.trial import RECORDED_S, Report, run_trial, until_whole

HEAD = ("offender", "failed", "run twice", "run again", "latest start", "recorded", "whole again", "its outcome")
ROW = "{:32} {:>8} {:>9} {:>9} {:>12} {:>8} {:>11}  {}"


def main() -> int:
    """Run the suite. Returns the exit code."""
    options = read_options()
    chosen = [offender for offender in CASES if not options.only or any(name in offender.name for name in options.only)]
    staying = [offender for offender in STAYING if not options.only or any(n in offender.name for n in options.only)]
    if not chosen and not staying:
        known = ", ".join(offender.name for offender in (*CASES, *STAYING))
        sys.stderr.write(f"no offender has {options.only} in its name; known: {known}\n")
        return 2
    return asyncio.run(run_and_print(chosen, staying, options))


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.neighbours", description=__doc__)
    parser.add_argument("--only", action="append", metavar="NAME", help="only offenders with this in their names")
    parser.add_argument("--innocents", type=int, default=200, help="how many innocent jobs run next to each offender")
    parser.add_argument("--quick", action="store_true", help="short offenders, each dies once, as in the PR tier")
    parser.add_argument("--no-figures", action="store_true", help="leave out the figures below the table")
    parser.add_argument("--keep-log", type=Path, metavar="FILE", help="write what the workers logged to a file")
    return parser.parse_args()


async def run_and_print(chosen: Sequence[Offender], staying: Sequence[Offender], options: argparse.Namespace) -> int:
    say(f"{options.innocents} innocents next to each offender, two workers, {machine()}")
    misses: list[str] = []
    async with servers() as settings, open_cluster(settings, quick=options.quick) as cluster:
        try:
            figures, found = await run_cases(cluster, chosen, options)
        finally:
            if options.keep_log is not None:
                lines = [line for keeper in cluster.keepers for line in keeper.lines]
                options.keep_log.write_text("".join(lines))
        misses += found
        if not options.no_figures:
            figures.append(show(await rerun_after_kill(cluster)))
            figures.append(show(await blocked_by_pages(cluster)))
    if not options.no_figures:
        async with servers() as settings, open_cluster(settings, quick=options.quick, workers=0) as cluster:
            for offender in staying:
                figures.append(show(await time_to_stop(cluster, offender)))
    misses += [figure.miss for figure in figures if figure.miss]
    say(f"at the end: {machine()}")
    for miss in misses:
        say(f"MISSED  {miss}")
    return 1 if misses else 0


async def run_cases(
    cluster: Cluster, chosen: Sequence[Offender], options: argparse.Namespace
) -> tuple[list[Figure], list[str]]:
    """Run each offender among innocents, and print a row for each. Returns the figures, and what was missed."""
    await until_whole(cluster, time.time())  # its browsers have started
    say(ROW.format(*HEAD))
    misses: list[str] = []
    recorded_s = 0.0
    for offender in chosen:
        if offender.memory_mb > available_mb():
            say(f"{offender.name:32} left out: it needs {offender.memory_mb} MiB of free memory")
            continue
        report = await run_trial(cluster, [offender], options.innocents)
        say(row(report))
        misses += [f"{offender.name}: {miss}" for miss in report.misses()]
        if offender.is_bad_outcome:
            recorded_s = max(recorded_s, report.recorded_s)
    if not any(offender.is_bad_outcome for offender in chosen):
        return [], misses
    return [show(Figure("a bad outcome delays the records of others by at most", recorded_s, RECORDED_S))], misses


def row(report: Report) -> str:
    """Return the row of a trial."""
    outcome = report.outcomes[0]
    error = f"{outcome.type.rpartition('.')[2]}: " if outcome.type else ""
    return ROW.format(
        outcome.offender.name,
        f"{len(report.failed)}/{report.innocents}",
        len(report.twice),
        report.interrupted,
        f"{report.latest_s:.2f} s",
        f"{report.recorded_s:.2f} s",
        f"{report.whole_s:.1f} s",
        f"{outcome.state} {error}{outcome.message}"[:110].replace("\n", " "),
    )


def show(figure: Figure) -> Figure:
    """Print a figure."""
    mark = "MISSED" if figure.miss else "ok"
    where = f" ({figure.where})" if figure.where else ""
    say(f"{mark:6} {figure.what}: {figure.measured_s:.2f} s of {figure.target_s:g} s{where}; {machine()}")
    return figure


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def machine() -> str:
    """Return how busy this machine is."""
    load = " ".join(f"{value:.1f}" for value in os.getloadavg())
    return f"load {load} on {os.cpu_count()} cores, {time.strftime('%H:%M:%S')}"


def available_mb() -> int:
    """Return how much memory is free, in MiB."""
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) // 1024


@asynccontextmanager
async def servers() -> AsyncGenerator[CplaneSettings]:
    """Start Postgres and Redis in a temporary folder. Yields settings for them."""
    with tempfile.TemporaryDirectory(prefix="neighbours-servers-") as folder:
        async with DevStack(Path(folder), durable=False) as stack:
            await upgrade(stack.database_url)
            yield load_settings(
                database_url=stack.database_url,
                redis_url=stack.redis_url,
                artifacts_url=stack.artifacts_url,
                egress_allow=("loopback",),
            )


if __name__ == "__main__":
    sys.exit(main())
