"""Queries and waits that tests of the pool share."""

import asyncio
import os
from collections.abc import Callable

from cplane.browser import BrowserPool
from cplane.browser.engine.instance import Instance
from cplane.browser.engine.process import Process, family

PAGE = b"<!doctype html><title>Site</title><h1>Hello</h1>"
RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s"
FOREVER = "new Promise(() => {})"


async def until(condition: Callable[[], object]) -> None:
    """Wait until a condition holds, for up to 20 s."""
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


async def settled(pool: BrowserPool) -> None:
    """Wait until every page is closed or returned."""
    await until(lambda: not pool.stats().open and not pool.stats().returning)


async def running(pool: BrowserPool) -> Instance:
    """Wait for the pool's browser and return it."""
    await until(lambda: pool.browsers)
    return pool.browsers[0]


def contexts(browser: Instance) -> int:
    return len(browser.browser.contexts)


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(RESPONSE % (len(PAGE), PAGE))
        await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


def find_descendants() -> set[int]:
    """Return the ids of the running descendants of this process."""
    found = (Process.find(pid) for pid in family(os.getpid()) - {os.getpid()})
    return {process.pid for process in found if process is not None and process.alive}
