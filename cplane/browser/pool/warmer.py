"""Keeps warm pages, off the path of any job: opens those likely to be requested next, and closes the others."""

import asyncio
from collections.abc import Callable

from cplane.browser.engine.instance import Instance
from cplane.browser.lease import PageLease
from cplane.browser.pool.opener import PageOpener, release_unclaimed
from cplane.browser.pool.page_slots import PageSlots
from cplane.browser.pool.stock import WarmPage, WarmPages
from cplane.browser.pool.tasks import PoolTasks
from cplane.errors import InvalidArguments
from cplane.jobs.page_options import PageOptions

PAUSE_S = 0.2
"""How long warming pauses after a page was leased: the processor is left to the job that has just got it."""


class PageWarmer:
    """Opens and closes warm pages.

    Args:
        size: maximum number of warm pages.
        opener: opens them.
        slots: the slots of the pool.
        tasks: runs the opening of pages.
        wait_s: seconds to wait for a browser.
        on_change: called when warm pages have to be checked again.
    """

    def __init__(
        self,
        size: int,
        opener: PageOpener,
        slots: PageSlots,
        tasks: PoolTasks,
        *,
        wait_s: float,
        on_change: Callable[[], None],
    ) -> None:
        self._pages = WarmPages(size)
        self._opener = opener
        self._slots = slots
        self._tasks = tasks
        self._wait_s = wait_s
        self._on_change = on_change
        self._pause: asyncio.TimerHandle | None = None
        """Set while warming pauses, because a page was leased a moment ago."""

    @property
    def ready(self) -> int:
        """Warm pages that can be leased without waiting."""
        return self._pages.ready

    def expect(self, options: PageOptions) -> None:
        """Keep pages with these options warm."""
        self._pages.expect(options)

    def take(self, options: PageOptions) -> PageLease | None:
        """Take a page that is ready, without waiting; None if there is none."""
        page = self._pages.take(options.key)
        if page is None:
            return None
        if not page.ready:  # still opening: `take_opening` waits for it
            self._pages.add(page)
            return None
        self._pages.record_request(options)
        return page.opening.result()

    async def take_opening(self, options: PageOptions) -> PageLease | None:
        """Take a page that is being opened, and wait for it; None if there is none, or if it failed to open."""
        self._pages.record_request(options)
        page = self._pages.take(options.key)
        self._on_change()
        if page is None:
            return None
        await asyncio.wait([page.opening])
        return None if page.broken else page.opening.result()

    def restock(self) -> None:
        """Close the pages that nobody is likely to request, and open those that are missing.

        Opening a page uses the same processor as visiting one. So no more pages are opened than could be leased now,
        and one for the next request; during a pause, only what the next request needs.
        """
        for page in self._pages.surplus():
            _discard(page)
        if not self._slots.is_open or not self._opener.has_browser:
            return
        missing, present = self._pages.missing(), len(self._pages)
        if self._pause is None:
            missing = missing[: max(0, max(1, self._slots.free) - present)]
        else:
            missing = missing[:1] if self._slots.free and not present else []
        for options in missing:
            self._pages.add(WarmPage(options.key, self._tasks.spawn(self._open(options), "open warm page")))

    def pause(self) -> None:
        """Pause warming for 0.2 s, or until `resume`: a page was just leased."""
        if self._pause is not None:
            self._pause.cancel()
        self._pause = asyncio.get_running_loop().call_later(PAUSE_S, self.resume)

    def resume(self) -> None:
        """End the pause: a page was closed, or the job that got one has had its start."""
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        self._on_change()

    def retire(self, browser: Instance) -> None:
        """Close the warm pages of a browser that takes no more pages."""
        for page in self._pages:
            if page.ready and browser.has(page.opening.result()):
                self._pages.remove(page)
                _discard(page)

    def clear(self) -> None:
        """Drop all warm pages; their browsers are being closed."""
        self._pages.clear()

    async def _open(self, options: PageOptions) -> PageLease:
        try:
            return await self._opener.open(options, asyncio.get_running_loop().time() + self._wait_s)
        except InvalidArguments:
            self._pages.forget(options.key)
            self._on_change()
            raise


def _discard(page: WarmPage) -> None:
    """Close a page that was never leased, once it is open."""
    page.opening.add_done_callback(release_unclaimed)
