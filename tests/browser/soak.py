"""Browser jobs under faults: `python -m tests.browser.soak --jobs 1000 --every 3`.

It exits with 0 if every job became final and nothing leaked.
"""

import argparse
import asyncio
import itertools
import json
import logging
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import asyncpg
import structlog
from playwright.async_api import BrowserContext, Page

from cplane import Context, ControlPlane, job
from cplane.browser import BrowserPool, PoolStats
from cplane.browser.engine.ledger import ProcessRegistry
from cplane.dev import DevStack
from cplane.jobs.states import FINAL, State
from cplane.postgres.migrations import upgrade
from cplane.settings import CplaneSettings, load_settings
from tests.browser.pools import find_descendants, serve
from tests.workers import running

FAULTS = ("renderer", "spin", "browser", "hang", "driver", "hog")
FINAL_S = 180.0
PROFILES = "playwright_chromiumdev_profile-*"
TRACES = "playwright-artifacts-*"


@job(timeout=30, retries=0)
async def soak_visit(page: Page, ctx: Context, url: str) -> str:
    await page.goto(url)
    await ctx.artifact("page.png", await page.screenshot())
    return await page.title()


@job(timeout=2, retries=0)
async def soak_spin(page: Page) -> None:
    """Keep the renderer busy in an endless loop."""
    await page.evaluate("() => { while (true); }")


@job(timeout=20, retries=0)
async def soak_hog(page: Page) -> None:
    """Allocate memory until the renderer dies."""
    await page.evaluate("() => { const all = []; while (true) all.push(new Array(1e6).fill(all.length)); }")


@job(timeout=20, retries=0)
async def soak_hang(browser_context: BrowserContext) -> None:
    """Make the context hang when it is closed."""

    async def never(**_: object) -> None:
        await asyncio.Event().wait()

    object.__setattr__(browser_context, "close", never)


EXPECTED = {
    "soak_visit": {State.SUCCEEDED},
    "soak_spin": {State.FAILED},
    "soak_hog": {State.FAILED},
    "soak_hang": {State.SUCCEEDED},
}


@dataclass
class Verdict:
    """The result of a run."""

    states: Counter[str] = field(default_factory=Counter[str])
    faults: Counter[str] = field(default_factory=Counter[str])
    violations: list[str] = field(default_factory=list[str])
    pool: PoolStats | None = None
    took_s: float = 0.0


def command(pid: int) -> bytes:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def victims(part: str) -> list[int]:
    """Return the processes of this run's browsers that are renderers, browsers or drivers."""
    commands = {pid: command(pid) for pid in find_descendants()}
    match part:
        case "renderer":
            return [pid for pid, line in commands.items() if b"--type=renderer" in line]
        case "driver":
            return [pid for pid, line in commands.items() if b"playwright/driver/node" in line]
        case _:
            named = [
                pid for pid, line in commands.items() if b"--remote-debugging-pipe" in line and b"--type=" not in line
            ]
            return [pid for pid in named if not commands[pid].startswith(b"/bin/sh")]


def kill(part: str) -> None:
    for pid in victims(part)[:1]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


async def soak(
    settings: CplaneSettings, *, jobs: int, every_s: float, report: Callable[[str], None] = lambda _: None
) -> Verdict:
    """Run visits, with one fault every `every_s` seconds, until all jobs are final; then check what is left."""
    verdict, started, before = Verdict(), time.monotonic(), Leftovers.read()
    async with await asyncio.start_server(serve, "127.0.0.1", 0) as site, ControlPlane(settings):
        host, port = site.sockets[0].getsockname()
        async with running(settings, pages=True, deadline_s=2 * FINAL_S + jobs) as worker:
            await soak_visit.submit_many([{"url": f"http://{host}:{port}/"}] * jobs)
            await inject_faults(settings, every_s, verdict, report)
            await check_pool(worker.pages.pool(), verdict)
    await before.check(verdict)
    verdict.took_s = time.monotonic() - started
    return verdict


async def inject_faults(
    settings: CplaneSettings, every_s: float, verdict: Verdict, report: Callable[[str], None]
) -> None:
    """Inject each fault at least once until every visit is final; then wait for the faults' own jobs."""
    faults = itertools.cycle(FAULTS)
    counts = await records(settings)
    deadline = time.monotonic() + FINAL_S + counts.total()
    while (left := unfinished(counts)) or verdict.faults.total() < len(FAULTS):
        if time.monotonic() > deadline:
            verdict.violations.append(f"{left} jobs are not final")
            break
        await asyncio.sleep(every_s)
        visits = sum(number for (name, state, _), number in counts.items() if "visit" in name and state not in FINAL)
        if visits or verdict.faults.total() < len(FAULTS):
            fault = next(faults)
            verdict.faults[fault] += 1
            await inject(fault)
        counts = await records(settings)
        report(f"{verdict.faults.total():4} faults  {left:5} jobs left")
    for (name, state, error), number in counts.items():
        verdict.states[f"{name} {state} {error}".strip()] += number
        if state not in EXPECTED[name]:
            verdict.violations.append(f"{number} times {name} {state}: {error}")


