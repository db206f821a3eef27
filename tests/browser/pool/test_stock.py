"""Warm pages: which are opened, and which are leased."""

import asyncio
import os
import signal
from collections.abc import Callable

import pytest
from playwright.async_api import Error as PlaywrightError

from cplane.browser import BrowserPool, PageOptions
from cplane.browser.engine.instance import Instance
from cplane.browser.pool.stock import REQUEST_WINDOW, WarmPages
from cplane.errors import InvalidArguments
from tests.browser.pools import contexts, running, settled, until

WIDE = PageOptions.read({"viewport": {"width": 1000, "height": 500}})
SMALL = PageOptions.read({"viewport": {"width": 400, "height": 300}})


async def warmed(pool: BrowserPool, number: int) -> None:
    await until(lambda: pool.stats().warm == number)


def widths(browser: Instance) -> list[int]:
    sizes = [page.viewport_size for context in browser.browser.contexts for page in context.pages]
    return [size["width"] for size in sizes if size]


async def test_the_first_page_is_open_before_it_is_requested() -> None:
    async with BrowserPool(2, warm=1) as pool:
        await warmed(pool, 1)
        assert (pool.free, pool.stats().open) == (2, 0)
        async with pool.page() as page:
            assert (pool.stats().leased, pool.stats().leased_warm) == (1, 1)
            assert await page.evaluate("6 * 7") == 42
        await warmed(pool, 1)
        await settled(pool)


async def test_a_warm_page_is_leased_without_a_call_to_the_browser(monkeypatch: pytest.MonkeyPatch) -> None:
    async with BrowserPool(1, warm=1) as pool:
        await warmed(pool, 1)
        acquiring = asyncio.create_task(pool.acquire_page())
        await asyncio.sleep(0)
        assert acquiring.done()
        acquiring.result().release()


async def test_options_that_are_requested_often_get_warm_pages() -> None:
    async with BrowserPool(2, warm=1) as pool:
        for _ in range(REQUEST_WINDOW):
            async with pool.page(WIDE) as page:
                assert await page.evaluate("innerWidth") == 1000
            await settled(pool)
            await warmed(pool, 1)
        assert pool.stats().leased_warm >= REQUEST_WINDOW // 2
        before = pool.stats().leased_warm
        async with pool.page(WIDE):
            assert pool.stats().leased_warm == before + 1


async def test_options_that_are_requested_once_get_no_warm_page() -> None:
    async with BrowserPool(2, warm=2) as pool:
        await warmed(pool, 2)
        async with pool.page(WIDE) as page:
            assert await page.evaluate("innerWidth") == 1000
        assert pool.stats().leased_warm == 0


async def test_expected_options_get_warm_pages_immediately() -> None:
    async with BrowserPool(1, warm=1) as pool:
        browser = await running(pool)
        pool.expect(WIDE)
        pool.expect(WIDE)
        await until(lambda: pool.stats().warm and widths(browser) == [1000])
        async with pool.page(WIDE) as page:
            assert pool.stats().leased_warm == 1
            assert await page.evaluate("innerWidth") == 1000


async def test_a_warm_page_whose_renderer_died_is_not_leased() -> None:
    async with BrowserPool(1, warm=1) as pool:
        await warmed(pool, 1)
        browser = await running(pool)
        [context] = browser.browser.contexts
        with pytest.raises(PlaywrightError):
            await context.pages[0].goto("chrome://crash")
        await warmed(pool, 0)
        async with pool.page() as page:
            assert await page.evaluate("6 * 7") == 42
        await warmed(pool, 1)


async def test_warm_pages_die_with_their_browser_and_are_opened_again() -> None:
    async with BrowserPool(2, warm=2) as pool:
        await warmed(pool, 2)
        first = await running(pool)
        assert first.process is not None
        os.kill(first.process.pid, signal.SIGKILL)
        await asyncio.wait([first.gone], timeout=10)
        async with pool.page() as page:
            assert await page.evaluate("6 * 7") == 42
        await warmed(pool, 2)
        second = await running(pool)
        await until(lambda: contexts(second) == 2)


async def test_options_that_the_browser_refuses_are_not_warmed_repeatedly() -> None:
    mars = PageOptions(timezone="Mars/Olympus")
    async with BrowserPool(2, warm=2) as pool:
        await warmed(pool, 2)
        for _ in range(3):
            pool.expect(mars)
            with pytest.raises(InvalidArguments, match="Mars/Olympus"):
                await pool.acquire_page(mars)
        await warmed(pool, 2)
        async with pool.page(), pool.page():
            assert pool.stats().leased_warm == 2


@pytest.mark.parametrize("turns", [0, 1, 2, 3, 5, 8, 13, 21, 34])
async def test_a_cancelled_acquire_leaves_only_the_warm_pages(turns: int) -> None:
    async with BrowserPool(2, warm=1) as pool:
        for _ in range(4):
            acquiring = asyncio.create_task(pool.acquire_page())
            for _ in range(turns):
                await asyncio.sleep(0)
            acquiring.cancel()
            await asyncio.wait([acquiring])
            if not acquiring.cancelled():
                acquiring.result().release()
        await settled(pool)
        await warmed(pool, 1)
        assert pool.free == 2
        browser = await running(pool)
        await until(lambda: contexts(browser) == 1)


async def test_closing_the_pool_while_pages_are_being_warmed_leaves_nothing(
    descendants: Callable[[], set[int]],
) -> None:
    before, tasks = descendants(), asyncio.all_tasks()
    for turns in range(0, 60, 12):
        async with BrowserPool(4, warm=4) as pool:
            for _ in range(turns):
                await asyncio.sleep(0)
            assert pool.free == 4
        assert descendants() <= before
        assert {task for task in asyncio.all_tasks() if not task.done()} <= tasks


def test_warm_pages_are_divided_in_proportion_to_the_requests() -> None:
    warm_pages = WarmPages(4)
    for options in [WIDE] * 9 + [SMALL] * 3:
        warm_pages.record_request(options)
    assert [options.key for options in warm_pages.missing()] == [WIDE.key] * 3 + [SMALL.key]


def test_options_without_recent_requests_are_forgotten() -> None:
    warm_pages = WarmPages(2)
    warm_pages.expect(WIDE)
    for _ in range(REQUEST_WINDOW):
        warm_pages.record_request(SMALL)
    assert [options.key for options in warm_pages.missing()] == [SMALL.key] * 2


def test_forgotten_options_get_no_warm_page() -> None:
    warm_pages = WarmPages(2)
    warm_pages.expect(WIDE)
    warm_pages.forget(WIDE.key)
    assert warm_pages.missing() == []
