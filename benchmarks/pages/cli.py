"""The command line of the browser benchmark."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks.pages import whole
from benchmarks.pages.report import ACQUIRE, MEMORY, RATE, VISIT, Report, show
from benchmarks.pages.systems import FRESH, WAYS, Way
from benchmarks.suite import environments
from benchmarks.suite.systems import ROOT
from benchmarks.suite.tally import median
from cplane.browser import find_executable

RUN_S = 600.0
FILE_WIDTH = 160

Rounds = Annotated[int, typer.Option("--rounds", min=1, help="Number of rounds; each measures everything once.")]
Visits = Annotated[
    int,
    typer.Option("--visits", min=8, help="Visits per measurement at saturation, in two halves."),
]
Idle = Annotated[int, typer.Option("--idle", min=4, help="Visits per measurement of an idle system.")]
Memory = Annotated[int, typer.Option("--memory", min=0, help="Pages over which memory is measured; 0: no measurement.")]
Deaths = Annotated[int, typer.Option("--deaths", min=0, help="Number of browsers to kill while a job runs.")]
Json = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write all values as JSON.")]


Program = Callable[..., Awaitable[dict[str, Any]]]
"""Runs the program of a way with options, and returns its measurements."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """The size of a run."""

    rounds: int
    visits: int
    idle: int
    memory: int
    deaths: int


def main(
    *,
    rounds: Rounds = 3,
    visits: Visits = 200,
    idle: Idle = 30,
    memory: Memory = 0,
    deaths: Deaths = 3,
    json_file: Json = None,
) -> None:
    """Measure cplane's pages, plain Playwright, crawlee's pool and a browser a visit, in one run, and print ratios.

    Every way visits the same page on loopback, with the same browser and four concurrent pages: without a pause
    (visits/s), then one by one with a pause (latency). Then whole jobs: submitted, recorded, run by a separate worker
    and awaited; and jobs whose browser is killed.
    """
    console = Console() if sys.stdout.isatty() else Console(width=FILE_WIDTH)
    report = Report()
    sizes = Sizes(rounds, visits, idle, memory, deaths)
    try:
        asyncio.run(run(console, report, sizes))
    except environments.InstallError as error:
        console.print(f"[red]an environment could not be created:[/] {error}")
        raise typer.Exit(1) from None
    finally:
        if report.values:
            show(console, report)
            if json_file is not None:
                report.save(json_file)


async def run(console: Console, report: Report, sizes: Sizes) -> None:
    """Measure all ways in turn, round by round, so that load on the machine affects all of them."""
    await environments.ensure("crawlee")
    executable = str(find_executable().path)
    async with site() as url:
        program = partial(timed, url, executable)
        for number in range(sizes.rounds):
            ways = WAYS[number % len(WAYS) :] + WAYS[: number % len(WAYS)]
            console.print(f"[dim]round {number + 1} of {sizes.rounds}: at saturation[/]")
            await measure_busy(console, report, ways, program, sizes.visits)
            console.print(f"[dim]round {number + 1} of {sizes.rounds}: idle[/]")
            for way in ways:
                console.print(f"[dim]  {way.name}[/]")
                await measure_idle(report, way, program, sizes.idle)
            console.print(f"[dim]round {number + 1} of {sizes.rounds}: whole jobs[/]")
            await whole.measure(report, url, executable, jobs=sizes.visits, idle=sizes.idle, deaths=sizes.deaths)
        if sizes.memory:
            console.print(f"[dim]memory over {sizes.memory} pages[/]")
            ratio, *_ = (
                await output([sys.executable, "-m", "benchmarks.pages.memory", url, str(sizes.memory)])
            ).split()
            report.add(MEMORY, FRESH.name, float(ratio))


async def measure_busy(console: Console, report: Report, ways: Sequence[Way], program: Program, visits: int) -> None:
    """Measure all ways at saturation: half of the visits in this order, half in reverse.

    A machine that slows down during the measurement then affects all ways.
    """
    took_s = dict.fromkeys(ways, 0.0)
    for way in (*ways, *reversed(ways)):
        console.print(f"[dim]  {way.name}[/]")
        half = _half(way, visits)
        busy = await program(way, "--visits", str(half))
        took_s[way] += half / busy["per_s"]
    for way in ways:
        report.add(RATE, way.name, 2 * _half(way, visits) / took_s[way])


def _half(way: Way, visits: int) -> int:
    return max(8, visits // (10 if way.slow else 2))


async def measure_idle(report: Report, way: Way, program: Program, visits: int) -> None:
    """Measure one way, one visit after the other."""
    idle = await program(way, "--visits", str(visits), "--idle")
    report.add(VISIT, way.name, median(idle["visit_ms"]))
    report.add(ACQUIRE, way.name, median(idle["acquire_ms"]))


async def timed(url: str, executable: str, way: Way, *options: str) -> dict[str, Any]:
    """Run the program of one way, and return its measurements."""
    measured: dict[str, Any] = json.loads(
        await output([*way.command, "--url", url, "--executable", executable, *options])
    )
    return measured


@asynccontextmanager
async def site() -> AsyncGenerator[str]:
    """Serve the page from another process, and yield its URL."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "benchmarks.pages.site",
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield (await process.stdout.readline()).decode().strip()
    finally:
        process.stdin.close()
        await process.wait()


async def output(command: Sequence[str]) -> str:
    """Run a program, and return its last line of output."""
    process = await asyncio.create_subprocess_exec(
        *command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(RUN_S):
            printed, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with exit code {process.returncode}")
    return printed.decode().strip().splitlines()[-1]


def app() -> None:
    """Run the command line."""
    command = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    command.command()(main)
    command()