def unfinished(counts: Counter[tuple[str, State, str]]) -> int:
    return sum(number for (_, state, _), number in counts.items() if state not in FINAL)


async def inject(fault: str) -> None:
    match fault:
        case "spin":
            await soak_spin.submit()
        case "hang":
            await soak_hang.submit()
        case "hog":
            await soak_hog.submit()
        case part:
            await asyncio.to_thread(kill, part)


async def records(settings: CplaneSettings) -> Counter[tuple[str, State, str]]:
    """Count the records by job, state and error."""
    connect = cast("Callable[[str], Awaitable[Any]]", asyncpg.connect)  # pyright: ignore[reportUnknownMemberType]  untyped
    connection = await connect(settings.database_url.get_secret_value())
    try:
        rows = await connection.fetch(
            "SELECT job, state, concat_ws(': ', error_type, error_message) AS error, count(*) AS n FROM cplane.jobs GROUP BY 1, 2, 3"
        )
    finally:
        await connection.close()
    return Counter({(row["job"], State(row["state"]), row["error"]): row["n"] for row in rows})


async def check_pool(pool: BrowserPool, verdict: Verdict) -> None:
    """Check that every slot is free again, and that only the contexts of warm pages are open."""
    warm = (pool.stats().max_pages + 1) // 2
    try:
        async with asyncio.timeout(60):
            while pool.stats().open or sum(len(browser.browser.contexts) for browser in pool.browsers) > warm:
                await asyncio.sleep(0.05)
    except TimeoutError:
        contexts = [len(browser.browser.contexts) for browser in pool.browsers]
        verdict.violations.append(f"after all jobs: {pool.stats()}, contexts {contexts}")
    verdict.pool = pool.stats()


@dataclass(frozen=True)
class Leftovers:
    """Processes and files that exist now."""

    processes: set[int]
    files: set[Path]

    @classmethod
    def read(cls) -> "Leftovers":
        temporary = Path(tempfile.gettempdir())
        files = {*temporary.glob(PROFILES), *temporary.glob(TRACES), *ProcessRegistry().folder.glob("*")}
        return cls(find_descendants(), files)

    async def check(self, verdict: Verdict) -> None:
        """Check that nothing that was added since stays."""
        try:
            async with asyncio.timeout(20):
                while (now := Leftovers.read()).processes - self.processes or self.mine(now.files - self.files):
                    await asyncio.sleep(0.1)
        except TimeoutError:
            now = Leftovers.read()
            processes = [(pid, command(pid)[:100]) for pid in now.processes - self.processes]
            verdict.violations.append(f"left behind: {processes}, {self.mine(now.files - self.files)}")

    def mine(self, files: set[Path]) -> set[Path]:
        """Leave out the files of browsers that other tests run concurrently."""
        mark = f"artifacts-{os.getpid()}-"
        entries = {path for path in files if path.suffix == ".json" and owner(path) != os.getpid()}
        artifacts = {path for path in files if path.name.startswith("artifacts-") and not path.name.startswith(mark)}
        profiles = {Path(entry["profile"]) for path in entries if (entry := read_entry(path))}
        return files - entries - artifacts - profiles


def owner(path: Path) -> int | None:
    """Return the process that owns a registered browser; None: it is no longer registered."""
    entry = read_entry(path)
    return int(entry["owner"][0]) if entry else None


def read_entry(path: Path) -> dict[str, Any]:
    """Read an entry of the registry; empty if it was removed in the meantime."""
    try:
        return cast("dict[str, Any]", json.loads(path.read_text()))
    except OSError:
        return {}


async def main(options: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory(prefix="cplane-soak-") as folder:
        async with DevStack(Path(folder), durable=False) as stack:
            await upgrade(stack.database_url)
            settings = load_settings(
                database_url=stack.database_url,
                redis_url=stack.redis_url,
                artifacts_url=(Path(folder) / "artifacts").as_uri(),
                egress_allow=("loopback",),
            )
            verdict = await soak(settings, jobs=options.jobs, every_s=options.every, report=print)
    print(f"{verdict.took_s:.0f} s, faults {dict(verdict.faults)}")
    print(f"pool {verdict.pool}")
    for state, number in sorted(verdict.states.items()):
        print(f"{number:6}  {state}")
    for violation in verdict.violations:
        print(f"VIOLATION: {violation}")
    return 1 if verdict.violations else 0


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.browser.soak", description=__doc__)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--every", type=float, default=3.0, help="seconds between two faults")
    return parser.parse_args()


if __name__ == "__main__":
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    sys.exit(asyncio.run(main(read_options())))
