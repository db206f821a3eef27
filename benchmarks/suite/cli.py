"""The command line of the benchmarks."""

import asyncio
import os
import platform
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from benchmarks.suite import environments, tables
from benchmarks.suite.bench import Bench, Effort
from benchmarks.suite.plots import write_report
from benchmarks.suite.scenarios import footprint, http, pickup, scale, sleeping, submitting, throughput
from benchmarks.suite.servers import Servers
from benchmarks.suite.systems import ENVIRONMENTS, ROOT, SYSTEMS, System
from cplane.dev import DevStack

SCENARIOS: dict[str, Any] = {
    module.NAME: module for module in (throughput, sleeping, submitting, pickup, footprint, scale, http)
}
QUICK_S, USUAL_S = 1.0, 4.0
FILE_WIDTH = 180
"""Columns where the output is no terminal."""

ENVIRONMENTS_HELP = """Each peer gets an environment of its own below .cache/benchmarks, with the versions in
benchmarks/peers/NAME/requirements.txt. All systems get the same Redis and Postgres, started and emptied here. How each is configured, and
why, stands in benchmarks/peers/NAME/app.py."""
EPILOG = "\n\n".join(
    [
        f"[b]Scenarios[/]: {', '.join(SCENARIOS)}.",
        f"[b]Systems[/]: {', '.join(system.name for system in SYSTEMS)}. `cplane` means both of ours.",
        "[cyan]$ python benchmarks/peers.py --quick[/]   everything, small: is it all there, and about how fast",
        "[cyan]$ python benchmarks/peers.py --json results.json --plots[/]   what docs/benchmarks.md shows",
        "[cyan]$ python benchmarks/peers.py --only cplane,arq --scenario throughput,pickup --rounds 5[/]",
        "[cyan]$ python benchmarks/peers.py --only cplane --scenario scale --full[/]   up to five million records",
        ENVIRONMENTS_HELP,
        "A busy machine distorts everything: look at the lowest and the highest of the rounds.",
    ]
)

Only = Annotated[str, typer.Option("--only", metavar="NAME,…", help="Only these systems.")]
Scenario = Annotated[str, typer.Option("--scenario", metavar="NAME,…", help="Only these scenarios.")]
Rounds = Annotated[
    int | None, typer.Option("--rounds", min=1, help="How often each is measured: 3, or 1 with --quick.")
]
Quick = Annotated[bool, typer.Option("--quick", help="Small sizes and one round: minutes instead of an hour or two.")]
Full = Annotated[bool, typer.Option("--full", help="Scale up to 1,000,000 queued jobs and 5,000,000 records.")]
Durable = Annotated[
    bool, typer.Option("--durable/--fast", help="Whether Postgres and Redis keep what they hold through a crash.")
]
Json = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write all values as JSON.")]
Plots = Annotated[bool, typer.Option("--plots", help="Write docs/benchmarks.md and its plots.")]
Keep = Annotated[bool, typer.Option("--keep", help="Leave the log of every process in place, and say where.")]


def main(
    *,
    only: Only = "",
    scenario: Scenario = "",
    rounds: Rounds = None,
    quick: Quick = False,
    full: Full = False,
    durable: Durable = True,
    json: Json = None,
    plots: Plots = False,
    keep: Keep = False,
) -> None:
    """Measure cplane and seven other task frameworks on this machine, in one run, and print one table with ratios.

    No-op throughput with 1, 2 and 4 workers, jobs that sleep, submit rates, pickup latency, memory and idle CPU, how cplane scales, and HTTP submits
    beside a plain FastAPI endpoint. Every job leaves a mark in shared memory, so jobs that were lost or ran twice are counted in every run.
    """
    console = Console() if sys.stdout.isatty() else Console(width=FILE_WIDTH)
    systems = _systems(only)
    scenarios = _scenarios(scenario)
    effort = Effort(rounds=rounds or (1 if quick else 3), run_s=QUICK_S if quick else USUAL_S, quick=quick, full=full)
    try:
        bench = asyncio.run(_run(console, systems, scenarios, effort, durable=durable, keep=keep))
        bench.results.conditions["arguments"] = _again(only, scenario, effort, durable=durable)
    except (KeyboardInterrupt, asyncio.CancelledError):
        console.print("stopped; every process that was started is gone")
        raise typer.Exit(130) from None
    except environments.InstallError as error:
        console.print(f"[red]an environment could not be made:[/] {error}")
        raise typer.Exit(1) from None
    tables.print_results(console, bench.results)
    if json is not None:
        bench.results.save(json)
    if plots:
        write_report(bench.results, ROOT / "docs")


