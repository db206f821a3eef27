"""What jobs may leave behind, and how another job would find it: the rows of the table in the docs on isolation."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from playwright.async_api import Error as PlaywrightError
from playwright.async_api import Page, Route

Leave = Callable[[Page, str], Awaitable[object]]
Find = Callable[[Page, str, Any], Awaitable[bool]]


@dataclass(frozen=True)
class Crossing:
    """Something a job leaves, how another job would find it, and whether it does in fresh, session and shared mode."""

    name: str
    leave: Leave
    find: Find
    later: tuple[str, str, str]
    concurrent: tuple[str, str, str]
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


def holds_without_navigation(code: str) -> Find:
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
    await page.evaluate("path => fetch(path).then(response => response.text())", path)
    return path


async def is_cached(page: Page, url: str, left: str) -> bool:
    await page.goto(url)
    return bool(await page.evaluate("path => fetch(path).then(response => response.text())", left) == "1")


async def has_geolocation(page: Page, url: str, left: object) -> bool:
    await page.goto(url)
    await page.context.grant_permissions(["geolocation"])
    script = "new Promise(done => navigator.geolocation.getCurrentPosition(() => done(true), () => done(false), {timeout: 2000}))"
    return bool(await page.evaluate(script))


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
    requests: list[object] = []

    def record(request: object) -> None:
        requests.append(request)

    page.on("request", record)
    return requests


async def listen_context(page: Page, url: str) -> list[object]:
    requests: list[object] = []

    def record(request: object) -> None:
        requests.append(request)

    page.context.on("request", record)
    return requests


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
        page.on("dialog", lambda _: None)  # and leaves it open
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
    # the page reads them again: only then does the browser have what it set
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
        holds("navigator.permissions.query({name: 'geolocation'}).then(status => status.state === 'granted')"),
        CONTEXT,
        CONTEXT,
        "as left",
    ),
    Crossing(
        "geolocation",
        call(lambda page: page.context.set_geolocation({"latitude": 1, "longitude": 1})),
        has_geolocation,
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
        holds_without_navigation("document.title === 'left'"),
        CONTEXT,
        NEVER,
        "until it navigates",
    ),
    Crossing(
        "globals",
        script("window.left = 1"),
        holds_without_navigation("window.left"),
        CONTEXT,
        NEVER,
        "until it navigates",
    ),
    Crossing(
        "timers",
        script("{ window.ticks = 1; setInterval(() => ++window.ticks) }"),
        holds_without_navigation("window.ticks"),
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


def row(crossing: Crossing) -> str:
    """Return the crossing as a row of the table in the docs."""
    return "| " + " | ".join((crossing.name, *crossing.later, *crossing.concurrent, crossing.why)) + " |"
