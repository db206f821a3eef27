"""Contexts that jobs of one name share, for bulk work of jobs that trust each other: pages are used again, not opened anew."""

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress

import structlog
from playwright.async_api import Error as PlaywrightError
from playwright.async_api import Page

from cplane.browser.instance import CLOSE_S, Instance
from cplane.browser.lease import PageLease
from cplane.browser.options import PageOptions, Viewport
from cplane.errors import BrowserError, BrowserGone

VIEWPORT = Viewport(width=1280, height=720)
"""Playwright's own."""
LEAVE = "() => location.replace('about:blank')"
"""Ends what runs in the page. The page itself goes, not the browser: that would take another process, twice, and half the speed."""
GLOBALS = r"""() => {
    window.name = ''
    const native = value => typeof value === 'function' && /\[native code\]/.test(Function.prototype.toString.call(value))
    const added = ({value}) => value !== undefined && !native(value)
    return Object.keys(window).filter(name => added(Object.getOwnPropertyDescriptor(window, name))).sort().join()
}"""
"""The names an empty page has: init scripts and exposed functions, which nothing removes, add to them."""

log = structlog.get_logger("cplane")


class SharedContext:
    """One context in one browser, and its pages: lent ones, and idle ones, empty and set up as the options say.

    What a job left in its page goes when the page is given back; what it set for the whole context, when no other job
    uses the context. `docs/isolation.md` has the list, and what cannot be undone.
    """

    def __init__(self, instance: Instance, root: PageLease, options: PageOptions) -> None:
        self.instance = instance
        self.options = options
        self.root = root
        """Keeps the context open; its own page is the first that is lent."""
        self.uses = 0
        self._idle: list[Page] = []
        self._lent: set[PageLease] = set()
        self._crashed: set[Page] = set()
        self._globals: str | None = None
        """Those of a page that no job had yet."""
        self._lending = asyncio.Lock()
        """Held while a page is lent, and while the context is cleaned, which disturbs whoever uses it."""
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

    async def lend(self, give_back: Callable[[PageLease], asyncio.Task[None]]) -> PageLease:
        """A page that was used before, or one more. Raises BrowserGone, PoolTimeout."""
        self.uses += 1
<<<<<<< HEAD
        async with self._lending:
            if not self.usable:
                raise BrowserGone("the shared context was closed")
            self._idle = [page for page in self._idle if self._fit(page)]
            if not self._idle:
                self._keep(await self.instance.another_page(self.root.context))
            page = self._idle.pop()
            self._globals = self._globals or await self._read_globals(page)
            lease = PageLease(self.root.context, page, doubt=self.instance.doubt, give_back=give_back, shared=True)
            self._lent.add(lease)
=======
        self._idle = [page for page in self._idle if self._fit(page)]
        if not self._idle:
            self._keep(await self.instance.another_page(self.root.context))
        page = self._idle.pop()
        lease = PageLease(
            self.root.context, page, doubt=self.instance.doubt, give_back=give_back, gate=self.root.gate, shared=True
        )
        self._lent.add(lease)
>>>>>>> main
        if self.root.lost:
            self._lose()
        return lease

    async def take_back(self, lease: PageLease) -> None:
        """Keep the page for the next job; close what it opened, and the page itself if it cannot be used again."""
        lease.unwatch()
        try:
            if not self.instance.gone.done():
                fit = self.usable and not lease.lost and self._fit(lease.page)
                if await self._tidy(lease, keep=fit) and self._fit(lease.page):
                    self._idle.append(lease.page)
        finally:
            self._lent.discard(lease)

    async def _read_globals(self, page: Page) -> str:
        try:
            async with asyncio.timeout(CLOSE_S):
                return str(await page.evaluate(GLOBALS))
        except (TimeoutError, PlaywrightError):
            self.root.release()
            raise BrowserGone("the shared context did not answer") from None

    def _keep(self, page: Page) -> None:
        page.on("crash", self._crash)
        self._idle.append(page)

    def _crash(self, page: Page) -> None:
        self._crashed.add(page)

    def _fit(self, page: Page) -> bool:
        return page not in self._crashed and not page.is_closed()

    async def _tidy(self, lease: PageLease, *, keep: bool) -> bool:
        """Close what is not used again, and clean the rest. Whether the page can be kept."""
        try:
            async with asyncio.timeout(CLOSE_S):
                await _close(lease.popups)
                if keep:
                    keep = await self._clean_page(lease.page)
                if not keep:
                    await _close([lease.page])
        except TimeoutError:
            self.instance.retire(f"a page did not close within {CLOSE_S:g} s")
            return False
        async with self._lending:
            if self._lent == {lease}:
                await self._clean_context(lease)
        return keep

    async def _clean_page(self, page: Page) -> bool:
        """Empty the page and undo what a job set. False: that does not help."""
        try:
            async with asyncio.timeout(CLOSE_S / 2):
                await asyncio.gather(_leave(page), self._set_back(page))
                return str(await page.evaluate(GLOBALS)) == self._globals
        except (TimeoutError, PlaywrightError):
            return False

    async def _set_back(self, page: Page) -> None:
        size = self.options.viewport or VIEWPORT
        await page.unroute_all()
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

    async def _clean_context(self, last: PageLease) -> None:
        """Undo what jobs set for the whole context, and close the pages they opened in it."""
        context = self.root.context
        try:
            async with asyncio.timeout(CLOSE_S):
                await _close([page for page in context.pages if page is not last.page and page not in self._idle])
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
                log.warning("a shared context could not be cleaned", error=type(error).__name__)
            self.root.release()

    def _lose(self) -> None:
        loss = self.root.loss
        for lease in self._lent:
            if isinstance(loss, BrowserError):
                lease.lose(loss)


async def _close(pages: Iterable[Page]) -> None:
    for page in pages:
        with suppress(PlaywrightError):
            await page.close()


async def _leave(page: Page) -> None:
    """Go to an empty page; raises Playwright's TimeoutError if the site's page does not let go."""
    main = page.main_frame
    async with page.expect_event("framenavigated", lambda frame: frame == main, timeout=CLOSE_S * 400):
        await page.evaluate(LEAVE)
