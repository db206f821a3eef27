"""What crosses from one job to another, in each isolation: every cell of the table in docs/isolation.md, seen in a browser."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import pytest
import pytest_asyncio
from playwright.async_api import Error as PlaywrightError
from playwright.async_api import Page, Route

from cplane.browser import BrowserPool, PageOptions
from cplane.browser.lease import PageLease
from cplane.browser.pool import shared
from tests.browser.pools import settled, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

Mode = Literal["fresh", "session", "shared"]
MODES: tuple[Mode, ...] = ("fresh", "session", "shared")
AT_ONCE = 3
"""Crossings that are tried side by side."""
TEND = "tend shared pages"
DOCS = Path(__file__).parents[2] / "docs" / "isolation.md"


class Site:
    """A site on an origin that browsers trust, and what it was asked for."""

    def __init__(self, url: str, seen: Counter[str]) -> None:
        self.url = url
        self.seen = seen


SCRIPT = "Content-Type: text/javascript\r\n"
FIXED = {
    "/sw.js": (SCRIPT, "self.addEventListener('fetch', () => {})"),
    "/shared.js": (SCRIPT, "let n = 0; onconnect = event => event.ports[0].postMessage(++n)"),
    "/file": ("Content-Disposition: attachment; filename=left.txt\r\n", "left"),
}


def answer(head: str, number: int) -> tuple[str, str, str]:
    """Status, further headers and body of the answer to a request."""
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
            status, headers, body = answer(head, seen[head.split()[1]])
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
async def lender() -> AsyncGenerator[BrowserPool]:
    async with BrowserPool(2 * AT_ONCE, warm=0) as pool:
        yield pool


Leave = Callable[[Page, str], Awaitable[object]]
Find = Callable[[Page, str, Any], Awaitable[bool]]


@dataclass(frozen=True)
class Crossing:
    """Something a job leaves, how a job would find it, and whether it does: in fresh, session and shared."""

    name: str
    leave: Leave
    find: Find
    later: tuple[str, str, str]
    beside: tuple[str, str, str]
    why: str


NEVER = ("no", "no", "no")
SHARED = ("no", "no", "by design")
KEPT = ("no", "by design", "by design")
CONTEXT = ("no", "no", "yes")


def script(code: str) -> Leave:
    async def leave(page: Page, url: str) -> None:
        await page.goto(url)
        await page.evaluate(code)

    return leave


def holds(code: str) -> Find:
    async def find(page: Page, url: str, left: object) -> bool:
        await page.goto(url)
        return bool(await page.evaluate(code))

    return find


def holds_at_once(code: str) -> Find:
    async def find(page: Page, url: str, left: object) -> bool:
        return bool(await page.evaluate(code))

    return find


def holds_there(code: str) -> Find:
    async def find(page: Page, url: str, left: object) -> bool:
        if page.url != url:
            await page.goto(url)
        return bool(await page.evaluate(code))

    return find


def call(act: Callable[[Page], Awaitable[object]]) -> Leave:
    async def leave(page: Page, url: str) -> None:
        await act(page)

    return leave


async def log_in(page: Page, url: str) -> None:
    await page.goto(url.replace("//", "//user:secret@") + "private")


async def is_logged_in(page: Page, url: str, left: object) -> bool:
    response = await page.goto(url + "private")
    return response is not None and response.status == 200


async def fetch_cached(page: Page, url: str) -> str:
    path = f"cached?{uuid4()}"
    await page.goto(url)
    await page.evaluate("path => fetch(path).then(answer => answer.text())", path)
    return path


async def is_cached(page: Page, url: str, left: str) -> bool:
    await page.goto(url)
    return bool(await page.evaluate("path => fetch(path).then(answer => answer.text())", left) == "1")


async def has_place(page: Page, url: str, left: object) -> bool:
    await page.goto(url)
    await page.context.grant_permissions(["geolocation"])
    ask = "new Promise(done => navigator.geolocation.getCurrentPosition(() => done(true), () => done(false), {timeout: 2000}))"
    return bool(await page.evaluate(ask))


async def has_header(page: Page, url: str, left: object) -> bool:
    await page.goto(url + "echo")
    return "x-left" in (await page.content()).lower()


async def is_offline(page: Page, url: str, left: object) -> bool:
    try:
        await page.goto(url)
    except PlaywrightError:
        return True
    return False


async def refuse(route: Route) -> None:
    await route.abort()


async def listen(page: Page, url: str) -> list[object]:
    heard: list[object] = []

    def hear(request: object) -> None:
        heard.append(request)

    page.on("request", hear)
    return heard


async def listen_context(page: Page, url: str) -> list[object]:
    heard: list[object] = []

    def hear(request: object) -> None:
        heard.append(request)

    page.context.on("request", hear)
    return heard


async def is_heard(page: Page, url: str, left: list[object]) -> bool:
    left.clear()
    await page.goto(url)
    return bool(left)


async def download(page: Page, url: str) -> Path:
    await page.goto(url)
    async with page.expect_download() as waiting:
        await page.click("a")
    return Path(await (await waiting.value).path())


async def is_file(page: Page, url: str, left: Path) -> bool:
    return left.exists()


async def pop_up(page: Page, url: str) -> None:
    await page.goto(url)
    async with page.expect_popup() as popup:
        await page.evaluate("void window.open(location.href + '?popup')")
    await popup.value


async def open_page(page: Page, url: str) -> None:
    await (await page.context.new_page()).goto(url)


async def sees_others(page: Page, url: str, left: object) -> bool:
    return len(page.context.pages) > 1


async def has_opener(page: Page, url: str, left: object) -> bool:
    return bool(await page.evaluate("window.opener !== null"))


async def visit(page: Page, url: str) -> None:
    await page.goto(url + "?left")
    await page.goto(url)


async def goes_back(page: Page, url: str, left: object) -> bool:
    await page.goto(url)
    for _ in range(3):
        await page.go_back()
        if page.url.endswith("?left"):
            return True
    return False


async def open_dialog(page: Page, url: str) -> None:
    await page.goto(url)
    async with page.expect_event("dialog"):
        page.on("dialog", lambda _: None)  # nobody answers it
        await page.evaluate("void setTimeout(() => alert('left'))")


async def is_blocked(page: Page, url: str, left: object) -> bool:
    try:
        async with asyncio.timeout(3):
            await page.evaluate("1")
    except TimeoutError:
        return True
    return False


async def trace(page: Page, url: str) -> None:
    await page.context.tracing.start()


async def is_traced(page: Page, url: str, left: object) -> bool:
    try:
        await page.context.tracing.start()
    except PlaywrightError:
        return True
    return False


async def shorten(page: Page, url: str) -> None:
    page.set_default_timeout(1)


async def is_short(page: Page, url: str, left: object) -> bool:
    try:
        await page.wait_for_function("new Promise(done => setTimeout(() => done(true), 300))")
    except PlaywrightError:
        return True
    return False


CLIP = ["clipboard-read", "clipboard-write"]


async def copy(page: Page, url: str) -> str:
    text = str(uuid4())
    await page.goto(url)
    await page.context.grant_permissions(CLIP)
    await page.evaluate("text => navigator.clipboard.writeText(text)", text)
    return text


async def paste(page: Page, url: str, left: str) -> bool:
    await page.goto(url)
    await page.context.grant_permissions(CLIP)
    return bool(await page.evaluate("navigator.clipboard.readText()") == left)


IDB = """new Promise(done => { const open = indexedDB.open('left')
    open.onupgradeneeded = () => open.result.createObjectStore('all').put('left', 'key')
    open.onsuccess = () => { open.result.close(); done(1) } })"""
HEAR = "{ const bus = new BroadcastChannel('bus'); bus.onmessage = () => bus.postMessage('left'); window.bus = bus }"
SPEAK = """new Promise(done => { const bus = new BroadcastChannel('bus'); bus.onmessage = () => done(true);
    bus.postMessage('who'); setTimeout(() => done(false), 1000) })"""
WORKER = "new Promise(done => { new SharedWorker('/shared.js').port.onmessage = event => done(event.data) })"
HEADERS = {"X-Left": "1"}

CROSSINGS = [
    # read again: only then has the browser what its page has set
    Crossing(
        "cookies",
        script("document.cookie = 'left=1'; document.cookie"),
        holds("document.cookie"),
        KEPT,
        SHARED,
        "state",
    ),
    Crossing("HTTP credentials", log_in, is_logged_in, SHARED, SHARED, "state"),
    Crossing("localStorage", script("localStorage.left = 1"), holds("localStorage.left"), KEPT, SHARED, "state"),
    Crossing("sessionStorage", script("sessionStorage.left = 1"), holds("sessionStorage.left"), SHARED, NEVER, "tab"),
    Crossing("IndexedDB", script(IDB), holds("indexedDB.databases().then(all => all.length)"), KEPT, SHARED, "state"),
    Crossing("Cache Storage", script("caches.open('left')"), holds("caches.has('left')"), SHARED, SHARED, "state"),
    Crossing("HTTP cache", fetch_cached, is_cached, SHARED, SHARED, "speed"),
    Crossing(
        "service workers",
        script("navigator.serviceWorker.register('/sw.js').then(() => navigator.serviceWorker.ready).then(() => 1)"),
        holds("navigator.serviceWorker.getRegistration().then(Boolean)"),
        SHARED,
        SHARED,
        "state",
    ),
    Crossing(
        "permissions",
        call(lambda page: page.context.grant_permissions(["geolocation"])),
        holds("navigator.permissions.query({name: 'geolocation'}).then(answer => answer.state === 'granted')"),
        CONTEXT,
        CONTEXT,
        "as left",
    ),
    Crossing(
        "geolocation",
        call(lambda page: page.context.set_geolocation({"latitude": 1, "longitude": 1})),
        has_place,
        CONTEXT,
        CONTEXT,
        "as left",
    ),
    Crossing(
        "viewport",
        call(lambda page: page.set_viewport_size({"width": 333, "height": 333})),
        holds("innerWidth === 333"),
        CONTEXT,
        NEVER,
        "as left",
    ),
    Crossing(
        "emulated media",
        call(lambda page: page.emulate_media(media="print", color_scheme="dark")),
        holds("matchMedia('print').matches || matchMedia('(prefers-color-scheme: dark)').matches"),
        CONTEXT,
        NEVER,
        "as left",
    ),
    Crossing("offline", call(lambda page: page.context.set_offline(True)), is_offline, CONTEXT, CONTEXT, "as left"),
    Crossing(
        "page.set_extra_http_headers",
        call(lambda page: page.set_extra_http_headers(HEADERS)),
        has_header,
        CONTEXT,
        NEVER,
        "as left",
    ),
    Crossing(
        "context.set_extra_http_headers",
        call(lambda page: page.context.set_extra_http_headers(HEADERS)),
        has_header,
        CONTEXT,
        CONTEXT,
        "as left",
    ),
    Crossing("default timeouts", shorten, is_short, CONTEXT, NEVER, "as left"),
    Crossing("page.route", call(lambda page: page.route("**/*", refuse)), is_offline, NEVER, NEVER, "page"),
    Crossing(
        "context.route", call(lambda page: page.context.route("**/*", refuse)), is_offline, CONTEXT, CONTEXT, "as left"
    ),
    Crossing(
        "page.add_init_script",
        call(lambda page: page.add_init_script("window.left = 1")),
        holds("window.left"),
        CONTEXT,
        NEVER,
        "Playwright",
    ),
    Crossing(
        "context.add_init_script",
        call(lambda page: page.context.add_init_script("window.left = 1")),
        holds("window.left"),
        CONTEXT,
        CONTEXT,
        "Playwright",
    ),
    Crossing(
        "page.expose_function",
        call(lambda page: page.expose_function("left", lambda: 1)),  # pyright: ignore[reportUnknownMemberType] Playwright leaves the callback open
        holds("window.left"),
        CONTEXT,
        NEVER,
        "Playwright",
    ),
    Crossing(
        "context.expose_function",
        call(lambda page: page.context.expose_function("left", lambda: 1)),  # pyright: ignore[reportUnknownMemberType] Playwright leaves the callback open
        holds("window.left"),
        CONTEXT,
        CONTEXT,
        "Playwright",
    ),
    Crossing("listeners on the page", listen, is_heard, CONTEXT, NEVER, "Playwright"),
    Crossing("listeners on the context", listen_context, is_heard, CONTEXT, CONTEXT, "Playwright"),
    Crossing("downloaded files", download, is_file, CONTEXT, ("yes", "yes", "yes"), "disk"),
    Crossing("popups", pop_up, sees_others, NEVER, CONTEXT, "context"),
    Crossing("other pages", open_page, sees_others, NEVER, CONTEXT, "context"),
    Crossing("window.opener", pop_up, has_opener, NEVER, NEVER, "page"),
    Crossing("window.name", script("window.name = 'left'"), holds("window.name === 'left'"), CONTEXT, NEVER, "tab"),
    Crossing("history", visit, goes_back, CONTEXT, NEVER, "tab"),
    Crossing(
        "document",
        script("document.title = 'left'"),
        holds_at_once("document.title === 'left'"),
        CONTEXT,
        NEVER,
        "until it navigates",
    ),
    Crossing("globals", script("window.left = 1"), holds_at_once("window.left"), CONTEXT, NEVER, "until it navigates"),
    Crossing(
        "timers",
        script("{ window.ticks = 1; setInterval(() => ++window.ticks) }"),
        holds_at_once("window.ticks"),
        CONTEXT,
        NEVER,
        "until it navigates",
    ),
    Crossing("dialogs", open_dialog, is_blocked, NEVER, NEVER, "page"),
    Crossing("tracing", trace, is_traced, CONTEXT, CONTEXT, "Playwright"),
    Crossing("clipboard", copy, paste, ("yes", "yes", "yes"), ("yes", "yes", "yes"), "browser"),
    Crossing("BroadcastChannel", script(HEAR), holds_there(SPEAK), CONTEXT, SHARED, "origin"),
    Crossing("SharedWorker", script(WORKER), holds_there(f"{WORKER}.then(n => n > 1)"), CONTEXT, SHARED, "origin"),
]


@asynccontextmanager
async def lent(
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
    async with lent(pool, mode, scope) as lease:
        left = await crossing.leave(lease.page, url)
        if mode == "session":
            state = await lease.storage_state()
    async with lent(pool, mode, scope, state) as lease:
        return await crossing.find(lease.page, url, left)


async def crosses_beside(pool: BrowserPool, url: str, crossing: Crossing, mode: Mode) -> bool:
    scope = str(uuid4())
    async with lent(pool, mode, scope) as one, lent(pool, mode, scope) as other:
        left = await crossing.leave(one.page, url)
        return await crossing.find(other.page, url, left)


async def wrong_cells(crosses: Callable[[Crossing], Awaitable[bool]], cell: Callable[[Crossing], str]) -> list[str]:
    """What crosses otherwise than the table says; all are tried, some at a time."""
    rest, wrong = iter(CROSSINGS), list[str]()

    async def judge() -> None:
        for crossing in rest:
            try:
                async with asyncio.timeout(30):
                    found = await crosses(crossing)
            except (PlaywrightError, TimeoutError) as error:
                wrong.append(f"{crossing.name}: {error!r}")
            else:
                if found != (cell(crossing) != "no"):
                    wrong.append(f"{crossing.name}: {'crosses' if found else 'does not cross'}")

    async with asyncio.TaskGroup() as judging:
        for _ in range(AT_ONCE):
            judging.create_task(judge())
    return wrong


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next job always comes before a page was idle for long."""
    monkeypatch.setattr(shared, "RESET_IDLE_S", 3600.0)


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("mode", MODES)
async def test_what_crosses_to_a_job_that_follows_at_once(lender: BrowserPool, trusted: Site, mode: Mode) -> None:
    assert not await wrong_cells(
        lambda crossing: crosses_later(lender, trusted.url, crossing, mode),
        lambda crossing: crossing.later[MODES.index(mode)],
    )


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("mode", MODES)
async def test_what_crosses_to_a_job_beside(lender: BrowserPool, trusted: Site, mode: Mode) -> None:
    assert not await wrong_cells(
        lambda crossing: crosses_beside(lender, trusted.url, crossing, mode),
        lambda crossing: crossing.beside[MODES.index(mode)],
    )


