"""The browser pool: a fixed number of isolated pages of a few supervised browsers, opened ahead of use."""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from playwright.async_api import Page

from cplane.browser.engine.fleet import BrowserSupervisor
from cplane.browser.engine.instance import Instance, Limits
from cplane.browser.engine.launch import BrowserSource
from cplane.browser.lease import PageLease
from cplane.browser.pool.opener import PageOpener, pool_closed, release_unclaimed
from cplane.browser.pool.page_slots import PageSlots
from cplane.browser.pool.sharing import SharedContexts
from cplane.browser.pool.stats import PoolStats
from cplane.browser.pool.tasks import PoolTasks
from cplane.browser.pool.warmer import PageWarmer
from cplane.egress import EgressProxy
from cplane.errors import BrowserGone, PoolTimeout, UsageError
from cplane.jobs.page_options import PageOptions, Trace

OPEN_ATTEMPTS = 3
"""Attempts to open one page; a further one is made only if the browser ended during the one before."""


@dataclass(frozen=True, slots=True)
class PageRequest:
    """What one caller of `acquire_page` asks for."""

    options: PageOptions
    scope: str
    storage_state: Mapping[str, Any] | None
    deadline: float
    """When to stop waiting for a slot and for a browser, in the event loop's time."""

    @property
    def can_be_warm(self) -> bool:
        """Whether a page that was opened ahead of use fits."""
        return self.options.mode == "fresh" and self.storage_state is None


