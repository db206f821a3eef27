"""The pool: leasing pages, and what happens when pages, browsers and drivers die or hang."""

import asyncio
import contextlib
import inspect
import os
import signal
import sys
import textwrap
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from playwright.async_api import BrowserContext, CDPSession
from playwright.async_api import Error as PlaywrightError

from cplane.browser import BrowserPool, PageOptions, probe
from cplane.browser import lease as lease_module
from cplane.browser.engine import instance
from cplane.egress import EgressProxy
from cplane.errors import BrowserGone, BrowserNotFound, InvalidArguments, PageCrashed, PoolTimeout, UsageError
from tests.browser.pools import FOREVER, contexts, running, settled


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


async def test_pages_do_not_share_cookies_and_storage(pool: BrowserPool, site: str) -> None:
    async with pool.page() as one, pool.page() as other:
        await one.goto(site)
        await other.goto(site)
        await one.evaluate("document.cookie = 'a=1'; localStorage.setItem('a', '1')")
        assert await other.evaluate("[document.cookie, localStorage.getItem('a')]") == ["", None]
    async with pool.page() as later:
        await later.goto(site)
        assert await later.evaluate("[document.cookie, localStorage.getItem('a')]") == ["", None]


async def test_page_options_reach_the_page(pool: BrowserPool) -> None:
    options = PageOptions.read(
        {"viewport": {"width": 400, "height": 300}, "locale": "de-DE", "timezone": "Asia/Tokyo", "user_agent": "me/1"}
    )
    async with pool.page(options) as page:
        seen = await page.evaluate(
            "[innerWidth, innerHeight, navigator.language, Intl.DateTimeFormat().resolvedOptions().timeZone,"
            " navigator.userAgent]"
        )
    assert seen == [400, 300, "de-DE", "Asia/Tokyo", "me/1"]


async def test_options_that_the_browser_refuses_raise_invalid_arguments(pool: BrowserPool) -> None:
    with pytest.raises(InvalidArguments, match="Mars/Olympus"):
        await pool.acquire_page(PageOptions(timezone="Mars/Olympus"))
    assert pool.stats().open == 0
    assert contexts(await running(pool)) == 0


async def test_waiters_are_served_in_order(pool: BrowserPool) -> None:
    leases = [await pool.acquire_page() for _ in range(2)]
    served: list[int] = []

    async def take(number: int) -> None:
        lease = await pool.acquire_page()
        served.append(number)
        lease.release()

    waiters = [asyncio.create_task(take(number)) for number in range(4)]
    await asyncio.sleep(0)
    assert (pool.free, pool.stats().waiting) == (0, 4)
    leases[0].release()
    await asyncio.wait(waiters, timeout=20)
    assert served == [0, 1, 2, 3]
    leases[1].release()
    await settled(pool)
    assert pool.free == 2


async def test_a_waiter_times_out_after_wait_s() -> None:
    async with BrowserPool(1, wait_s=0.1) as pool, pool.page():
        started = time.monotonic()
        with pytest.raises(PoolTimeout, match=r"none of 1 pages became free within 0\.1 s"):
            await pool.acquire_page()
        assert time.monotonic() - started < 2
        assert pool.stats().waiting == 0


async def test_releasing_a_lease_twice_releases_one_slot(pool: BrowserPool) -> None:
    lease = await pool.acquire_page()
    lease.release()
    lease.release()
    await lease.wait_closed()
    assert pool.stats().open == 0
    assert lease.page.is_closed()


async def test_wait_free_returns_when_a_page_is_released() -> None:
    async with BrowserPool(1) as pool:
        await pool.wait_free()
        lease = await pool.acquire_page()
        waiting = asyncio.create_task(pool.wait_free())
        await asyncio.sleep(0)
        assert not waiting.done()
        lease.release()
        await asyncio.wait_for(waiting, 10)
        assert pool.free == 1


async def test_popups_close_with_their_page(pool: BrowserPool, site: str) -> None:
    lease = await pool.acquire_page()
    await lease.page.goto(site)
    async with lease.page.expect_popup() as popup:
        await lease.page.evaluate("void window.open(location.href)")
    opened = await popup.value
    lease.release()
    await lease.wait_closed()
    assert opened.is_closed()


@pytest.mark.parametrize("turns", [0, 1, 2, 3, 5, 8, 13, 21, 34])
async def test_a_cancelled_acquire_leaves_no_slot_in_use_and_no_context(pool: BrowserPool, turns: int) -> None:
    browser = await running(pool)
    for _ in range(3):
        acquiring = asyncio.create_task(pool.acquire_page())
        for _ in range(turns):
            await asyncio.sleep(0)
        acquiring.cancel()
        await asyncio.wait([acquiring])
    await settled(pool)
    assert pool.free == 2
    assert contexts(browser) == 0


