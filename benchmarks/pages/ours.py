"""cplane's pool: a fresh context per visit, or shared pages. `python -m benchmarks.pages.ours WAY …`."""

import argparse
import asyncio
import logging
import time
from pathlib import Path

import structlog

from benchmarks.pages.raw import open_page
from benchmarks.pages.visits import measure, parse
from cplane.browser import BrowserPool, PageOptions


async def main(arguments: argparse.Namespace) -> None:
    """Measure one way."""
    options = PageOptions(isolation="shared" if arguments.way == "shared" else "fresh")
    async with BrowserPool(arguments.concurrency, executable=Path(arguments.executable)) as pool:

        async def visit(url: str) -> float:
            began = time.perf_counter()
            async with pool.page(options, scope="bench") as page:
                acquire_s = time.perf_counter() - began
                await open_page(page, url)
            return acquire_s

        await measure(visit, arguments)


if __name__ == "__main__":
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    asyncio.run(main(parse()))
