"""The pool: a fixed number of isolated pages from one watched browser."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import structlog
from playwright.async_api import Page

from cplane.browser.chromium import CLOSE_S, Chromium, sandboxed
from cplane.browser.executable import find_executable
from cplane.browser.lease import PageLease
from cplane.browser.options import PageOptions
from cplane.browser.slots import Slots
from cplane.errors import BrowserGone, PoolTimeout, UsageError

T = TypeVar("T")

RELAUNCH_S = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
"""Pauses before a browser is launched again; the last one repeats."""
STEADY_S = 30.0
"""A browser that lived so long was a good one: the next pause starts from the beginning."""

OPEN_TRIES = 3
"""Browsers that may die one after the other while one page is opened."""
KEEPER = "keep a browser"
DISCARDER = "discard browser"

log = structlog.get_logger("cplane")


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolStats:
    """The pool at one moment."""

    max_pages: int
    free: int
    """Pages that can be acquired now."""
    open: int
    """Slots in use: pages that are lent, being opened or being closed."""
    waiting: int
    launches: int
    """Browsers launched so far."""
    lost: int
    """Browsers that ended by themselves."""
    browser_version: str | None
    """None while there is no browser."""


class BrowserPool:
    """At most `max_pages` pages at once, each in a fresh context of its own; who waits is served in order.

    `async with BrowserPool() as pool:` launches the browser. One that dies is replaced by the pool itself; the pages it
    took along are lost (`BrowserGone`).

    Args:
        max_pages: pages at once.
        executable: the browser's binary; default: looked up.
        sandbox: Chromium's sandbox; default: on unless root.
        wait_s: seconds `acquire_page` waits for a page at most.
    """

    def __init__(
        self, max_pages: int = 4, *, executable: Path | None = None, sandbox: bool | None = None, wait_s: float = 30.0
    ) -> None:
        if max_pages < 1 or wait_s <= 0:
            raise UsageError(f"a pool has 1 or more pages and waits more than 0 s, not {max_pages} and {wait_s}")
        self.wait_s = wait_s
        self._configured = executable
        self._sandbox = sandboxed(sandbox)
        self._slots = Slots(max_pages)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._browsers: set[Chromium] = set()
        self.browser: Chromium | None = None
        """The browser that new pages come from."""
        self._trouble: Exception | None = None
        self._up = asyncio.Event()
        self._has_free = asyncio.Event()
        self._open = False
        self._launches = 0
        self._lost = 0

    async def __aenter__(self) -> Self:
        """Launch the browser.

        Raises:
            BrowserNotFound: there is none.
            BrowserGone: it does not start.
        """
        if self._open or self._launches:
            raise UsageError("a pool is opened once", hint="make another BrowserPool")
        first = await self._launch()
        self._open = True
        self._tell()
        self._spawn(self._keep(first), KEEPER)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close everything; pages that are still lent are lost. It is finished even if it is cancelled."""
        self._open = False
        closing = asyncio.get_running_loop().create_task(self._close(), name="close browser pool")
        try:
            await asyncio.shield(closing)
        except asyncio.CancelledError:
            await asyncio.wait([closing])  # every step of it has its deadline
            raise

    @property
    def free(self) -> int:
        """Pages that could be acquired right now; 0 while there is no browser."""
        return self._slots.free if self._open and self.browser is not None else 0

    async def wait_free(self) -> None:
        """Wait until `free` is at least 1; also answers when the pool is closed."""
        await self._has_free.wait()

    def stats(self) -> PoolStats:
        """The pool as it is now."""
        return PoolStats(
            max_pages=self._slots.size,
            free=self.free,
            open=self._slots.used,
            waiting=self._slots.waiting,
            launches=self._launches,
            lost=self._lost,
            browser_version=self.browser.version if self.browser else None,
        )

    @asynccontextmanager
    async def page(self, options: PageOptions | None = None) -> AsyncGenerator[Page]:
        """A page for the length of a block; its loss interrupts the block with `PageCrashed` or `BrowserGone`.

        Raises:
            PoolTimeout: none became free, or none could be opened, in time.
            BrowserGone: the pool is closed.
            InvalidArguments: the browser refuses the options.
        """
        async with await self.acquire_page(options) as page:
            yield page

    async def acquire_page(self, options: PageOptions | None = None) -> PageLease:
        """A page until it is released; errors as of `page`. Cancelled at any moment, it leaves nothing behind."""
        self._check_open()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.wait_s
        try:
            async with asyncio.timeout_at(deadline):
                await self._take_slot()
        except TimeoutError:
            message = f"none of {self._slots.size} pages became free within {self.wait_s:g} s"
            raise PoolTimeout(message, hint="CPLANE_BROWSER_PAGES and CPLANE_BROWSER_WAIT_S set both") from None
        opening = self._spawn(self._open_page(options or PageOptions(), deadline), "open page")
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if opening.cancelled() and not (task and task.cancelling()):
                raise BrowserGone("the pool was closed while it opened a page") from None
            opening.add_done_callback(_release_unclaimed)
            raise

    async def _take_slot(self) -> None:
        try:
            await self._slots.acquire()
        finally:
            self._tell()

    def _return_slot(self) -> None:
        self._slots.release()
        self._tell()

    async def _open_page(self, options: PageOptions, deadline: float) -> PageLease:
        """With a slot in hand: a page, from the next browser if one dies meanwhile."""
        try:
            for _ in range(OPEN_TRIES - 1):
                with contextlib.suppress(BrowserGone):
                    return await self._lend(options, deadline)
            return await self._lend(options, deadline)
        except BaseException:
            self._return_slot()
            raise

    async def _lend(self, options: PageOptions, deadline: float) -> PageLease:
        browser = await self._wait_browser(deadline)
        try:
            return await browser.lend(options, partial(self._take_back, browser))
        finally:
            if browser.ended.done():
                self._drop(browser)

    def _take_back(self, browser: Chromium, lease: PageLease) -> asyncio.Task[None]:
        return self._spawn(self._close_page(browser, lease), "close page")

    async def _close_page(self, browser: Chromium, lease: PageLease) -> None:
        """The slot is free again once the page is closed or was given up."""
        try:
            await browser.take_back(lease)
        finally:
            if browser.ended.done():
                self._drop(browser)
            self._return_slot()

    async def _wait_browser(self, deadline: float) -> Chromium:
        try:
            async with asyncio.timeout_at(deadline):
                while (browser := self.browser) is None:
                    self._check_open()
                    await self._up.wait()
                return browser
        except TimeoutError:
            trouble = self._trouble or "it is being launched"
            raise PoolTimeout(f"there is no browser after {self.wait_s:g} s: {trouble}") from self._trouble

    async def _launch(self) -> Chromium:
        browser = await Chromium.launch(find_executable(self._configured), sandbox=self._sandbox)
        self._browsers.add(browser)
        self.browser = browser
        self._trouble = None
        self._launches += 1
        self._up.set()
        self._tell()
        log.info("browser launched", version=browser.version, launches=self._launches)
        return browser

    async def _keep(self, browser: Chromium) -> None:
        """Whenever the browser ends, launch the next; the old one is closed once its pages are given back."""
        loop = asyncio.get_running_loop()
        short_lives = 0
        while True:
            since = loop.time()
            reason = await browser.ended
            self._drop(browser)
            if browser.gone.done():
                self._lost += 1
                log.warning("browser lost", reason=reason, pages=browser.pages)
            self._spawn(self._discard(browser), DISCARDER)
            if loop.time() - since > STEADY_S:
                short_lives = 0
            browser = await self._relaunch(failures=short_lives)
            short_lives += 1

    async def _relaunch(self, failures: int) -> Chromium:
        """The next browser, after as long a pause as the failures before it ask for. Nothing but cancellation ends it."""
        while True:
            await asyncio.sleep(RELAUNCH_S[min(failures, len(RELAUNCH_S) - 1)])
            try:
                return await self._launch()
            except Exception as error:
                failures += 1
                self._trouble = error
                log.error("browser not launched", error=str(error), failures=failures)

    async def _discard(self, browser: Chromium) -> None:
        await browser.wait_idle()
        await browser.close()
        self._browsers.discard(browser)

    def _drop(self, browser: Chromium) -> None:
        """Take no more pages from this browser."""
        if self.browser is browser:
            self.browser = None
            self._up.clear()
            self._tell()

    async def _close(self) -> None:
        """Send the waiters away, end the browsers and with them the pages, and see every task end."""
        self._slots.dismiss(_closed)
        self._up.set()
        self._tell()
        keepers = [task for task in self._tasks if task.get_name() in {KEEPER, DISCARDER}]
        for task in keepers:
            task.cancel()
        await _ended(keepers)
        await asyncio.gather(*(browser.close() for browser in self._browsers))
        self.browser = None
        rest = list(self._tasks)
        if rest:
            await asyncio.wait(rest, timeout=CLOSE_S)
        for task in rest:
            task.cancel()
        await _ended(rest)

    def _check_open(self) -> None:
        if not self._open:
            raise _closed()

    def _tell(self) -> None:
        """Let `wait_free` know."""
        if self.free or not self._open:
            self._has_free.set()
        else:
            self._has_free.clear()

    def _spawn(self, work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _closed() -> BrowserGone:
    return BrowserGone("the browser pool is closed", hint="use it inside `async with BrowserPool() as pool:`")


async def _ended(tasks: list[asyncio.Task[Any]]) -> None:
    if tasks:
        await asyncio.wait(tasks)


def _release_unclaimed(opening: asyncio.Task[PageLease]) -> None:
    """Who wanted the page was cancelled: take it back."""
    if not opening.cancelled() and opening.exception() is None:
        opening.result().release()