@pytest.mark.parametrize("step", ["new_context", "new_page", "done"])
async def test_an_acquire_cancelled_during_a_browser_call_leaves_nothing(
    pool: BrowserPool, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    browser = await running(pool)
    reached, go_on = asyncio.Event(), asyncio.Event()
    new_context, new_page = browser.browser.new_context, BrowserContext.new_page

    async def gate(name: str) -> None:
        if name == step:
            reached.set()
            await go_on.wait()

    async def slow_context(**options: object) -> BrowserContext:
        await gate("new_context")
        return await new_context(**options)  # type: ignore[arg-type]

    async def slow_page(context: BrowserContext) -> object:
        await gate("new_page")
        page = await new_page(context)
        await gate("done")
        return page

    monkeypatch.setattr(browser.browser, "new_context", slow_context)
    monkeypatch.setattr(BrowserContext, "new_page", slow_page)
    acquiring = asyncio.create_task(pool.acquire_page())
    await asyncio.wait_for(reached.wait(), 20)
    acquiring.cancel()
    await asyncio.wait([acquiring])
    assert acquiring.cancelled()
    assert pool.stats().open == 1
    go_on.set()
    await settled(pool)
    assert contexts(browser) == 0


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


async def test_closing_the_pool_leaves_no_process_and_no_task(descendants: Callable[[], set[int]]) -> None:
    before, tasks = descendants(), asyncio.all_tasks()
    async with BrowserPool(2) as pool:
        lease = await pool.acquire_page()
        assert descendants() > before
    assert isinstance(lease.broken.exception(), BrowserGone)
    lease.release()
    await lease.wait_closed()
    assert descendants() <= before
    assert {task for task in asyncio.all_tasks() if not task.done()} <= tasks


async def test_closing_the_pool_fails_its_waiters() -> None:
    async with BrowserPool(1) as pool:
        await pool.acquire_page()
        waiting = asyncio.create_task(pool.acquire_page())
        await asyncio.sleep(0)
    with pytest.raises(BrowserGone, match="closed"):
        await waiting
    with pytest.raises(BrowserGone, match="closed"):
        await pool.acquire_page()
    await pool.wait_free()
    assert pool.free == 0


async def test_closing_the_pool_while_a_page_opens_does_not_cancel_the_caller() -> None:
    async with BrowserPool(1) as pool:
        opening = asyncio.create_task(pool.acquire_page())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    with pytest.raises(BrowserGone):
        await opening


async def test_a_cancelled_start_of_the_pool_leaves_no_process(descendants: Callable[[], set[int]]) -> None:
    before = descendants()
    for delay_s in (0.0, 0.02, 0.1, 0.3):
        entering = asyncio.create_task(BrowserPool(1).__aenter__())
        await asyncio.wait([entering], timeout=delay_s)
        if entering.done():
            await (await entering).__aexit__(None, None, None)
        else:
            entering.cancel()
            await asyncio.wait([entering])
        assert descendants() <= before


async def test_a_cancelled_close_of_the_pool_is_still_completed(descendants: Callable[[], set[int]]) -> None:
    before = descendants()
    pool = await BrowserPool(1).__aenter__()
    leaving = asyncio.create_task(pool.__aexit__(None, None, None))
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.wait([leaving])
    assert leaving.cancelled()
    assert descendants() <= before


async def test_a_pool_without_a_browser_raises_browser_not_found(tmp_path: Path) -> None:
    with pytest.raises(BrowserNotFound, match="not a program"):
        await BrowserPool(executable=tmp_path / "missing").__aenter__()


async def test_the_error_of_a_browser_that_does_not_start_has_the_reason(
    tmp_path: Path, descendants: Callable[[], set[int]]
) -> None:
    before = descendants()
    broken = tmp_path / "chromium"
    broken.write_text("#!/bin/sh\necho 'error while loading shared libraries: libnss3.so' >&2\nexit 127\n")
    broken.chmod(0o755)
    with pytest.raises(BrowserGone, match=r"did not start: .*libnss3\.so.*cplane browser install"):
        await BrowserPool(executable=broken).__aenter__()
    assert descendants() <= before


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


async def test_a_pool_cannot_be_opened_twice(pool: BrowserPool) -> None:
    with pytest.raises(UsageError):
        await pool.__aenter__()
    with pytest.raises(UsageError):
        BrowserPool(0)


async def test_probe_returns_the_version() -> None:
    assert (await probe()).split(".")[0].isdigit()


@pytest.mark.parametrize(
    ("documented", "output"),
    [
        (BrowserPool, "Hello"),
        (BrowserPool.page, "Directory listing for /"),
        (EgressProxy, "127.0.0.1 is a loopback address"),
    ],
    ids=["BrowserPool", "BrowserPool.page", "EgressProxy"],
)
async def test_the_examples_in_docstrings_run(documented: object, output: str, tmp_path: Path) -> None:
    code = textwrap.dedent((inspect.getdoc(documented) or "").partition("```python\n")[2].partition("```")[0])
    program = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        textwrap.dedent(code),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    printed, errors = await asyncio.wait_for(program.communicate(), 60)
    assert program.returncode == 0, errors.decode()
    assert output in printed.decode()