def _again(only: str, scenario: str, effort: Effort, *, durable: bool) -> str:
    """The arguments that measure the same again."""
    given = {"--only": only, "--scenario": scenario, "--rounds": str(effort.rounds)}
    words = [word for name, value in given.items() if value for word in (name, value)]
    flags = {"--quick": effort.quick, "--full": effort.full, "--fast": not durable}
    return " ".join([*words, *(flag for flag, on in flags.items() if on), "--json results.json --plots"])


def app() -> None:
    """Run the command line."""
    command = typer.Typer(
        rich_markup_mode="rich", add_completion=False, context_settings={"help_option_names": ["-h", "--help"]}
    )
    command.command(epilog=EPILOG)(main)
    command()


def _systems(only: str) -> list[System]:
    wanted = [name.strip() for name in only.split(",") if name.strip()]
    known = [system.name for system in SYSTEMS]
    for name in wanted:
        if not any(_is(system, name) for system in known):
            raise typer.BadParameter(f"no system named '{name}'; known: {', '.join(known)}", param_hint="--only")
    return [system for system in SYSTEMS if not wanted or any(_is(system.name, name) for name in wanted)]


def _is(system: str, name: str) -> bool:
    return name in {system, system.partition(" ")[0]}


def _scenarios(chosen: str) -> list[ModuleType]:
    wanted = [name.strip() for name in chosen.split(",") if name.strip()]
    for name in wanted:
        if name not in SCENARIOS:
            raise typer.BadParameter(
                f"no scenario named '{name}'; known: {', '.join(SCENARIOS)}", param_hint="--scenario"
            )
    return [module for name, module in SCENARIOS.items() if not wanted or name in wanted]


async def _run(
    console: Console,
    systems: Sequence[System],
    scenarios: Sequence[ModuleType],
    effort: Effort,
    *,
    durable: bool,
    keep: bool,
) -> Bench:
    """Prepare, run every scenario, answer what was found; a signal stops it and everything it started."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    async with AsyncExitStack() as stack:
        progress = stack.enter_context(_progress(console))
        shown = progress.add_task("preparing", total=len(scenarios) + 1)
        await _environments(systems, scenarios, progress, shown)
        folder = await stack.enter_async_context(_folder(console, keep=keep))
        running = await stack.enter_async_context(DevStack(folder, durable=durable))
        servers = Servers(running.database_url, running.redis_url)
        bench = Bench(
            servers=servers,
            systems=systems,
            effort=effort,
            folder=folder,
            tell=lambda words: progress.update(shown, description=words),
        )
        bench.results.conditions = await _conditions(servers, systems, effort)
        console.print("  ".join(f"{name} [b]{value}[/]" for name, value in bench.results.conditions.items()))
        for module in scenarios:
            progress.advance(shown)
            await module.run(bench)
            console.print(f"[dim]{module.NAME} done[/]")
        progress.update(shown, description="done", completed=len(scenarios) + 1)
    return bench


def _progress(console: Console) -> Progress:
    return Progress(
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(20), TimeElapsedColumn(), console=console
    )


async def _environments(
    systems: Sequence[System], scenarios: Sequence[ModuleType], progress: Progress, shown: TaskID
) -> None:
    names: list[str] = []
    if not {*scenarios} <= {scale, http}:  # these two are ours alone
        names += dict.fromkeys(system.folder for system in systems if not system.ours)
    if http in scenarios:
        names.append(environments.REFERENCE)
    for name in names:
        progress.update(shown, description=f"environment of {name}")
        await environments.ensure(name)


@asynccontextmanager
async def _folder(console: Console, *, keep: bool) -> AsyncGenerator[Path]:
    """Where the servers keep their data and every process its log, on the disk the project is on."""
    ENVIRONMENTS.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="run-", dir=ENVIRONMENTS))
    try:
        yield folder
    finally:
        if keep:
            console.print(f"logs: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)


async def _conditions(servers: Servers, systems: Sequence[System], effort: Effort) -> dict[str, str]:
    """Under which conditions all this was measured; nothing that names the machine."""
    size = "quick" if effort.quick else "full" if effort.full else "usual"
    said = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "cores": str(os.cpu_count()),
        "Python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "rounds": str(effort.rounds),
        "sizes": size,
        "clock": f"CLOCK_MONOTONIC, {time.get_clock_info('monotonic').resolution:g} s",
        "cplane": version("cplane"),
    }
    peers = dict.fromkeys(system.folder for system in systems if not system.ours)
    said |= {name: environments.version(name) for name in peers}
    return said | await servers.describe()
