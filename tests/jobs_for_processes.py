"""Jobs for tests whose workers are separate processes, imported by CPLANE_IMPORTS=jobs_for_processes."""

import asyncio
import multiprocessing
import os
import time
from pathlib import Path

from playwright.async_api import Page

from cplane import Context, PerHost, job


@job
async def process_add(x: int, y: int) -> int:
    return x + y


@job
async def process_pid() -> int:
    return os.getpid()


@job
async def process_waits(ctx: Context, folder: str) -> int:
    """Create a file named after the attempt and the process, then wait until the test creates the file `go`."""
    here = Path(folder)
    (here / f"started-{ctx.attempt}-{os.getpid()}").touch()
    while not (here / "go").exists():
        await asyncio.sleep(0.02)
    return ctx.attempt


@job
def process_blocks_a_thread(folder: str) -> None:
    (Path(folder) / "started-1-0").touch()
    time.sleep(3600)


@job(timeout=0.2)
def process_overstays() -> None:
    time.sleep(3600)


@job
def process_forks() -> int | None:
    """Fork a child, end it with SIGTERM, as multiprocessing.Pool does, and return its exit code."""
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(3600,))
    child.start()
    child.terminate()
    child.join()
    return child.exitcode


@job
async def process_page_waits(page: Page, folder: str) -> str:
    """Do the same as `process_waits` with a page, and check at the end that the page is still alive."""
    here = Path(folder)
    (here / f"started-1-{os.getpid()}").touch()
    while not (here / "go").exists():
        await asyncio.sleep(0.02)
    return str(await page.evaluate("'still ' + 'here'"))


@job(per_host=PerHost(concurrency=2))
async def process_visits(ctx: Context, url: str, folder: str) -> None:
    """Write the start and the end of this attempt to a separate file, by the machine's monotonic clock."""
    file = Path(folder) / f"{ctx.id}-{ctx.attempt}-{os.getpid()}"
    file.write_text(f"{time.monotonic_ns()} ")
    await asyncio.sleep(0.2)
    with file.open("a") as opened:
        opened.write(f"{time.monotonic_ns()}")
