"""Contexts that jobs of one name share, for bulk work of jobs that trust each other: pages are reused."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress

import structlog
from playwright.async_api import BrowserContext, Frame, Page
from playwright.async_api import Error as PlaywrightError

from cplane.browser.engine.instance import CLOSE_TIMEOUT_S, Instance
from cplane.browser.lease import PageLease
from cplane.browser.pool.tasks import PoolTasks
from cplane.errors import BrowserError, BrowserGone
from cplane.jobs.page_options import PageOptions, Viewport

RESET_IDLE_S = 1.0
"""How long a page, or the whole context, is idle before it is reset; a job that comes sooner gets it unchanged."""
RESPONSE_TIMEOUT_S = CLOSE_TIMEOUT_S / 2
"""The page of a job that failed is not reused if it does not respond within this time."""
CHECK_DELAY_S = 0.5
"""A reused page that still shows the previous document after this time is checked: its job may wait for a hung page."""
HANG_TIMEOUT_S = 5.0
"""The page hangs if it does not respond to that check within this time."""
DEFAULT_VIEWPORT = Viewport(width=1280, height=720)
"""Playwright's default."""
BLANK_SCRIPT = "() => location.replace('about:blank')"
"""Ends what runs in the page. The page navigates itself: the browser would need another process for it, twice."""
MAINTENANCE_TASK = "maintain shared pages"

log = structlog.get_logger("cplane")


