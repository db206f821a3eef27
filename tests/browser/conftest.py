"""A small site, a pool, and the processes this test run has started."""

import asyncio
import os
from collections.abc import AsyncGenerator, Callable
from pathlib import Path

import pytest

from cplane.browser import BrowserPool

PAGE = b"<!doctype html><title>Site</title><h1>Hello</h1>"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s"


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(ANSWER % (len(PAGE), PAGE))
        await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


@pytest.fixture
async def site() -> AsyncGenerator[str]:
    """The address of a page, on an origin of its own."""
    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        yield f"http://{host}:{port}/"


@pytest.fixture
async def pool() -> AsyncGenerator[BrowserPool]:
    """Two pages of one browser; none is kept ready, so that what is there is what was asked for."""
    async with BrowserPool(2, warm=0, wait_s=20) as pool:
        yield pool


@pytest.fixture
def descendants() -> Callable[[], set[int]]:
    """The living processes that descend from this one."""
    return find_descendants


def find_descendants() -> set[int]:
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            except OSError:
                continue
            if state not in {"Z", "X"}:
                parents[int(entry.name)] = int(parent)
    found: set[int] = set()
    level = {os.getpid()}
    while level:
        level = {pid for pid, parent in parents.items() if parent in level}
        found |= level
    return found
