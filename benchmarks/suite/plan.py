"""One run of the selected scenarios, with their environments and servers, which are stopped at the end."""

import asyncio
import os
import platform
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from benchmarks.suite import environments
from benchmarks.suite.bench import Bench, Effort
from benchmarks.suite.results import Results
from benchmarks.suite.scenarios import http, scale
from benchmarks.suite.servers import Servers
from benchmarks.suite.systems import ENVIRONMENTS, System
from benchmarks.suite.tally import MEMORY
from benchmarks.suite.tally import PREFIX as SLOTS

PREFIX = "run-"
"""Prefix of the folder of a run, followed by the pid."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure, in which size, and the arguments that repeat the run."""

    systems: Sequence[System]
    scenarios: Sequence[ModuleType]
    effort: Effort
    durable: bool
    keep: bool
    arguments: str


async def run(plan: Plan, console: Console, results: Results) -> None:
    """Prepare, then run every scenario into `results`. A signal stops the run and all its processes.

    Raises:
        InstallError: the environment of a peer could not be created.
    """
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    async with AsyncExitStack() as stack:
        progress = stack.enter_context(_progress(console))
        shown = progress.add_task("preparing", total=None)
        await _environments(plan, progress, shown)
        folder = await stack.enter_async_context(_folder(console, keep=plan.keep))
        servers = await stack.enter_async_context(Servers(folder, durable=plan.durable))
        bench = Bench(
            servers=servers,
            systems=plan.systems,
            effort=plan.effort,
            folder=folder,
            report=lambda words: progress.update(shown, description=words, advance=1),
            results=results,
        )
        results.conditions = await _conditions(plan, servers)
        console.print("  ".join(f"{name} [b]{value}[/]" for name, value in results.conditions.items()))
        progress.update(shown, total=sum(module.steps(bench) for module in plan.scenarios))
        for module in plan.scenarios:
            await module.run(bench)
            console.print(f"[dim]{module.NAME} done[/]")
        progress.update(shown, description="done", total=progress.tasks[0].completed)


def _progress(console: Console) -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(20),
        TimeElapsedColumn(),
        TextColumn("about"),
        TimeRemainingColumn(compact=True),
        TextColumn("to go"),
        console=console,
    )


async def _environments(plan: Plan, progress: Progress, shown: TaskID) -> None:
    names: list[str] = []
    if not {*plan.scenarios} <= {scale, http}:  # these two are ours alone
        names += dict.fromkeys(system.folder for system in plan.systems if not system.ours)
    if http in plan.scenarios:
        names.append(environments.REFERENCE)
    for name in names:
        progress.update(shown, description=f"environment of {name}")
        await environments.ensure(name)


@asynccontextmanager
async def _folder(console: Console, *, keep: bool) -> AsyncGenerator[Path]:
    """Create the folder for the data of the servers and the logs, on the disk of the project."""
    ENVIRONMENTS.mkdir(parents=True, exist_ok=True)
    _remove_leftovers()
    folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=ENVIRONMENTS))
    try:
        yield folder
    finally:
        if keep:
            kept = ENVIRONMENTS / "logs"
            await asyncio.to_thread(shutil.rmtree, kept, ignore_errors=True)
            shutil.copytree(folder, kept, ignore=shutil.ignore_patterns("postgres", "redis", "artifacts"))
            console.print(f"logs: {kept}")
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


def _remove_leftovers() -> None:
    """Remove the files of killed runs, whose servers died with them."""
    for base, prefix in ((ENVIRONMENTS, PREFIX), (MEMORY, SLOTS)):
        for leftover in base.glob(f"{prefix}*"):
            pid = leftover.name.removeprefix(prefix).partition("-")[0]
            if Path(f"/proc/{pid}").exists():
                continue
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)


async def _conditions(plan: Plan, servers: Servers) -> dict[str, str]:
    """Return the conditions of the run, without anything that identifies the machine."""
    effort = plan.effort
    size = ("quick" if effort.quick else "usual") + (", scale in full" if effort.full else "")
    conditions = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "cores": str(os.cpu_count()),
        "load average before": f"{os.getloadavg()[0]:.1f}",
        "Python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "arguments": plan.arguments,
        "rounds": str(effort.rounds),
        "sizes": size,
        "clock": f"CLOCK_MONOTONIC, {time.get_clock_info('monotonic').resolution:g} s",
        "cplane": version("cplane"),
    }
    peers = dict.fromkeys(system.folder for system in plan.systems if not system.ours)
    conditions |= {name: environments.version(name) for name in peers}
    return conditions | await servers.describe()
