"""A small site, a pool, and the processes that this test run has started."""

import asyncio
from collections.abc import AsyncGenerator, Callable

import pytest

from cplane.browser import BrowserPool
from tests.browser.pools import find_descendants, serve


@pytest.fixture
async def site() -> AsyncGenerator[str]:
    """The URL of a page, on its own origin."""
    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        yield f"http://{host}:{port}/"


@pytest.fixture
async def pool() -> AsyncGenerator[BrowserPool]:
    """Two pages of one browser and no warm pages: every open page was requested."""
    async with BrowserPool(2, warm=0, wait_s=20) as pool:
        yield pool


@pytest.fixture
def descendants() -> Callable[[], set[int]]:
    """Return the ids of the running descendants of this process."""
    return find_descendants
