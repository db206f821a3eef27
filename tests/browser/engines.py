"""What the pool requires of every engine: `python -m tests.browser.engines --engine firefox --executable PATH`.

It exits with 0 if all checks pass. The tests run them with Chromium, because not every machine has Firefox or WebKit.
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
    """Two pages share neither cookies nor storage, and each has its own options."""
    options = PageOptions(viewport=Viewport(width=400, height=300), locale="de-DE", timezone="Asia/Tokyo", trace="off")
    async with BrowserPool(2, warm=1, source=source) as pool:
        async with pool.page(options) as one, pool.page() as other:
            await one.goto(site)
            await other.goto(site)
            await one.evaluate("document.cookie = 'a=1'; localStorage.a = 1")
            assert await other.evaluate("document.cookie + (localStorage.a || '')") == ""
            script = "[innerWidth, navigator.language, Intl.DateTimeFormat().resolvedOptions().timeZone]"
            assert await one.evaluate(script) == [400, "de-DE", "Asia/Tokyo"]
            assert (await one.screenshot()).startswith(b"\x89PNG")
        await settled(pool)


async def survives(source: BrowserSource, find: Callable[[BrowserPool], Process | None], sent: int) -> None:
    """Send a signal to a process of the browser: its job gets BrowserGone, and the next job gets another browser."""
    async with BrowserPool(2, warm=0, source=source) as pool:
        await running(pool)
        process = find(pool)
        assert process is not None
        assert process.pid in find_descendants()
        try:
            async with pool.page() as page:
                os.kill(process.pid, sent)
                await page.evaluate(FOREVER)
        except BrowserGone:
            pass
        else:
            raise AssertionError("the job was not interrupted by the loss of its browser")
        async with pool.page() as page:
            assert await page.evaluate("6 * 7") == 42
        assert pool.stats().launches == 2
    assert not process.alive


async def survives_its_browser(source: BrowserSource, _: str) -> None:
    """Kill the browser."""
    await survives(source, lambda pool: pool.browsers[0].process, signal.SIGKILL)


async def survives_its_driver(source: BrowserSource, _: str) -> None:
    """Kill its driver."""
    await survives(source, lambda pool: pool.browsers[0].driver.process, signal.SIGKILL)


async def survives_a_hang(source: BrowserSource, _: str) -> None:
    """Stop the browser: that is detected, and it is killed."""
    before = instance.HEARTBEAT_INTERVAL_S, instance.RESPONSE_TIMEOUT_S, instance.CLOSE_TIMEOUT_S
    instance.HEARTBEAT_INTERVAL_S, instance.RESPONSE_TIMEOUT_S, instance.CLOSE_TIMEOUT_S = 0.05, 3.0, 1.0
    try:
        await survives(source, lambda pool: pool.browsers[0].process, signal.SIGSTOP)
    finally:
        instance.HEARTBEAT_INTERVAL_S, instance.RESPONSE_TIMEOUT_S, instance.CLOSE_TIMEOUT_S = before


async def is_restricted_by_egress(source: BrowserSource, site: str) -> None:
    """No page reaches loopback, by navigation or by a script."""
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
            script = "async url => { try { await fetch(url, {mode: 'no-cors'}); return true } catch { return false } }"
            assert not await page.evaluate(script, refused)
            assert lease.gate is not None
            assert [blocked.host for blocked in lease.gate.blocked] == ["127.0.0.1"]
    assert not reached


async def is_traced(source: BrowserSource, site: str) -> None:
    """Both kinds of trace are recorded."""
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
    """No process and no folder stays behind."""
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
    is_restricted_by_egress,
    is_traced,
    leaves_nothing,
)


async def check_all(source: BrowserSource) -> int:
    """Run the checks one after the other and print a line each; returns how many failed."""
    failed = 0
    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        site = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        for check in CHECKS:
            started, failure = time.monotonic(), ""
            try:
                async with asyncio.timeout(CHECK_S):
                    await check(source, site)
            except (AssertionError, CplaneError, TimeoutError) as error:
                failed += 1
                failure = f"  {type(error).__name__}: {error}"
            name = getattr(check, "__name__", "")
            print(f"{'FAILED' if failure else 'ok':7}{name:24}{time.monotonic() - started:5.1f} s{failure}")
    return failed


def main() -> int:
    """Parse the command line and run the checks."""
    parser = argparse.ArgumentParser(prog="python -m tests.browser.engines", description=__doc__)
    parser.add_argument("--engine", default="chromium", choices=[engine.value for engine in Engine])
    parser.add_argument("--executable", type=Path, help="path of the browser's binary; default: the one that jobs use")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TMPDIR"] = tempfile.tempdir = folder
        source = BrowserSource(engine=Engine(options.engine), executable=options.executable)
        return min(1, asyncio.run(check_all(source)))


if __name__ == "__main__":
    sys.exit(main())
