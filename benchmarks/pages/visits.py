"""Timed visits by one way to obtain pages, used by the program of each system.

Standard library only: each has its own environment.
"""

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field

PAUSE_S = 0.25
"""Pause between two visits of an idle system, in which it can finish its work in advance."""

Visit = Callable[[str], Awaitable[float]]
"""Visits a URL with a page and releases the page; returns the seconds until it had the page."""


@dataclass
class Timed:
    """The measurements, which a program prints as one line of JSON."""

    per_s: float = 0.0
    visit_ms: list[float] = field(default_factory=list[float])
    """From the request for a page until its release."""
    acquire_ms: list[float] = field(default_factory=list[float])
    """From the request for a page until it was ready."""


async def saturate(visit: Visit, url: str, visits: int, concurrency: int) -> Timed:
    """Run concurrent visits without a pause."""
    numbers = iter(range(visits))
    timed = Timed()

    async def work() -> None:
        for _ in numbers:
            await one(visit, url, timed)

    began = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(concurrency)))
    timed.per_s = visits / (time.perf_counter() - began)
    return timed


async def idle(visit: Visit, url: str, visits: int) -> Timed:
    """Run one visit after the other, with a pause before each."""
    timed = Timed()
    for _ in range(visits):
        await asyncio.sleep(PAUSE_S)
        await one(visit, url, timed)
    return timed


async def one(visit: Visit, url: str, timed: Timed) -> None:
    """Run and time one visit."""
    began = time.perf_counter()
    acquire_s = await visit(url)
    timed.visit_ms.append((time.perf_counter() - began) * 1000)
    timed.acquire_ms.append(acquire_s * 1000)


async def measure(visit: Visit, arguments: argparse.Namespace) -> None:
    """Warm up, measure, and print the result."""
    await saturate(visit, arguments.url, 2 * arguments.concurrency, arguments.concurrency)
    if arguments.idle:
        timed = await idle(visit, arguments.url, arguments.visits)
    else:
        timed = await saturate(visit, arguments.url, arguments.visits, arguments.concurrency)
    sys.stdout.write(json.dumps(asdict(timed)) + "\n")


def parse() -> argparse.Namespace:
    """Parse the command line of a program."""
    parser = argparse.ArgumentParser()
    parser.add_argument("way")
    parser.add_argument("--url", required=True)
    parser.add_argument("--visits", type=int, required=True)
    parser.add_argument("--concurrency", type=int, default=4)
    parser.add_argument("--executable", required=True)
    parser.add_argument("--idle", action="store_true")
    return parser.parse_args()
