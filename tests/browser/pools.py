"""What tests of the pool ask of it."""

import asyncio
from collections.abc import Callable

from cplane.browser import BrowserPool
from cplane.browser.instance import Instance

FOREVER = "new Promise(() => {})"


async def until(condition: Callable[[], object]) -> None:
    """Wait until it holds, for 20 s at most."""
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


async def settled(pool: BrowserPool) -> None:
    """Wait until every page is given back."""
    await until(lambda: not pool.stats().open and not pool.stats().parking)


async def running(pool: BrowserPool) -> Instance:
    """The pool's browser, once there is one."""
    await until(lambda: pool.browsers)
    return pool.browsers[0]


def contexts(browser: Instance) -> int:
    return len(browser.browser.contexts)
