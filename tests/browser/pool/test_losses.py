"""Pages, browsers and drivers that die or hang: what their jobs receive, and how the pool recovers."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from playwright.async_api import BrowserContext, CDPSession
from playwright.async_api import Error as PlaywrightError

from cplane.browser import BrowserPool
from cplane.browser import lease as lease_module
from cplane.browser.engine import instance
from cplane.errors import BrowserGone, PageCrashed, PoolTimeout
from tests.browser.pools import FOREVER, running, settled


async def crash(page_url: str, pool: BrowserPool) -> None:
    """Crash the renderer of the one page at this address."""
    browser = await running(pool)
    for context in browser.browser.contexts:
        for page in context.pages:
            if page.url == page_url:
                with pytest.raises(PlaywrightError):
                    await page.goto("chrome://crash")


async def visit_and_crash(pool: BrowserPool, page_url: str) -> None:
    async with pool.page() as page:
        await page.goto(page_url)
        async with asyncio.TaskGroup() as group:
            group.create_task(crash(page_url, pool))
            await page.evaluate(FOREVER)


async def wait_forever(pool: BrowserPool, disturb: Callable[[], None]) -> None:
    """Run a job that would never end, and call `disturb` once it has its page."""
    async with pool.page() as page:
        disturb()
        await page.evaluate(FOREVER)


async def test_a_crashed_renderer_interrupts_its_job_and_no_other(pool: BrowserPool, site: str) -> None:
    async with pool.page() as neighbour:
        started = time.monotonic()
        with pytest.raises(PageCrashed):
            await visit_and_crash(pool, site)
        assert time.monotonic() - started < 10
        assert await neighbour.evaluate("6 * 7") == 42
    assert pool.stats().launches == 1
    await settled(pool)
    assert pool.free == 2


async def test_a_block_that_suppresses_its_interruption_is_not_left_cancelled(pool: BrowserPool) -> None:
    browser = await running(pool)
    assert browser.process is not None
    async with pool.page() as page:
        os.kill(browser.process.pid, signal.SIGKILL)
        with contextlib.suppress(asyncio.CancelledError, PlaywrightError):
            await page.evaluate(FOREVER)
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([browser.gone], timeout=10)
            await asyncio.sleep(0)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_broken_gets_the_error_of_a_crash(pool: BrowserPool, site: str) -> None:
    lease = await pool.acquire_page()
    await lease.page.goto(site)
    await crash(site, pool)
    await asyncio.wait([lease.broken], timeout=10)
    assert isinstance(lease.broken.exception(), PageCrashed)
    lease.release()
    await settled(pool)


async def test_a_killed_browser_is_replaced_and_its_leases_get_browser_gone(
    pool: BrowserPool, descendants: Callable[[], set[int]]
) -> None:
    leases = [await pool.acquire_page() for _ in range(2)]
    browser = await running(pool)
    assert browser.process is not None
    assert browser.process.pid in descendants()
    os.kill(browser.process.pid, signal.SIGKILL)
    await asyncio.wait([lease.broken for lease in leases], timeout=10)
    assert all(isinstance(lease.broken.exception(), BrowserGone) for lease in leases)
    for lease in leases:
        lease.release()
    async with pool.page() as page:
        assert await page.evaluate("6 * 7") == 42
    assert (pool.stats().launches, pool.stats().lost) == (2, 1)
    await settled(pool)
    assert pool.free == 2


async def test_the_cause_of_a_call_in_flight_when_the_browser_died_is_browser_gone(pool: BrowserPool) -> None:
    lease = await pool.acquire_page()
    browser = await running(pool)
    calling = asyncio.create_task(lease.page.evaluate(FOREVER))
    assert browser.process is not None
    os.kill(browser.process.pid, signal.SIGKILL)
    await asyncio.wait([calling], timeout=10)
    error = calling.exception()
    assert isinstance(error, PlaywrightError)
    assert isinstance(await lease.cause(RuntimeError("wrapped").with_traceback(None)), RuntimeError | BrowserGone)
    assert isinstance(await lease.cause(error), BrowserGone)
    lease.release()


async def crash_renderer(session: CDPSession) -> None:
    with contextlib.suppress(PlaywrightError):
        await session.send("Page.crash")  # pyright: ignore[reportUnknownMemberType]


async def test_the_cause_of_a_navigation_aborted_by_a_crash_is_page_crashed(
    pool: BrowserPool, site: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    aborted = PlaywrightError("Page.goto: net::ERR_ABORTED; maybe frame was detached?")
    lease = await pool.acquire_page()
    await lease.page.goto(site)
    monkeypatch.setattr(lease_module, "ABORT_WAIT_S", 0.01)
    assert await lease.cause(aborted) is aborted
    monkeypatch.setattr(lease_module, "ABORT_WAIT_S", 10)
    asking = asyncio.create_task(lease.cause(aborted))
    session = await lease.context.new_cdp_session(lease.page)
    crashing = asyncio.create_task(crash_renderer(session))
    assert isinstance(await asking, PageCrashed)
    crashing.cancel()
    await asyncio.wait([crashing])
    lease.release()


async def test_a_driver_that_dies_is_replaced_with_its_browser(
    pool: BrowserPool, descendants: Callable[[], set[int]]
) -> None:
    browser = await running(pool)
    driver = browser.driver.process
    assert driver is not None
    assert driver.pid in descendants()
    with pytest.raises(BrowserGone):
        await wait_forever(pool, partial(os.kill, driver.pid, signal.SIGKILL))
    async with pool.page() as page:
        assert await page.evaluate("6 * 7") == 42
    assert pool.stats().launches == 2


async def test_the_death_of_an_idle_driver_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instance, "HEARTBEAT_INTERVAL_S", 0.05)
    async with BrowserPool(1) as pool:
        first = await running(pool)
        assert first.driver.process is not None
        os.kill(first.driver.process.pid, signal.SIGKILL)
        await asyncio.wait([first.gone], timeout=10)
        async with pool.page() as page:
            assert await page.evaluate("6 * 7") == 42


async def test_errors_of_the_job_itself_are_unchanged(pool: BrowserPool) -> None:
    with pytest.raises(PlaywrightError, match="ReferenceError"):
        async with pool.page() as page:
            await page.evaluate("missing")
    with pytest.raises(ZeroDivisionError):
        async with pool.page():
            _ = 1 / 0
    lease = await pool.acquire_page()
    await lease.page.close()
    with pytest.raises(PlaywrightError, match="has been closed") as closed:
        await lease.page.title()
    assert await lease.cause(closed.value) is closed.value
    lease.release()


async def test_a_close_that_hangs_releases_the_slot_in_time_and_retires_the_browser(
    pool: BrowserPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(instance, "CLOSE_TIMEOUT_S", 0.2)
    first = await running(pool)
    neighbour = await pool.acquire_page()
    lease = await pool.acquire_page()

    async def hang() -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(lease.context, "close", hang)
    lease.release()
    assert pool.free == 0
    await asyncio.wait_for(lease.wait_closed(), 10)
    assert first.ended.done()
    async with pool.page() as page:
        assert await page.evaluate("6 * 7") == 42
    assert await running(pool) is not first
    assert await neighbour.page.evaluate("6 * 7") == 42
    neighbour.release()
    await asyncio.wait([first.gone], timeout=10)
    await settled(pool)
    assert pool.free == 2
    assert pool.stats().lost == 0


async def test_a_page_that_does_not_open_in_time_raises_pool_timeout(
    pool: BrowserPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(instance, "OPEN_TIMEOUT_S", 0.2)
    first = await running(pool)

    async def hang(**options: object) -> BrowserContext:
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(first.browser, "new_context", hang)
    with pytest.raises(PoolTimeout, match="did not open a page"):
        await pool.acquire_page()
    monkeypatch.undo()
    async with pool.page() as page:
        assert await page.evaluate("6 * 7") == 42
    assert await running(pool) is not first


async def test_a_browser_that_stops_responding_is_lost_and_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instance, "HEARTBEAT_INTERVAL_S", 0.05)
    monkeypatch.setattr(instance, "RESPONSE_TIMEOUT_S", 1.0)
    monkeypatch.setattr(instance, "CLOSE_TIMEOUT_S", 0.5)
    async with BrowserPool(1) as pool:
        first = await running(pool)
        assert first.process is not None
        with pytest.raises(BrowserGone, match="did not respond"):
            await wait_forever(pool, partial(os.kill, first.process.pid, signal.SIGSTOP))
        await settled(pool)
    assert not first.process.alive


async def test_an_acquire_while_the_browser_hangs_gets_a_page_of_the_next_browser(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(instance, "HEARTBEAT_INTERVAL_S", 0.05)
    monkeypatch.setattr(instance, "RESPONSE_TIMEOUT_S", 1.0)
    monkeypatch.setattr(instance, "CLOSE_TIMEOUT_S", 0.5)
    async with BrowserPool(1) as pool:
        first = await running(pool)
        assert first.process is not None
        os.kill(first.process.pid, signal.SIGSTOP)
        async with pool.page() as page:
            assert await page.evaluate("6 * 7") == 42
        assert pool.stats().launches == 2


async def test_waiters_time_out_with_the_reason_if_a_browser_cannot_be_replaced(tmp_path: Path) -> None:
    link = tmp_path / "chromium-headless-shell"
    link.symlink_to("/usr/bin/chromium-headless-shell")
    async with BrowserPool(1, executable=link, wait_s=2) as pool:
        browser = await running(pool)
        link.unlink()
        assert browser.process is not None
        os.kill(browser.process.pid, signal.SIGKILL)
        await asyncio.wait([browser.gone], timeout=10)
        with pytest.raises(PoolTimeout, match=r"there is no browser after 2 s: .*not a program"):
            await pool.acquire_page()
        assert pool.free == 0
        link.symlink_to("/usr/bin/chromium-headless-shell")
        await asyncio.wait_for(pool.wait_free(), 20)
        async with pool.page() as page:
            assert await page.evaluate("6 * 7") == 42
