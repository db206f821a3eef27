"""Supervision: several browsers in one pool, and how they are replaced."""

import asyncio
import os
import signal

import pytest

from cplane.browser import BrowserPool, Limits, PageLease, PageOptions
from cplane.browser.engine import instance
from cplane.errors import BrowserGone, UsageError
from tests.browser.pools import running, settled, until


async def test_pages_are_spread_over_the_browsers() -> None:
    async with BrowserPool(4, browsers=2, warm=0) as pool:
        await until(lambda: len(pool.browsers) == 2)
        leases = [await pool.acquire_page() for _ in range(4)]
        assert sorted(browser.pages for browser in pool.browsers) == [2, 2]
        assert len({lease.context.browser for lease in leases}) == 2
        for lease in leases:
            lease.release()
        await settled(pool)


async def test_only_the_pages_of_a_browser_are_lost_with_it() -> None:
    async with BrowserPool(2, browsers=2, warm=0) as pool:
        await until(lambda: len(pool.browsers) == 2)
        leases = [await pool.acquire_page() for _ in range(2)]
        victim = next(browser for browser in pool.browsers if browser.has(leases[0]))
        assert victim.process is not None
        os.kill(victim.process.pid, signal.SIGKILL)
        await asyncio.wait([leases[0].broken], timeout=10)
        assert isinstance(leases[0].loss, BrowserGone)
        assert await leases[1].page.evaluate("6 * 7") == 42
        assert pool.stats().browsers == 1
        leases[0].release()
        await until(lambda: len(pool.browsers) == 2)
        leases[1].release()
        await settled(pool)
        assert pool.free == 2


async def test_a_browser_is_replaced_after_its_maximum_number_of_pages_without_a_gap() -> None:
    async with BrowserPool(2, warm=0, limits=Limits(pages=3)) as pool:
        first = await running(pool)
        counts: set[int] = set()
        while pool.stats().retired < 2:
            async with pool.page() as page:
                assert await page.evaluate("6 * 7") == 42
            counts.add(pool.stats().browsers)
        assert counts == {1}
        assert pool.stats().lost == 0
        assert first.process is not None
        gone = first.process
        await until(lambda: not gone.alive)


async def test_a_browser_that_reached_its_limit_runs_until_its_last_page_is_released() -> None:
    async with BrowserPool(2, warm=0, limits=Limits(pages=2)) as pool:
        first = await running(pool)
        kept, other = await pool.acquire_page(), await pool.acquire_page()
        other.release()
        await until(lambda: pool.stats().retired == 1)
        assert await running(pool) is not first
        assert await kept.page.evaluate("6 * 7") == 42
        kept.release()
        await asyncio.wait([first.gone], timeout=10)
        assert first.gone.done()
        assert pool.stats().lost == 0


async def test_a_browser_is_not_idle_while_it_opens_a_page() -> None:
    def not_released(_: PageLease) -> asyncio.Task[None]:
        raise NotImplementedError

    async with BrowserPool(1, warm=0) as pool:
        browser = await running(pool)
        opening = asyncio.create_task(browser.open(PageOptions(), not_released))
        await asyncio.sleep(0)
        idle = asyncio.create_task(browser.wait_idle())
        lease = await opening
        assert not idle.done()
        await browser.close_page(lease)
        await asyncio.wait_for(idle, 10)


@pytest.mark.parametrize(
    ("limits", "reason"),
    [(Limits(age_s=0.1), "it has run for"), (Limits(memory_bytes=1), "it uses")],
    ids=["age", "memory"],
)
async def test_a_browser_that_is_too_old_or_too_large_is_replaced(
    limits: Limits, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(instance, "HEARTBEAT_INTERVAL_S", 0.05)
    async with BrowserPool(1, warm=0, limits=limits) as pool:
        first = await running(pool)
        await until(lambda: pool.stats().retired)
        assert reason in first.ended.result()
        async with pool.page() as page:
            assert await page.evaluate("6 * 7") == 42


async def test_a_browser_at_its_limit_that_dies_before_its_successor_runs_is_counted_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with BrowserPool(1, warm=0, limits=Limits(pages=1)) as pool:
        first = await running(pool)
        assert first.process is not None
        lease = await pool.acquire_page()
        os.kill(first.process.pid, signal.SIGKILL)
        await asyncio.wait([lease.broken], timeout=10)
        lease.release()
        async with pool.page() as page:
            assert await page.evaluate("6 * 7") == 42
        await settled(pool)
        stats = pool.stats()
        assert stats.lost + stats.retired == stats.launches - 1


def test_a_pool_cannot_have_more_browsers_than_pages() -> None:
    with pytest.raises(UsageError, match="2 pages need 1 to 2 browsers"):
        BrowserPool(2, browsers=3)
    with pytest.raises(UsageError, match="0 or more warm pages"):
        BrowserPool(2, warm=-1)
