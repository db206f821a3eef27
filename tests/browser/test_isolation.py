"""What crosses from one job to another, in each isolation mode: every cell of the table in docs/explanation/isolation.md."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import pytest
import pytest_asyncio
from playwright.async_api import Error as PlaywrightError

from cplane.browser import BrowserPool, PageOptions
from cplane.browser.lease import PageLease
from cplane.browser.pool import shared
from tests.browser.crossings import CROSSINGS, HEADERS, Crossing, has_header, row
from tests.browser.pools import settled, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

Mode = Literal["fresh", "session", "shared"]
MODES: tuple[Mode, ...] = ("fresh", "session", "shared")
CONCURRENT = 3
"""Crossings that are tested concurrently."""
DOCS = Path(__file__).parents[2] / "docs" / "explanation" / "isolation.md"


class Site:
    """A site on an origin that browsers trust, and how often each path was requested."""

    def __init__(self, url: str, seen: Counter[str]) -> None:
        self.url = url
        self.seen = seen


SCRIPT = "Content-Type: text/javascript\r\n"
FIXED = {
    "/sw.js": (SCRIPT, "self.addEventListener('fetch', () => {})"),
    "/shared.js": (SCRIPT, "let n = 0; onconnect = event => event.ports[0].postMessage(++n)"),
    "/file": ("Content-Disposition: attachment; filename=left.txt\r\n", "left"),
}


def response(head: str, number: int) -> tuple[str, str, str]:
    """Return status, further headers and body of the response to a request."""
    path = head.split()[1]
    if path.startswith("/private") and "authorization:" not in head.lower():
        return "401 Unauthorized", 'WWW-Authenticate: Basic realm="site"\r\n', "no"
    if path.startswith("/cached"):
        return "200 OK", "Cache-Control: max-age=3600\r\n", str(number)
    if path.startswith("/echo"):
        return "200 OK", "Cache-Control: no-store\r\n", head
    if path in FIXED:
        return ("200 OK", *FIXED[path])
    return "200 OK", "Content-Type: text/html\r\n", "<!doctype html><title>Site</title><a href=/file>file</a>"


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def trusted() -> AsyncGenerator[Site]:
    seen: Counter[str] = Counter()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            seen[head.split()[1]] += 1
            status, headers, body = response(head, seen[head.split()[1]])
            fixed = f"Connection: close\r\nContent-Length: {len(body)}\r\n\r\n"
            writer.write(f"HTTP/1.1 {status}\r\n{headers}{fixed}{body}".encode())
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield Site(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/", seen)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def shared_pool() -> AsyncGenerator[BrowserPool]:
    async with BrowserPool(2 * CONCURRENT, warm=0) as pool:
        yield pool


@asynccontextmanager
async def leased(
    pool: BrowserPool, mode: Mode, scope: str, state: dict[str, Any] | None = None
) -> AsyncGenerator[PageLease]:
    options = PageOptions(isolation=mode, session="kept" if mode == "session" else None, accept_downloads=True)
    lease = await pool.acquire_page(options, scope=scope, storage_state=state)
    try:
        yield lease
    finally:
        lease.release()
        await lease.wait_closed()


async def crosses_later(pool: BrowserPool, url: str, crossing: Crossing, mode: Mode) -> bool:
    scope, state = str(uuid4()), None
    async with leased(pool, mode, scope) as lease:
        left = await crossing.leave(lease.page, url)
        if mode == "session":
            state = await lease.storage_state()
    async with leased(pool, mode, scope, state) as lease:
        return await crossing.find(lease.page, url, left)


async def crosses_concurrently(pool: BrowserPool, url: str, crossing: Crossing, mode: Mode) -> bool:
    scope = str(uuid4())
    async with leased(pool, mode, scope) as one, leased(pool, mode, scope) as other:
        left = await crossing.leave(one.page, url)
        return await crossing.find(other.page, url, left)


async def wrong_cells(crosses: Callable[[Crossing], Awaitable[bool]], cell: Callable[[Crossing], str]) -> list[str]:
    """Return the crossings that differ from the table; all are tested, three concurrently."""
    rest, wrong = iter(CROSSINGS), list[str]()

    async def test() -> None:
        for crossing in rest:
            try:
                async with asyncio.timeout(30):
                    found = await crosses(crossing)
            except (PlaywrightError, TimeoutError) as error:
                wrong.append(f"{crossing.name}: {error!r}")
            else:
                if found != (cell(crossing) != "no"):
                    wrong.append(f"{crossing.name}: {'crosses' if found else 'does not cross'}")

    async with asyncio.TaskGroup() as testing:
        for _ in range(CONCURRENT):
            testing.create_task(test())
    return wrong


@pytest.fixture
def pages_are_not_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next job always comes before a page was idle long enough to be reset."""
    monkeypatch.setattr(shared, "RESET_IDLE_S", 3600.0)


