"""Whole browser jobs: submitted, recorded in Postgres, run by a separate worker, awaited."""

import asyncio
import os
import signal
import sys
import tempfile
import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from benchmarks.pages.jobs import survive, visit
from benchmarks.pages.report import DEATH, JOB, JOB_RATE, JOBS, Report
from benchmarks.pages.visits import PAUSE_S
from benchmarks.suite.process_tree import tree
from benchmarks.suite.processes import child
from benchmarks.suite.servers import Servers
from benchmarks.suite.systems import ROOT
from benchmarks.suite.tally import median
from cplane import ControlPlane
from cplane.browser.engine.fleet import STABLE_AFTER_S
from cplane.postgres.migrations import upgrade
from cplane.settings import CplaneSettings, load_settings

PAGES = 4
DEADLINE_S = 120.0


@asynccontextmanager
async def worker(executable: str) -> AsyncGenerator[tuple[ControlPlane, int]]:
    """Start the servers, a worker process and a control plane; yield the control plane and the pid of the worker."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cplane-bench-")))
        (folder / "servers").mkdir()
        servers = await stack.enter_async_context(Servers(folder / "servers", durable=True))
        await servers.empty(None)
        env = {
            "CPLANE_DATABASE_URL": servers.database_url,
            "CPLANE_REDIS_URL": servers.redis_url,
            "CPLANE_ARTIFACTS_URL": (folder / "artifacts").as_uri(),
            "CPLANE_BROWSER_PAGES": str(PAGES),
            "CPLANE_BROWSER_EXECUTABLE": executable,
            "CPLANE_QUEUES": f"browser:{PAGES}",
            "CPLANE_IMPORTS": "benchmarks.pages.jobs",
            "CPLANE_EGRESS_ALLOW": "loopback",
            "CPLANE_LOG_LEVEL": "error",
            "PYTHONPATH": str(ROOT),
        }
        settings: CplaneSettings = load_settings(
            database_url=env["CPLANE_DATABASE_URL"], redis_url=env["CPLANE_REDIS_URL"]
        )
        await upgrade(settings.database_url)
        plane = await stack.enter_async_context(ControlPlane(settings))
        command = [sys.executable, "-m", "arq", "cplane.worker.Settings"]
        process = await stack.enter_async_context(child(command, env=env, cwd=ROOT, log=folder / "worker.log"))
        yield plane, process.pid


async def measure(report: Report, url: str, executable: str, *, jobs: int, idle: int, deaths: int) -> None:
    """Measure the idle latency, the throughput, and the recovery after a browser's death."""
    async with worker(executable) as (_, worker_pid):
        await (await visit.submit(url=url)).result(timeout=DEADLINE_S)
        waits_ms: list[float] = []
        for _ in range(idle):
            await asyncio.sleep(PAUSE_S)
            began = time.perf_counter()
            await (await visit.submit(url=url)).result(timeout=DEADLINE_S)
            waits_ms.append((time.perf_counter() - began) * 1000)
        report.add(JOB, JOBS, median(waits_ms))
        began = time.perf_counter()
        handles = await visit.submit_many([{"url": url}] * jobs)
        for handle in handles:
            await handle.result(timeout=DEADLINE_S)
        report.add(JOB_RATE, JOBS, jobs / (time.perf_counter() - began))
        for _ in range(deaths):
            await asyncio.sleep(
                STABLE_AFTER_S
            )  # a browser that dies soon after its launch is replaced only after a backoff
            report.add(DEATH, JOBS, await after_death(worker_pid) * 1000)


async def after_death(worker_pid: int) -> float:
    """Kill the browser of a running job; return the seconds until the job runs again on a working page."""
    with tempfile.TemporaryDirectory() as folder:
        handle = await survive.submit(folder=folder)
        async with asyncio.timeout(DEADLINE_S):
            while not os.listdir(folder):  # noqa: PTH208  a folder of at most one file
                await asyncio.sleep(0.01)
        killed = time.monotonic()
        os.kill(browser_of(worker_pid), signal.SIGKILL)
        return await handle.result(timeout=DEADLINE_S) - killed


def browser_of(worker_pid: int) -> int:
    """Return the pid of the browser's main process: the last one without --type, as a wrapper script may precede it."""
    found = 0
    for pid in tree(worker_pid):
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"--headless" in command and not any(part.startswith(b"--type=") for part in command):
            found = pid
    if not found:
        raise LookupError("the worker has no browser")
    return found