class BrowserPool:
    """Up to `max_pages` pages concurrently, each in its own fresh context; callers that wait are served in order.

    `async with BrowserPool() as pool:` launches the browsers. The pool replaces a browser that dies; its pages are lost
    (`BrowserGone`). A browser that reached a limit is replaced before it stops taking pages.

    Args:
        max_pages: maximum number of pages that are leased concurrently, 1 or more.
        browsers: number of browsers that the pages are spread over, from 1 to `max_pages`.
        warm: number of warm pages, in addition to those in use, with the options that are requested most;
            default: half of `max_pages`, rounded up.
        executable: path of the browser's binary; default: the one that `find_executable` finds.
        sandbox: whether Chromium's sandbox is on; default: on, unless the process runs as root.
        source: where browsers come from, if `executable` and `sandbox` do not say enough; it takes their place.
        limits: when a browser is replaced.
        egress: restricts which addresses pages can reach; default: nothing does. The caller keeps it open as long as
            the pool is.
        trace: what is recorded of pages whose options do not say: `on` with snapshots of the page, `on-failure`
            without, `off` nothing.
        wait_s: maximum number of seconds that `acquire_page` waits for a slot and a browser, more than 0.

    Raises:
        UsageError: a number is out of its bounds, or `source` is on another machine and cannot use `egress`.

    Example:
        ```python
        import asyncio

        from cplane import BrowserPool


        async def main() -> None:
            async with BrowserPool(max_pages=1) as pool:
                async with pool.page() as page:
                    await page.set_content("<title>Hello</title>")
                    print(await page.title())  # Hello


        asyncio.run(main())
        ```
    """

    def __init__(
        self,
        max_pages: int = 4,
        *,
        browsers: int = 1,
        warm: int | None = None,
        executable: Path | None = None,
        sandbox: bool | None = None,
        source: BrowserSource | None = None,
        limits: Limits | None = None,
        egress: EgressProxy | None = None,
        trace: Trace = "off",
        wait_s: float = 30.0,
    ) -> None:
        if max_pages < 1 or wait_s <= 0:
            raise UsageError(f"a pool has 1 or more pages and waits more than 0 s, not {max_pages} and {wait_s}")
        if not 1 <= browsers <= max_pages or (warm is not None and warm < 0):
            raise UsageError(f"{max_pages} pages need 1 to {max_pages} browsers and 0 or more warm pages")
        source = source or BrowserSource(executable=executable, sandbox=sandbox)
        source = source if egress is None else source.with_egress()
        limits = limits or Limits()
        warm = (max_pages + 1) // 2 if warm is None else warm
        changed = self._changed

        self.wait_s = wait_s
        self._trace: Trace = trace
        self._keeps_trace_files = source.keeps_trace_files
        self._entered = False
        self._leased = self._leased_warm = 0
        self._tasks = tasks = PoolTasks()
        self._supervisor = BrowserSupervisor(source, browsers, limits, on_change=changed, on_retire=self._retire)
        self._slots = slots = PageSlots(max_pages, self._supervisor)
        self._opener = opener = PageOpener(
            self._supervisor,
            slots,
            tasks,
            egress=egress,
            wait_s=wait_s,
            on_change=changed,
            on_close=self._page_closed,
        )
        self._warmer = PageWarmer(warm, opener, slots, tasks, wait_s=wait_s, on_change=changed)
        self._warmer.expect(self._with_trace(PageOptions()))
        self._shared = SharedContexts(opener, slots, tasks, max_uses=limits.pages, on_change=changed)

    async def __aenter__(self) -> Self:
        """Launch the first browser and return once it runs; the others follow.

        Raises:
            BrowserNotFound: there is no browser.
            BrowserGone: the browser does not start.
            UsageError: the pool was opened before.
        """
        if self._entered:
            raise UsageError("a pool is opened once", hint="make another BrowserPool")
        self._entered = True
        try:
            await self._supervisor.start()
        except BaseException:
            await self._supervisor.close()
            raise
        self._slots.is_open = True
        self._changed()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close everything; pages that are still leased are lost. A cancellation does not interrupt it."""
        self._slots.close(pool_closed)
        closing = asyncio.get_running_loop().create_task(self._close(), name="close browser pool")
        try:
            await asyncio.shield(closing)
        except asyncio.CancelledError:
            await asyncio.wait([closing])  # each of its steps has a deadline
            raise

    async def _close(self) -> None:
        self._warmer.resume()
        self._warmer.clear()
        self._shared.clear()
        await self._supervisor.close()
        await self._tasks.close()

    @property
    def browsers(self) -> list[Instance]:
        """The browsers that take new pages, those with the fewest pages first."""
        return self._supervisor.browsers

    @property
    def free(self) -> int:
        """Pages that can be acquired now; 0 while there is no browser."""
        return self._slots.free

    async def wait_free(self) -> None:
        """Wait until `free` is at least 1, or the pool is closed."""
        await self._slots.wait_free()

    def expect(self, options: PageOptions) -> None:
        """Keep pages with these options warm, as if they had been requested. Isolation other than "fresh" has none."""
        if options.mode == "fresh":
            self._warmer.expect(self._with_trace(options))
            self._changed()

    def stats(self) -> PoolStats:
        """Return the state of the pool as it is now."""
        browsers = self.browsers
        return PoolStats(
            max_pages=self._slots.size,
            free=self.free,
            open=self._slots.used,
            returning=self._shared.returning,
            warm=self._warmer.ready,
            waiting=self._slots.waiting,
            browsers=len(browsers),
            launches=self._supervisor.launches,
            lost=self._supervisor.lost,
            retired=self._supervisor.retired,
            leased=self._leased,
            leased_warm=self._leased_warm,
            browser_version=browsers[0].version if browsers else None,
        )

    @asynccontextmanager
    async def page(
        self, options: PageOptions | None = None, *, scope: str = "", storage_state: Mapping[str, Any] | None = None
    ) -> AsyncGenerator[Page]:
        """Lease a page for the length of a block.

        If the page is lost, the block is interrupted.

        Args:
            options: how the page is set up; default: Chromium's defaults, in a fresh context.
            scope: for isolation "shared": callers with the same scope and the same options share a context.
            storage_state: cookies and storage the context begins with, in the format of Playwright's
                `context.storage_state()`.

        Yields:
            Playwright's `Page`.

        Raises:
            PoolTimeout: no page became free, or none could be opened, within `wait_s`.
            BrowserGone: the pool is closed, or the browser ended during the block.
            PageCrashed: the page's renderer died during the block.
            InvalidArguments: the browser refuses the options.

        Example:
            ```python
            from cplane import BrowserPool, PageOptions

            options = PageOptions(locale="de-DE", timezone="Europe/Berlin")

            async with BrowserPool(max_pages=2) as pool, pool.page(options) as page:
                await page.goto("https://example.com/")
                assert await page.evaluate("navigator.language") == "de-DE"
                print(await page.title())
            ```
        """
        async with await self.acquire_page(options, scope=scope, storage_state=storage_state) as page:
            yield page

    async def acquire_page(
        self, options: PageOptions | None = None, *, scope: str = "", storage_state: Mapping[str, Any] | None = None
    ) -> PageLease:
        """Acquire a page; the caller releases it. If the call is cancelled, no slot or page stays behind.

        Args:
            options: how the page is set up; default: Chromium's defaults, in a fresh context.
            scope: for isolation "shared": callers with the same scope and the same options share a context.
            storage_state: cookies and storage the context begins with, in the format of Playwright's
                `context.storage_state()`.

        Returns:
            The lease of the page, to be released once with `release()` or `async with`.

        Raises:
            PoolTimeout: no page became free, or none could be opened, within `wait_s`.
            BrowserGone: the pool is closed, or three browsers in a row ended while they opened the page.
            InvalidArguments: the browser refuses the options.
        """
        if not self._slots.is_open:
            raise pool_closed()
        options = self._with_trace(options or PageOptions())
        deadline = asyncio.get_running_loop().time() + self.wait_s
        request = PageRequest(options, scope, storage_state, deadline)
        await self._acquire_slot(request)
        return self._take_warm(request) or await self._wait_for_page(request)

    async def _acquire_slot(self, request: PageRequest) -> None:
        try:
            async with asyncio.timeout_at(request.deadline):
                await self._slots.acquire()
        except TimeoutError:
            message = f"none of {self._slots.size} pages became free within {self.wait_s:g} s"
            raise PoolTimeout(message, hint="CPLANE_BROWSER_PAGES and CPLANE_BROWSER_WAIT_S set both") from None

    def _take_warm(self, request: PageRequest) -> PageLease | None:
        lease = self._warmer.take(request.options) if request.can_be_warm else None
        return None if lease is None else self._lease(lease, warm=True)

    async def _wait_for_page(self, request: PageRequest) -> PageLease:
        """Open a page in a task of the pool: a caller that is cancelled does not interrupt the browser."""
        opening = self._tasks.spawn(self._provide(request), "provide page")
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if opening.cancelled() and not (task and task.cancelling()):
                raise BrowserGone("the pool was closed while it opened a page") from None
            opening.add_done_callback(release_unclaimed)
            raise

    async def _provide(self, request: PageRequest) -> PageLease:
        """Open a page for a caller that holds a slot; use the next browser if one ends while it opens the page."""
        try:
            for attempts_left in reversed(range(OPEN_ATTEMPTS)):
                try:
                    return self._lease(await self._open(request))
                except BrowserGone:
                    if not attempts_left:
                        raise
            raise AssertionError
        except BaseException:
            self._slots.release()
            self._changed()
            raise

    async def _open(self, request: PageRequest) -> PageLease:
        if request.options.mode == "shared":
            return await self._shared.acquire(request.options, request.deadline, request.scope)
        if request.can_be_warm and (lease := await self._warmer.take_opening(request.options)) is not None:
            return lease
        return await self._opener.open(request.options, request.deadline, request.storage_state)

    def _lease(self, lease: PageLease, *, warm: bool = False) -> PageLease:
        """Hand the caller's slot to the lease."""
        lease.holds_slot = True
        self._leased += 1
        self._leased_warm += warm
        self._warmer.pause()
        self._changed()
        return lease

    def _retire(self, browser: Instance) -> None:
        """Close what a browser that takes no more pages has warm or shared."""
        self._shared.retire(browser)
        self._warmer.retire(browser)

    def _page_closed(self) -> None:
        self._warmer.resume()

    def _changed(self) -> None:
        """Open or close warm pages, and wake callers that wait, after a browser or a page was opened or closed."""
        self._warmer.restock()
        self._slots.notify()

    def _with_trace(self, options: PageOptions) -> PageOptions:
        """Decide what is recorded of a page.

        A Playwright server keeps the files of all traces. There, only what is likely to be needed is recorded.
        """
        trace = options.trace or self._trace
        if trace == "on-failure" and self._keeps_trace_files:
            trace = "off"
        return options if trace == (options.trace or "off") else options.model_copy(update={"trace": trace})