@pytest.mark.usefixtures("pages_are_not_reset")
@pytest.mark.parametrize("mode", MODES)
async def test_what_crosses_to_a_job_that_follows_immediately(
    shared_pool: BrowserPool, trusted: Site, mode: Mode
) -> None:
    assert not await wrong_cells(
        lambda crossing: crosses_later(shared_pool, trusted.url, crossing, mode),
        lambda crossing: crossing.later[MODES.index(mode)],
    )


@pytest.mark.usefixtures("pages_are_not_reset")
@pytest.mark.parametrize("mode", MODES)
async def test_what_crosses_to_a_concurrent_job(shared_pool: BrowserPool, trusted: Site, mode: Mode) -> None:
    assert not await wrong_cells(
        lambda crossing: crosses_concurrently(shared_pool, trusted.url, crossing, mode),
        lambda crossing: crossing.concurrent[MODES.index(mode)],
    )


@pytest_asyncio.fixture(loop_scope="module")
async def maintained() -> Callable[[], bool]:
    """Return whether all maintenance that was started since the test began has ended."""
    before = asyncio.all_tasks()
    return lambda: all(task.get_name() != shared.MAINTENANCE_TASK for task in asyncio.all_tasks() - before)


async def test_idle_pages_and_contexts_are_reset(
    trusted: Site, maintained: Callable[[], bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared, "RESET_IDLE_S", 0.05)
    async with BrowserPool(2, warm=0) as pool:
        async with leased(pool, "shared", "a") as lease:
            page, context = lease.page, lease.context
            await page.goto(trusted.url)
            await page.evaluate("window.left = 1")
            await page.set_viewport_size({"width": 333, "height": 333})
            await page.emulate_media(media="print", color_scheme="dark")
            await page.set_extra_http_headers(HEADERS)
            await context.set_extra_http_headers(HEADERS)
            await context.grant_permissions(["geolocation"])
            await context.set_offline(True)
        await until(maintained)
        assert page.url == "about:blank"
        async with leased(pool, "shared", "a") as lease:
            assert lease.page is page
            assert not await has_header(page, trusted.url, None)
            seen = "[innerWidth, matchMedia('print').matches, matchMedia('(prefers-color-scheme: dark)').matches, window.left]"
            assert await page.evaluate(seen) == [1280, False, False, None]
            script = "navigator.permissions.query({name: 'geolocation'}).then(status => status.state)"
            assert await page.evaluate(script) != "granted"


async def test_a_page_that_is_being_reset_is_not_leased_and_is_closed_if_that_fails(
    trusted: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared, "RESET_IDLE_S", 0.05)
    monkeypatch.setattr(shared, "BLANK_SCRIPT", "() => { document.title = 'leaving'; return new Promise(() => {}) }")
    async with BrowserPool(2, warm=0) as pool:
        async with leased(pool, "shared", "a") as lease:
            page = lease.page
            await page.goto(trusted.url)
        async with asyncio.timeout(20):
            await page.wait_for_function("document.title === 'leaving'")
        async with leased(pool, "shared", "a") as lease:
            assert lease.page is not page
            await until(page.is_closed)
        assert pool.stats().launches == 1


async def test_a_pool_closes_while_pages_are_idle(trusted: Site, maintained: Callable[[], bool]) -> None:
    async with BrowserPool(2, warm=0) as pool:
        async with leased(pool, "shared", "a") as lease:
            await lease.page.goto(trusted.url)
        assert not maintained()
    assert maintained()


async def test_a_page_in_an_endless_loop_is_closed_and_its_browser_kept(
    shared_pool: BrowserPool, trusted: Site
) -> None:
    scope, launches = str(uuid4()), shared_pool.stats().launches
    async with leased(shared_pool, "shared", scope) as lease:
        busy = lease.page
        await busy.goto(trusted.url)
        await busy.evaluate("void setTimeout(() => { for (;;); })")
    await settled(shared_pool)
    assert busy.is_closed()
    async with leased(shared_pool, "shared", scope) as lease:
        assert await lease.page.evaluate("6 * 7") == 42
    assert shared_pool.stats().launches == launches


async def test_a_warm_page_has_no_data_of_any_job(trusted: Site) -> None:
    async with BrowserPool(2, warm=1) as pool:
        await until(lambda: pool.stats().warm)
        async with pool.page() as page:
            await page.goto(trusted.url)
            await page.evaluate("document.cookie = 'left=1'; localStorage.left = 1; window.name = 'left'")
            await until(lambda: pool.stats().warm)
        await settled(pool)
        async with pool.page() as page:
            assert page.url == "about:blank"
            assert page.context.pages == [page]
            assert await page.evaluate("history.length") == 1
            assert await page.context.storage_state() == {"cookies": [], "origins": []}
            await page.goto(trusted.url)
            assert not await page.evaluate("document.cookie || localStorage.left || window.name")
        assert pool.stats().leased_warm == 2


async def test_the_docs_have_this_table() -> None:
    table = [line for line in DOCS.read_text().splitlines() if line.startswith("| ")]
    assert table[-len(CROSSINGS) :] == [row(crossing) for crossing in CROSSINGS]
