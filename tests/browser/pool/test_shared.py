"""Isolation "shared": jobs of one name reuse pages."""

import asyncio
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import pytest
from playwright.async_api import Error as PlaywrightError
from playwright.async_api import Page, Route

from cplane.browser import BrowserPool, Limits, PageOptions
from cplane.browser.pool.shared import RESPONSE_TIMEOUT_S, SharedContext
from cplane.browser.pool.sharing import MAX_SHARED_CONTEXTS
from cplane.errors import BrowserGone, PageCrashed
from tests.browser.pools import FOREVER, contexts, running, settled, until

SHARED = PageOptions(isolation="shared")


@pytest.fixture(autouse=True)
def idle_pages_are_not_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a slow machine too, no page is reset, and no other opened in that time, between two jobs of a test."""
    monkeypatch.setattr("cplane.browser.pool.shared.RESET_IDLE_S", 3600.0)


async def test_jobs_of_one_scope_share_cookies_and_jobs_of_another_do_not(pool: BrowserPool, site: str) -> None:
    async with pool.page(SHARED, scope="a") as page:
        await page.goto(site)
        await page.evaluate("document.cookie = 'a=1'")
    async with pool.page(SHARED, scope="a") as page:
        await page.goto(site)
        assert await page.evaluate("document.cookie") == "a=1"
    async with pool.page(SHARED, scope="b") as page:
        await page.goto(site)
        assert await page.evaluate("document.cookie") == ""
    async with pool.page() as page:
        await page.goto(site)
        assert await page.evaluate("document.cookie") == ""


async def test_one_page_is_reused_by_one_job_after_the_other(pool: BrowserPool) -> None:
    pages: set[Page] = set()
    for _ in range(4):
        async with pool.page(SHARED, scope="a") as page:
            pages.add(page)
        await settled(pool)
    assert len(pages) == 1
    assert contexts(await running(pool)) == 1


async def spun(pool: BrowserPool, site: str, *, fails: bool = False) -> Page:
    """Leave a page in an endless loop, with a job that ends well or fails; returns the page."""
    lease = await pool.acquire_page(SHARED, scope="a")
    with suppress(LookupError):
        async with lease as page:
            await page.goto(site)
            await page.evaluate("void setTimeout(() => { for (;;); })")
            if fails:
                raise LookupError
    return lease.page


async def test_after_a_failed_job_its_page_is_not_leased_before_it_responds(
    site: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    responds = SharedContext._responds  # pyright: ignore[reportPrivateUsage]  the test decides when it returns
    leased = asyncio.Event()

    async def responds_later(context: SharedContext, page: Page, within_s: float = RESPONSE_TIMEOUT_S) -> bool:
        await leased.wait()
        return await responds(context, page, within_s)

    monkeypatch.setattr(SharedContext, "_responds", responds_later)
    async with BrowserPool(1) as pool:
        spinning = await spun(pool, site, fails=True)
        async with pool.page(SHARED, scope="a") as page:  # without waiting: the page that is checked holds no slot
            assert page is not spinning
            assert not spinning.is_closed()
            leased.set()
            await page.goto("data:text/html,hello")
        await settled(pool)
        assert spinning.is_closed()
        async with pool.page(SHARED, scope="a") as again:
            assert again is page


async def test_a_job_that_gets_a_page_left_busy_loses_it_soon(site: str) -> None:
    async with BrowserPool(1) as pool:
        spinning = await spun(pool, site)
        again = await pool.acquire_page(SHARED, scope="a")
        with pytest.raises(BrowserGone, match="left busy by the previous job"):
            async with again as page:
                await page.goto(site + "?again")
        assert again.page is spinning
        async with pool.page(SHARED, scope="a") as page:
            assert page is not spinning
            assert await page.evaluate("6 * 7") == 42
        await settled(pool)
        assert spinning.is_closed()
        assert pool.stats().launches == 1


async def test_a_page_left_busy_that_is_not_requested_is_closed(site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cplane.browser.pool.shared.RESET_IDLE_S", 0.1)
    async with BrowserPool(1) as pool:
        spinning = await spun(pool, site)
        await settled(pool)
        await until(spinning.is_closed)
        async with pool.page(SHARED, scope="a") as page:
            assert await page.evaluate("6 * 7") == 42


async def test_a_page_with_a_slow_document_is_not_mistaken_for_one_left_busy(site: str) -> None:
    slow = "data:text/html,<script>const end = Date.now() + 3500; while (Date.now() < end);</script><title>slow</title>"
    async with BrowserPool(1) as pool:
        async with pool.page(SHARED, scope="a") as first:
            await first.goto(site)
        async with pool.page(SHARED, scope="a") as page:
            assert page is first
            await page.goto(slow)
            assert await page.title() == "slow"
        async with pool.page(SHARED, scope="a") as page:
            assert page is first


async def test_concurrent_jobs_have_separate_pages_in_one_context(pool: BrowserPool) -> None:
    async with pool.page(SHARED, scope="a") as one, pool.page(SHARED, scope="a") as other:
        assert one is not other
        assert one.context is other.context
    await settled(pool)
    assert pool.free == 2


async def test_popups_and_routes_of_a_job_are_removed_with_its_lease(pool: BrowserPool, site: str) -> None:
    async def refuse(route: Route) -> None:
        await route.abort()

    async with pool.page(SHARED, scope="a") as page:
        await page.goto(site)
        async with page.expect_popup() as popup:
            await page.evaluate("void window.open(location.href)")
        opened = await popup.value
        await page.route("**/*", refuse)
    await settled(pool)
    assert opened.is_closed()
    async with pool.page(SHARED, scope="a") as again:
        assert again is page
        assert await again.goto(site) is not None


async def test_a_page_that_crashed_or_was_closed_is_not_leased_again(pool: BrowserPool, site: str) -> None:
    async def crash(page: Page) -> None:
        async with pool.page(SHARED, scope="a") as crashing:
            await crashing.goto(site)
            with pytest.raises(PlaywrightError):
                await crashing.goto("chrome://crash")
            await crashing.evaluate(FOREVER)

    async with pool.page(SHARED, scope="a") as neighbour:
        with pytest.raises(PageCrashed):
            await crash(neighbour)
        assert await neighbour.evaluate("6 * 7") == 42
    await settled(pool)
    async with pool.page(SHARED, scope="a") as page:
        await page.close()
    async with pool.page(SHARED, scope="a") as page:
        assert await page.evaluate("6 * 7") == 42
    assert pool.stats().launches == 1


async def test_a_context_is_lost_with_its_browser_and_the_next_job_gets_another(pool: BrowserPool) -> None:
    async def wait_forever(disturb: Callable[[], None]) -> None:
        async with pool.page(SHARED, scope="a") as page:
            disturb()
            await page.evaluate(FOREVER)

    process = (await running(pool)).process
    assert process is not None
    with pytest.raises(BrowserGone):
        await wait_forever(partial(os.kill, process.pid, signal.SIGKILL))
    async with pool.page(SHARED, scope="a") as page:
        assert await page.evaluate("6 * 7") == 42


async def test_a_context_is_replaced_after_its_maximum_number_of_uses() -> None:
    async with BrowserPool(2, warm=0, limits=Limits(pages=3)) as pool:
        seen: set[Page] = set()
        for _ in range(7):
            async with pool.page(SHARED, scope="a") as page:
                seen.add(page)
            await settled(pool)
        assert len(seen) == 3


async def test_surplus_contexts_that_are_idle_are_closed(pool: BrowserPool) -> None:
    browser = await running(pool)
    for number in range(MAX_SHARED_CONTEXTS + 3):
        async with pool.page(SHARED, scope=str(number)):
            pass
        await settled(pool)
    await until(lambda: contexts(browser) == MAX_SHARED_CONTEXTS)


@pytest.mark.parametrize("turns", [0, 1, 2, 3, 5, 8, 13, 21, 34, 55])
async def test_a_cancelled_acquire_leaves_no_slot_in_use_and_one_context(pool: BrowserPool, turns: int) -> None:
    browser = await running(pool)
    for _ in range(4):
        acquiring = asyncio.create_task(pool.acquire_page(SHARED, scope="a"))
        for _ in range(turns):
            await asyncio.sleep(0)
        acquiring.cancel()
        await asyncio.wait([acquiring])
        if not acquiring.cancelled():
            acquiring.result().release()
    await settled(pool)
    assert pool.free == 2
    assert contexts(browser) <= 1


async def test_concurrent_acquires_share_one_context() -> None:
    async with BrowserPool(4, warm=0) as pool:
        leases = await asyncio.gather(*(pool.acquire_page(SHARED, scope="a") for _ in range(4)))
        assert len({lease.context for lease in leases}) == 1
        for lease in leases:
            lease.release()
        await settled(pool)
        assert contexts(await running(pool)) == 1
