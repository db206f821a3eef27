"""Innocent jobs, which run next to an offender and say when; imported by workers."""

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from playwright.async_api import Page

from cplane import job
from cplane.jobs.definition import AnyJob
from cplane.tasks import content

Span = tuple[float, float]
"""When a job's code began and ended, seconds of the system's clock, which Postgres on this machine has too."""

INTERVAL_S = 0.005
TIMEOUT_S = 20.0
"""Of innocents, which take 2 s at most. A keeper that does not know who blocks a process waits for the longest timeout."""


@job(timeout=TIMEOUT_S)
async def innocent_sleep(seconds: float) -> Span:
    began = time.time()
    await asyncio.sleep(seconds)
    return began, time.time()


@job(timeout=TIMEOUT_S)
def innocent_thread(seconds: float) -> Span:
    began = time.time()
    time.sleep(seconds)
    return began, time.time()


@job(timeout=TIMEOUT_S)
async def innocent_page(page: Page, url: str) -> Span:
    began = time.time()
    await page.goto(url)
    assert await page.title() == "Here"
    return began, time.time()


@job(runs_in="process", timeout=TIMEOUT_S)
def innocent_process(number: int) -> int:
    return number * number


@job(queue="tick", timeout=120)
async def innocent_ticker(until: str) -> float:
    """Return the longest time that the event loop did not turn, until a file exists; waits for the CPU do not count."""
    longest_s = 0.0
    while not Path(until).exists():
        began, used = time.monotonic(), time.process_time()
        await asyncio.sleep(INTERVAL_S)
        longest_s = max(longest_s, min(time.monotonic() - began - INTERVAL_S, time.process_time() - used))
    return longest_s


Call = tuple[AnyJob, Mapping[str, Any]]


def innocents(number: int, url: str, *, threads: bool = True) -> list[Call]:
    """Return innocent calls of four kinds, mixed; each sleeps for up to two seconds, or visits a page.

    Args:
        number: how many.
        url: where the pages are.
        threads: whether some run in threads.
    """
    kinds: list[Call] = []
    for n in range(number):
        seconds = 0.2 + n * 7919 % 180 / 100
        match n % 10:
            case 0:
                kinds.append((content, {"url": f"{url}/page"}))
            case 5:
                kinds.append((innocent_page, {"url": f"{url}/page"}))
            case 3 | 7 | 9 if threads:
                kinds.append((innocent_thread, {"seconds": seconds}))
            case _:
                kinds.append((innocent_sleep, {"seconds": seconds}))
    return kinds


def probes(url: str) -> list[Call]:
    """Return one call of each kind, which show that a worker is whole."""
    return [
        (innocent_sleep, {"seconds": 0.02}),
        (innocent_thread, {"seconds": 0.02}),
        (innocent_process, {"number": 12}),
        (innocent_page, {"url": f"{url}/page"}),
        (content, {"url": f"{url}/page"}),
    ]