@pytest_asyncio.fixture(loop_scope="module")
async def tended() -> Callable[[], bool]:
    """Whether all that was used since the test began is emptied."""
    before = asyncio.all_tasks()
    return lambda: all(task.get_name() != TEND for task in asyncio.all_tasks() - before)


async def test_what_stays_idle_is_emptied_and_set_back(
    trusted: Site, tended: Callable[[], bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared, "RESET_IDLE_S", 0.05)
    async with BrowserPool(2, warm=0) as pool:
        async with lent(pool, "shared", "a") as lease:
            page, context = lease.page, lease.context
            await page.goto(trusted.url)
            await page.evaluate("window.left = 1")
            await page.set_viewport_size({"width": 333, "height": 333})
            await page.emulate_media(media="print", color_scheme="dark")
            await page.set_extra_http_headers(HEADERS)
            await context.set_extra_http_headers(HEADERS)
            await context.grant_permissions(["geolocation"])
            await context.set_offline(True)
        await until(tended)
        assert page.url == "about:blank"
        async with lent(pool, "shared", "a") as lease:
            assert lease.page is page
            assert not await has_header(page, trusted.url, None)
            seen = "[innerWidth, matchMedia('print').matches, matchMedia('(prefers-color-scheme: dark)').matches, window.left]"
            assert await page.evaluate(seen) == [1280, False, False, None]
            asked = "navigator.permissions.query({name: 'geolocation'}).then(answer => answer.state)"
            assert await page.evaluate(asked) != "granted"


async def test_a_page_that_is_being_emptied_is_not_lent_and_closed_if_that_fails(
    trusted: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared, "RESET_IDLE_S", 0.05)
    monkeypatch.setattr(shared, "BLANK_SCRIPT", "() => { document.title = 'leaving'; return new Promise(() => {}) }")
    async with BrowserPool(2, warm=0) as pool:
        async with lent(pool, "shared", "a") as lease:
            page = lease.page
            await page.goto(trusted.url)
        async with asyncio.timeout(20):
            await page.wait_for_function("document.title === 'leaving'")
        async with lent(pool, "shared", "a") as lease:
            assert lease.page is not page
            await until(page.is_closed)
        assert pool.stats().launches == 1


async def test_a_pool_closes_while_pages_are_idle(trusted: Site, tended: Callable[[], bool]) -> None:
    async with BrowserPool(2, warm=0) as pool:
        async with lent(pool, "shared", "a") as lease:
            await lease.page.goto(trusted.url)
        assert not tended()
    assert tended()


async def test_a_page_that_never_lets_go_is_closed_and_costs_no_browser(lender: BrowserPool, trusted: Site) -> None:
    scope, launches = str(uuid4()), lender.stats().launches
    async with lent(lender, "shared", scope) as lease:
        busy = lease.page
        await busy.goto(trusted.url)
        await busy.evaluate("void setTimeout(() => { for (;;); })")
    await settled(lender)
    assert busy.is_closed()
    async with lent(lender, "shared", scope) as lease:
        assert await lease.page.evaluate("6 * 7") == 42
    assert lender.stats().launches == launches


async def test_a_page_that_is_ready_has_no_trace_of_any_job(trusted: Site) -> None:
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


def row(crossing: Crossing) -> str:
    return "| " + " | ".join((crossing.name, *crossing.later, *crossing.beside, crossing.why)) + " |"


async def test_the_documentation_has_this_table() -> None:
    table = [line for line in DOCS.read_text().splitlines() if line.startswith("| ")]
    assert table[-len(CROSSINGS) :] == [row(crossing) for crossing in CROSSINGS]