class SharedContext:
    """One context in one browser, with its leased and its idle pages.

    The next job gets a page unchanged, so that it pays for nothing else. A task of the pool resets the pages that stay
    idle. The docs on isolation list what is reset, and what cannot be.

    Args:
        instance: the browser.
        root: the lease that keeps the context open; its page is the first that is leased.
        options: of the context.
        tasks: runs the checks and the maintenance.
    """

    def __init__(self, instance: Instance, root: PageLease, options: PageOptions, tasks: PoolTasks) -> None:
        self.instance = instance
        self.options = options
        self.root = root
        self.uses = 0
        """Pages leased so far."""
        self._tasks = tasks
        self._idle: list[Page] = []
        self._leases: set[PageLease] = set()
        self._crashed: set[Page] = set()
        self._hung: set[Page] = set()
        """Pages that do not respond."""
        self._navigations: Counter[Page] = Counter()
        """How often each page navigated to another document."""
        self._checking: set[Page] = set()
        """Pages that are not leased again before it is known whether they respond."""
        self._check_timers: dict[PageLease, asyncio.TimerHandle] = {}
        """Each starts the check of a leased page."""
        self._used: dict[Page | BrowserContext, float] = {}
        """What jobs used that is idle now, and since when; the oldest first."""
        self._resetting: Page | None = None
        """The page that is being reset; it is not among the idle ones in that time."""
        self._maintenance: asyncio.Task[None] | None = None
        self._lock = asyncio.Lock()
        """Held while a page is leased, and while the context is reset, which disturbs the jobs that use it."""
        root.unwatch()  # a page that crashes is lost for its job only
        root.broken.add_done_callback(lambda _: self._lose())
        self._add(root.page)

    @property
    def usable(self) -> bool:
        """Whether it leases pages."""
        return self.instance.usable and not self.root.lost and not self.root.released

    @property
    def busy(self) -> bool:
        """Whether one of its pages is leased."""
        return bool(self._leases)

    async def acquire(
        self,
        on_release: Callable[[PageLease], asyncio.Task[None]],
        yield_slot: Callable[[PageLease], bool] | None = None,
    ) -> PageLease:
        """Acquire a page that was used before, or a new one.

        Args:
            on_release: called when the lease is released; returns the task that calls `return_page`.
            yield_slot: releases the slot of a lease whose page stays in use.

        Raises:
            BrowserGone: the context was closed, or its browser ended.
            PoolTimeout: the browser did not open a page in time.
        """
        self.uses += 1
        async with self._lock:
            if not self.usable:
                raise BrowserGone("the shared context was closed")
            self._idle = [page for page in self._idle if self._is_sound(page)]
            if not self._idle:
                self._add(await self.instance.another_page(self.root.context))
            page = self._idle.pop()
            used_before = self._used.pop(page, None) is not None
            self._used.pop(self.root.context, None)
            lease = PageLease(
                self.root.context,
                page,
                check_browser=self.instance.check_now,
                on_release=on_release,
                yield_slot=yield_slot,
                gate=self.root.gate,
                shared=True,
            )
            self._leases.add(lease)
            if used_before:
                self._schedule_check(lease)
        if self.root.lost:
            self._lose()
        return lease

    async def return_page(self, lease: PageLease) -> None:
        """Keep a released page for the next job; close the pages it opened, and itself if it cannot be reused.

        After a job that ended well the page is available immediately; `_schedule_check` covers the next job.
        """
        lease.unwatch()
        page, strays = lease.page, self._strays(lease)
        self._leases.discard(lease)
        if (timer := self._check_timers.pop(lease, None)) is not None:
            timer.cancel()
        try:
            if self.instance.gone.done():
                return
            self._checking.add(page)
            if reusable := await self._is_reusable(lease):
                self._put(page)
            await self._close([*lease.popups, *strays, *([] if reusable else [page])])
        finally:
            self._checking.discard(page)
            self._start_maintenance()

    def close(self) -> None:
        """Close the context, and stop the maintenance of its idle pages."""
        if self._maintenance is not None:
            self._maintenance.cancel()
        self.root.release()

    def _add(self, page: Page) -> None:
        page.on("crash", self._on_crash)
        page.on("close", self._on_close)
        page.on("framenavigated", self._on_navigated)
        self._idle.append(page)

    def _on_crash(self, page: Page) -> None:
        self._crashed.add(page)

    def _on_navigated(self, frame: Frame) -> None:
        if frame.parent_frame is None:
            self._navigations[frame.page] += 1

    def _on_close(self, page: Page) -> None:
        del self._navigations[page]
        self._crashed.discard(page)
        self._hung.discard(page)

    def _is_sound(self, page: Page) -> bool:
        return page not in self._crashed and page not in self._hung and not page.is_closed()

    async def _is_reusable(self, lease: PageLease) -> bool:
        """Whether a page can be reused. After a job that ended well and left no routes, the browser is not asked."""
        page = lease.page
        reusable = self.usable and not lease.lost and self._is_sound(page)
        if reusable and _has_routes(page):
            reusable = await self._remove_routes(page)
        if reusable and not lease.ended_well:
            reusable = await self._responds(page)
        return reusable and self._is_sound(page)

    def _put(self, page: Page) -> None:
        self._checking.discard(page)
        self._idle.append(page)
        self._used[page] = asyncio.get_running_loop().time()

    def _schedule_check(self, lease: PageLease) -> None:
        """Check in 0.5 s whether a reused page responds, unless it has navigated to another document by then."""
        navigations = self._navigations[lease.page]

        def check() -> None:
            del self._check_timers[lease]
            if self._navigations[lease.page] == navigations and self.usable:
                self._tasks.spawn(self._check(lease, navigations), MAINTENANCE_TASK)

        self._check_timers[lease] = asyncio.get_running_loop().call_later(CHECK_DELAY_S, check)

    async def _check(self, lease: PageLease, navigations: int) -> None:
        """Take a page away that hangs since the previous job; it is closed when it is released."""
        page = lease.page
        if (
            await self._responds(page, HANG_TIMEOUT_S)
            or self._navigations[page] != navigations
            or not self._is_sound(page)
        ):
            return
        self._hung.add(page)
        lease.lose(BrowserGone("the page was left busy by the previous job"))

    async def _responds(self, page: Page, within_s: float = RESPONSE_TIMEOUT_S) -> bool:
        """Whether a page responds within some seconds."""
        try:
            async with asyncio.timeout(within_s):
                if (session := await self.instance.page_session(page)) is None:
                    await page.title()
                else:  # Playwright's `evaluate` would first inject its helper scripts into the page
                    await session.send("Runtime.evaluate", {"expression": "1"})  # pyright: ignore[reportUnknownMemberType]
                    await session.detach()
        except TimeoutError:
            return False
        except PlaywrightError:  # it was closed, or navigated to another document
            return self._is_sound(page)
        return True

    async def _remove_routes(self, page: Page) -> bool:
        """Remove the page's routes; returns whether that succeeded."""
        try:
            async with asyncio.timeout(RESPONSE_TIMEOUT_S):
                await page.unroute_all()
        except (TimeoutError, PlaywrightError):
            return False
        return True

    def _strays(self, last: PageLease) -> list[Page]:
        """Pages that jobs opened in the context in addition to their own; empty while other jobs may still use them."""
        if self._leases != {last} or self._lock.locked():
            return []
        known = {last.page, self._resetting, *self._checking, *self._idle, *last.popups}
        return [page for page in self.root.context.pages if page not in known]

    async def _close(self, pages: Iterable[Page]) -> bool:
        """Close pages; returns whether that succeeded. If it does not, the browser takes no more pages."""
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                for page in pages:
                    with suppress(PlaywrightError):
                        await page.close()
        except TimeoutError:
            self.instance.retire(f"a page did not close within {CLOSE_TIMEOUT_S:g} s")
            return False
        return True

    # maintenance of what is idle

    def _start_maintenance(self) -> None:
        """Start the maintenance, unless it runs or there is nothing to reset."""
        if not self._leases:
            self._used[self.root.context] = asyncio.get_running_loop().time()
        if self.usable and self._used and (self._maintenance is None or self._maintenance.done()):
            self._maintenance = self._tasks.spawn(self._maintain(), MAINTENANCE_TASK)

    async def _maintain(self) -> None:
        """Reset each page and the context once it was idle for a second; return when nothing is left to reset."""
        while self.usable and self._used:
            oldest, since = next(iter(self._used.items()))
            left_s = since + RESET_IDLE_S - asyncio.get_running_loop().time()
            if left_s > 0:
                await asyncio.sleep(left_s)
                continue
            del self._used[oldest]
            if isinstance(oldest, Page):
                await self._reset_page(oldest)
            else:
                await self._reset_context()

    async def _reset_page(self, page: Page) -> None:
        """Leave the site and undo what jobs set for the page; close the page if that fails."""
        if page not in self._idle:
            return
        self._idle.remove(page)
        if not self._is_sound(page):
            return
        self._resetting = page
        try:
            async with asyncio.timeout(RESPONSE_TIMEOUT_S):
                await asyncio.gather(_leave_site(page), self._reset_page_options(page))
            self._idle.insert(0, page)
        except (TimeoutError, PlaywrightError):
            await self._close([page])
        finally:
            self._resetting = None

    async def _reset_page_options(self, page: Page) -> None:
        size = self.options.viewport or DEFAULT_VIEWPORT
        await page.set_extra_http_headers({})
        await page.emulate_media(
            media="null",
            color_scheme=self.options.color_scheme or "light",
            reduced_motion=self.options.reduced_motion or "no-preference",
            forced_colors="none",
            contrast="no-preference",
        )
        if page.viewport_size != size.model_dump():
            await page.set_viewport_size({"width": size.width, "height": size.height})

    async def _reset_context(self) -> None:
        """Undo what jobs set for the whole context; close the context if that fails."""
        context = self.root.context
        async with self._lock:
            if self._leases:
                return
            try:
                async with asyncio.timeout(CLOSE_TIMEOUT_S):
                    await asyncio.gather(
                        context.clear_permissions(),
                        context.set_geolocation(None),
                        context.set_offline(False),
                        context.set_extra_http_headers(self.options.extra_http_headers or {}),
                        context.unroute_all(),
                    )
                    if self.options.permissions:
                        await context.grant_permissions(self.options.permissions)
            except (TimeoutError, PlaywrightError) as error:
                if not self.root.lost:
                    log.warning("shared_context_not_reset", error=type(error).__name__)
                self.root.release()

    def _lose(self) -> None:
        if self._maintenance is not None:
            self._maintenance.cancel()
        loss = self.root.loss
        for lease in self._leases:
            if isinstance(loss, BrowserError):
                lease.lose(loss)


def _has_routes(page: Page) -> bool:
    """Whether a job may have left routes. Playwright has no public API for this; the attribute saves a round trip."""
    return bool(getattr(getattr(page, "_impl_obj", None), "_routes", True))


async def _leave_site(page: Page) -> None:
    """Navigate to an empty page; raises Playwright's TimeoutError if the site's page prevents it."""
    main = page.main_frame
    async with page.expect_event("framenavigated", lambda frame: frame == main, timeout=RESPONSE_TIMEOUT_S * 800):
        await page.evaluate(BLANK_SCRIPT)
