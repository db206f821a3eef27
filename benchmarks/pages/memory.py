"""Measures whether the pool's memory stays constant over thousands of pages, while browsers are replaced as usual."""

import asyncio
import logging
import os
import statistics
import sys

import structlog

from benchmarks.pages.raw import open_page
from benchmarks.suite.process_tree import memory_mb, tree
from cplane.browser import BrowserPool, Limits

SAMPLE_INTERVAL_PAGES = 25
"""Pages between two samples of the memory."""


async def main(url: str, visits: int) -> None:
    """Print the mean of the last half of the samples divided by that of the first; the first tenth is a warm-up."""
    samples: list[float] = []
    numbers = iter(range(visits))
    async with BrowserPool(4, limits=Limits(pages=250)) as pool:

        async def work() -> None:
            for number in numbers:
                async with pool.page() as page:
                    await open_page(page, url)
                if number % SAMPLE_INTERVAL_PAGES == 0:
                    pss_mb, _ = memory_mb(tree(os.getpid()))
                    samples.append(pss_mb)

        await asyncio.gather(*(work() for _ in range(4)))
        stats = pool.stats()
    steady = samples[len(samples) // 10 :]
    half = len(steady) // 2
    first, last = statistics.fmean(steady[:half]), statistics.fmean(steady[half:])
    sys.stdout.write(f"{last / first:.4f} {first:.0f} {last:.0f} {stats.launches}\n")


if __name__ == "__main__":
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
