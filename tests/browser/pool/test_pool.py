"""The pool: opening and closing it, and leasing pages."""

import asyncio
import inspect
import os
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.async_api import BrowserContext

from cplane.browser import BrowserPool, PageOptions, probe
from cplane.egress import EgressProxy
from cplane.errors import BrowserGone, BrowserNotFound, InvalidArguments, PoolTimeout, UsageError
from tests.browser.pools import contexts, running, settled


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
        (EgressProxy, "127.0.0.1 is a loopback address"),
    ],
    ids=["BrowserPool", "EgressProxy"],
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
