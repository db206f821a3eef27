"""What one page may take: its memory and its windows. A page that takes more is ended, and no other."""

import asyncio
from collections.abc import AsyncGenerator

import pytest

from cplane.browser import BrowserPool, Limits
from cplane.browser.lease import MAX_OPEN_POPUPS, MAX_POPUPS
from cplane.errors import PageTooLarge
from tests.browser.pools import FOREVER, settled, until
from tests.pages import OPENING, bomb, serve

LIMIT_MB = 200
ALLOCATING = "() => { const all = []; setInterval(() => all.push(new Uint8Array(8e6).fill(1)), 20) }"
HELD_MB = 40


@pytest.fixture
async def small_pages() -> AsyncGenerator[BrowserPool]:
    async with BrowserPool(2, warm=0, limits=Limits(page_memory_bytes=LIMIT_MB << 20)) as pool:
        yield pool


async def allocate(pool: BrowserPool) -> None:
    async with pool.page() as page:
        await page.evaluate(ALLOCATING)
        await page.evaluate(FOREVER)


async def visit_forever(pool: BrowserPool, url: str) -> None:
    async with pool.page() as page:
        await page.goto(url)
        await page.evaluate(FOREVER)


async def open_windows(pool: BrowserPool, number: int) -> None:
    async with pool.page() as page:
        await page.set_content(OPENING % number)
        await page.evaluate(FOREVER)


async def test_a_page_that_allocates_is_killed_and_its_neighbour_is_not(small_pages: BrowserPool) -> None:
    async with small_pages.page() as neighbour:
        await neighbour.evaluate(f"() => {{ held = new Uint8Array({HELD_MB}e6).fill(1) }}")
        with pytest.raises(
            PageTooLarge, match=rf"^the page about:blank used \d+ MiB of memory; a page may use {LIMIT_MB} "
        ):
            await allocate(small_pages)
        assert await neighbour.evaluate("held.length") == HELD_MB * 1e6
    assert small_pages.stats().launches == 1
    await settled(small_pages)


async def test_two_pages_that_allocate_are_both_blamed(small_pages: BrowserPool) -> None:
    ended = await asyncio.gather(allocate(small_pages), allocate(small_pages), return_exceptions=True)
    assert [type(error) for error in ended] == [PageTooLarge, PageTooLarge]


async def test_a_page_that_grows_when_it_is_unpacked_is_killed(small_pages: BrowserPool) -> None:
    async with serve(lambda _: bomb(600)) as url, small_pages.page() as neighbour:
        with pytest.raises(PageTooLarge):
            await visit_forever(small_pages, url)
        assert await neighbour.evaluate("6 * 7") == 42


async def test_windows_beyond_the_limit_are_closed(small_pages: BrowserPool) -> None:
    lease = await small_pages.acquire_page()
    await lease.page.set_content(OPENING % (MAX_OPEN_POPUPS + 5))
    await until(lambda: len(lease.popups) == MAX_OPEN_POPUPS + 5)
    await until(lambda: len(lease.context.pages) == MAX_OPEN_POPUPS + 1)
    assert not lease.lost
    lease.release()
    await settled(small_pages)


async def test_a_page_that_opens_windows_without_end_is_lost(small_pages: BrowserPool) -> None:
    async with small_pages.page() as neighbour:
        with pytest.raises(PageTooLarge, match=f"^the page about:blank opened more than {MAX_POPUPS} windows"):
            await open_windows(small_pages, MAX_POPUPS + 10)
        assert await neighbour.evaluate("6 * 7") == 42
    await settled(small_pages)
