"""The browser jobs of the benchmark.

A separate worker runs them: `arq cplane.worker.Settings` with CPLANE_IMPORTS=benchmarks.pages.jobs.
"""

import asyncio
import os
import time
from pathlib import Path

from playwright.async_api import Page

from benchmarks.pages.raw import open_page
from cplane import Context, job


@job(timeout=60)
async def visit(page: Page, url: str) -> None:
    """Visit the page."""
    await open_page(page, url)


@job(timeout=60)
async def survive(page: Page, ctx: Context, folder: str) -> float:
    """Wait for the death of the browser on the first attempt.

    On the next, return the monotonic time in seconds once the page works.
    """
    if ctx.attempt == 1:
        (Path(folder) / str(os.getpid())).touch()
        await asyncio.Event().wait()
    assert await page.evaluate("6 * 7") == 42
    return time.monotonic()
