"""Contexts that jobs of one name share, for bulk work of jobs that trust each other: pages are used again, not opened anew."""

import asyncio
from collections.abc import Callable
from contextlib import suppress

import structlog
from playwright.async_api import Error as PlaywrightError
from playwright.async_api import Page

from cplane.browser.instance import CLOSE_S, Instance
from cplane.browser.lease import PageLease
from cplane.errors import BrowserError

log = structlog.get_logger("cplane")


class SharedContext:
    """One context in one browser, and its pages: lent ones, and idle ones as the last job left them."""

    def __init__(self, instance: Instance, root: PageLease) -> None:
        self.instance = instance
        self.root = root
        """Keeps the context open; its own page is the first that is lent."""
        self.uses = 0
        self._idle: list[Page] = []
        self._lent: set[PageLease] = set()
        self._crashed: set[Page] = set()
        root.unwatch()  # a page that crashes is its job's loss alone
        root.broken.add_done_callback(lambda _: self._lose())
        self._keep(root.page)

    @property
    def usable(self) -> bool:
        """Whether it lends pages."""
        return self.instance.usable and not self.root.lost and not self.root.released

    @property
    def busy(self) -> bool:
        """Whether a page of it is lent."""
        return bool(self._lent)

    async def lend(
        self,
        give_back: Callable[[PageLease], asyncio.Task[None]],
        free_slot: Callable[[PageLease], bool] | None = None,
    ) -> PageLease:
        """A page that was used before, or one more. Raises BrowserGone, PoolTimeout."""
        self.uses += 1
        self._idle = [page for page in self._idle if self._fit(page)]
        if not self._idle:
            self._keep(await self.instance.another_page(self.root.context))
        page = self._idle.pop()
        lease = PageLease(
            self.root.context,
            page,
            doubt=self.instance.doubt,
            give_back=give_back,
            free_slot=free_slot,
            gate=self.root.gate,
            shared=True,
        )
        self._lent.add(lease)
        if self.root.lost:
            self._lose()
        return lease

    async def take_back(self, lease: PageLease) -> None:
        """Keep the page for the next job; close what it opened, and the page itself if it cannot be used again."""
        lease.unwatch()
        try:
            if not self.instance.gone.done():
                fit = self.usable and not lease.lost and self._fit(lease.page)
                await self._tidy(lease, keep=fit)
                if fit and self._fit(lease.page):
                    self._idle.append(lease.page)
        finally:
            self._lent.discard(lease)

    def _keep(self, page: Page) -> None:
        page.on("crash", self._crash)
        self._idle.append(page)

    def _crash(self, page: Page) -> None:
        self._crashed.add(page)

    def _fit(self, page: Page) -> bool:
        return page not in self._crashed and not page.is_closed()

    async def _tidy(self, lease: PageLease, *, keep: bool) -> None:
        closing = [page for page in lease.popups if not page.is_closed()]
        if not keep:
            closing.append(lease.page)
        try:
            async with asyncio.timeout(CLOSE_S):
                for page in closing:
                    with suppress(PlaywrightError):
                        await page.close()
                if keep:
                    await lease.page.unroute_all()
        except (TimeoutError, PlaywrightError):
            self.instance.retire(f"a page did not close within {CLOSE_S:g} s")

    def _lose(self) -> None:
        loss = self.root.loss
        for lease in self._lent:
            if isinstance(loss, BrowserError):
                lease.lose(loss)
