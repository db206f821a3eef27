"""The browser jobs of the benchmark, run by a worker of its own: `arq cplane.worker.Settings` with CPLANE_IMPORTS=benchmarks.pages.jobs."""

import asyncio
import os
import time
from pathlib import Path

from playwright.async_api import Page

from benchmarks.pages.raw import look
from cplane import Context, job


@job(timeout=60)
async def visit(page: Page, url: str) -> None:
    """What every visit does."""
    await look(page, url)


@job(timeout=60)
async def survive(page: Page, ctx: Context, folder: str) -> float:
    """On its first attempt wait for the browser's death; on the next tell when it has a page that works. Answers seconds of the monotonic clock."""
    if ctx.attempt == 1:
        (Path(folder) / str(os.getpid())).touch()
        await asyncio.Event().wait()
    assert await page.evaluate("6 * 7") == 42
    return time.monotonic()
