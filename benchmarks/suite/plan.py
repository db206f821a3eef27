"""One run of the chosen scenarios: environments and servers first, then one scenario after another, and everything stopped at the end."""

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
"""Of the folder of a run; the pid follows."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be measured, how thoroughly, and the arguments that say so."""

    systems: Sequence[System]
    scenarios: Sequence[ModuleType]
    effort: Effort
    durable: bool
    keep: bool
    again: str


async def run(plan: Plan, console: Console, results: Results) -> None:
    """Prepare, then run every scenario into `results`; a signal stops it and everything it started.

    Raises:
        InstallError: the environment of a peer could not be made.
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
            tell=lambda words: progress.update(shown, description=words, advance=1),
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
    """Where the servers keep their data and every process its log, on the disk the project is on."""
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
    """What runs left that were killed; their servers died with them."""
    for base, prefix in ((ENVIRONMENTS, PREFIX), (MEMORY, SLOTS)):
        for left in base.glob(f"{prefix}*"):
            pid = left.name.removeprefix(prefix).partition("-")[0]
            if Path(f"/proc/{pid}").exists():
                continue
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)


async def _conditions(plan: Plan, servers: Servers) -> dict[str, str]:
    """Under which conditions all this was measured; nothing that names the machine."""
    effort = plan.effort
    size = ("quick" if effort.quick else "usual") + (", scale in full" if effort.full else "")
    said = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "cores": str(os.cpu_count()),
        "load average before": f"{os.getloadavg()[0]:.1f}",
        "Python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "arguments": plan.again,
        "rounds": str(effort.rounds),
        "sizes": size,
        "clock": f"CLOCK_MONOTONIC, {time.get_clock_info('monotonic').resolution:g} s",
        "cplane": version("cplane"),
    }
    peers = dict.fromkeys(system.folder for system in plan.systems if not system.ours)
    said |= {name: environments.version(name) for name in peers}
    return said | await servers.describe()
