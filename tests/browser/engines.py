"""What a browser must do to be pooled, whatever its engine: `python -m tests.browser.engines --engine firefox --executable PATH`.

Ends with 0 if all of it holds. The tests do it with Chromium; a Firefox or WebKit is not everywhere.
"""

import argparse
import asyncio
import io
import os
import signal
import sys
import tempfile
import time
import zipfile
from collections.abc import Awaitable, Callable
from pathlib import Path

from cplane.browser import BrowserPool, BrowserSource, Engine, PageOptions, Viewport, collect_trace
from cplane.browser.engine import instance
from cplane.browser.engine.process import Process
from cplane.egress import EgressProxy, EgressRules
from cplane.errors import BrowserGone, CplaneError, EgressBlocked
from tests.browser.pools import FOREVER, find_descendants, running, serve, settled, until

CHECK_S = 60.0


async def isolates(source: BrowserSource, site: str) -> None:
    """Two pages share neither cookies nor storage, and the options of each are its own."""
    options = PageOptions(viewport=Viewport(width=400, height=300), locale="de-DE", timezone="Asia/Tokyo", trace="off")
    async with BrowserPool(2, warm=1, source=source) as pool:
        async with pool.page(options) as one, pool.page() as other:
            await one.goto(site)
            await other.goto(site)
            await one.evaluate("document.cookie = 'a=1'; localStorage.a = 1")
            assert await other.evaluate("document.cookie + (localStorage.a || '')") == ""
            told = "[innerWidth, navigator.language, Intl.DateTimeFormat().resolvedOptions().timeZone]"
            assert await one.evaluate(told) == [400, "de-DE", "Asia/Tokyo"]
            assert (await one.screenshot()).startswith(b"\x89PNG")
        await settled(pool)


async def survives(source: BrowserSource, find: Callable[[BrowserPool], Process | None], number: int) -> None:
    """A process of the browser gets a signal: the job learns that its browser is gone, and the next has another."""
    async with BrowserPool(2, warm=0, source=source) as pool:
        await running(pool)
        process = find(pool)
        assert process is not None
        assert process.pid in find_descendants()
        try:
            async with pool.page() as page:
                os.kill(process.pid, number)
                await page.evaluate(FOREVER)
        except BrowserGone:
            pass
        else:
            raise AssertionError("the job did not learn that its browser is gone")
        async with pool.page() as page:
            assert await page.evaluate("6 * 7") == 42
        assert pool.stats().launches == 2
    assert not process.alive


async def survives_its_browser(source: BrowserSource, _: str) -> None:
    """The browser is killed."""
    await survives(source, lambda pool: pool.browsers[0].process, signal.SIGKILL)


async def survives_its_driver(source: BrowserSource, _: str) -> None:
    """Its driver is killed."""
    await survives(source, lambda pool: pool.browsers[0].driver.process, signal.SIGKILL)


async def survives_a_hang(source: BrowserSource, _: str) -> None:
    """The browser stands still; it is noticed, and killed."""
    before = instance.HEARTBEAT_INTERVAL_S, instance.RESPONSE_TIMEOUT_S, instance.CLOSE_TIMEOUT_S
    instance.HEARTBEAT_INTERVAL_S, instance.RESPONSE_TIMEOUT_S, instance.CLOSE_TIMEOUT_S = 0.05, 3.0, 1.0
    try:
        await survives(source, lambda pool: pool.browsers[0].process, signal.SIGSTOP)
    finally:
        instance.HEARTBEAT_INTERVAL_S, instance.RESPONSE_TIMEOUT_S, instance.CLOSE_TIMEOUT_S = before


async def is_held_back(source: BrowserSource, site: str) -> None:
    """No page reaches loopback past the gate, nor by way of a script."""
    reached: list[bytes] = []

    async def inside(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reached.append(await reader.readline())
        writer.close()

    allowed = EgressRules.read([site.removeprefix("http://").rstrip("/")])
    async with (
        await asyncio.start_server(inside, "127.0.0.1", 0) as server,
        EgressProxy(allowed) as egress,
        BrowserPool(1, source=source, egress=egress) as pool,
    ):
        refused = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        try:
            async with pool.page() as page:
                await page.goto(refused)
        except EgressBlocked:
            pass
        else:
            raise AssertionError("a page reached loopback")
        lease = await pool.acquire_page()
        async with lease as page:
            await page.goto(site)
            asked = "async url => { try { await fetch(url, {mode: 'no-cors'}); return true } catch { return false } }"
            assert not await page.evaluate(asked, refused)
            assert lease.gate is not None
            assert [blocked.host for blocked in lease.gate.blocked] == ["127.0.0.1"]
    assert not reached


async def is_recorded(source: BrowserSource, site: str) -> None:
    """A trace is there, of both kinds."""
    for trace in ("on-failure", "on"):
        async with BrowserPool(1, warm=1, source=source, trace=trace) as pool:
            await until(lambda: pool.stats().warm)
            lease = await pool.acquire_page()
            await lease.page.goto(site)
            (file,) = await collect_trace(lease, 1)
            with zipfile.ZipFile(io.BytesIO(file.data)) as archive:
                assert b'"goto"' in archive.read("trace.trace")
            lease.release()


async def leaves_nothing(source: BrowserSource, site: str) -> None:
    """No process and no profile folder stays behind."""
    async with BrowserPool(2, source=source) as pool:
        browser = await running(pool)
        profile, artifacts = browser.profile, browser.artifacts
        assert profile is not None
        assert profile.is_dir()
        async with pool.page() as page:
            await page.goto(site)
        pids = find_descendants()
    await until(lambda: not pids & find_descendants())
    assert not profile.exists()
    assert not artifacts.exists()


Check = Callable[[BrowserSource, str], Awaitable[None]]
CHECKS: tuple[Check, ...] = (
    isolates,
    survives_its_browser,
    survives_its_driver,
    survives_a_hang,
    is_held_back,
    is_recorded,
    leaves_nothing,
)


async def check_all(source: BrowserSource) -> int:
    """Every check in turn, a line each; answers how many do not hold."""
    failed = 0
    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        site = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        for check in CHECKS:
            began, trouble = time.monotonic(), ""
            try:
                async with asyncio.timeout(CHECK_S):
                    await check(source, site)
            except (AssertionError, CplaneError, TimeoutError) as error:
                failed += 1
                trouble = f"  {type(error).__name__}: {error}"
            name = getattr(check, "__name__", "")
            print(f"{'FAILED' if trouble else 'ok':7}{name:24}{time.monotonic() - began:5.1f} s{trouble}")
    return failed


def main() -> int:
    """Parse the command line and check."""
    parser = argparse.ArgumentParser(prog="python -m tests.browser.engines", description=__doc__)
    parser.add_argument("--engine", default="chromium", choices=[engine.value for engine in Engine])
    parser.add_argument("--executable", type=Path, help="the browser's binary; default: looked up")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TMPDIR"] = tempfile.tempdir = folder
        return min(1, asyncio.run(check_all(BrowserSource(engine=Engine(given.engine), executable=given.executable))))


if __name__ == "__main__":
    sys.exit(main())
