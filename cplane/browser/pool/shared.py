"""Contexts that jobs of one name share, for bulk work of jobs that trust each other: pages are used again, not opened anew."""

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from typing import Any

import structlog
from playwright.async_api import BrowserContext, Frame, Page
from playwright.async_api import Error as PlaywrightError

from cplane.browser.engine.instance import CLOSE_S, Instance
from cplane.browser.lease import PageLease
from cplane.errors import BrowserError, BrowserGone
from cplane.jobs.page_options import PageOptions, Viewport

IDLE_S = 1.0
"""How long a page, or the whole context, is idle before it is emptied and set back; the next job before that gets it as it is."""
ANSWER_S = CLOSE_S / 2
"""The page of a job that failed is not used again when it does not answer for so long."""
LOOK_S = 0.5
"""A job that has a page for so long and is still at the document of the job before may wait for a page that hangs."""
HANG_S = 5.0
"""It does, when the page does not answer for so long."""
VIEWPORT = Viewport(width=1280, height=720)
"""Playwright's own."""
LEAVE = "() => location.replace('about:blank')"
"""Ends what runs in the page. The page itself goes, not the browser: that would take another process, twice."""

log = structlog.get_logger("cplane")


class SharedContext:
    """One context in one browser, and its pages: lent ones, and idle ones.

    A page goes to the next job as it is: what that costs is all that such a job pays. What stays idle is emptied and set
    back by a task of the pool. `docs/isolation.md` has the list, and what cannot be undone.
    """

    def __init__(
        self,
        instance: Instance,
        root: PageLease,
        options: PageOptions,
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
    ) -> None:
        self.instance = instance
        self.options = options
        self.root = root
        """Keeps the context open; its own page is the first that is lent."""
        self.uses = 0
        self._spawn = spawn
        self._idle: list[Page] = []
        self._lent: set[PageLease] = set()
        self._crashed: set[Page] = set()
        self._hung: set[Page] = set()
        """Pages that do not answer."""
        self._moves: Counter[Page] = Counter()
        """How often each page went to another document."""
        self._looked_at: set[Page] = set()
        """Pages that are not lent again before it is known whether they answer."""
        self._timers: dict[PageLease, asyncio.TimerHandle] = {}
        """When the pages that are lent are looked at."""
        self._used: dict[Page | BrowserContext, float] = {}
        """What jobs used that is idle now, and since when; the oldest first."""
        self._emptied: Page | None = None
        """The page that is being emptied; it is not idle meanwhile."""
        self._tending: asyncio.Task[None] | None = None
        self._lending = asyncio.Lock()
        """Held while a page is lent, and while the context is set back, which disturbs whoever uses it."""
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
        async with self._lending:
            if not self.usable:
                raise BrowserGone("the shared context was closed")
            self._idle = [page for page in self._idle if self._fit(page)]
            if not self._idle:
                self._keep(await self.instance.another_page(self.root.context))
            page = self._idle.pop()
            used_before = self._used.pop(page, None) is not None
            self._used.pop(self.root.context, None)
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
            if used_before:
                self._watch(lease)
        if self.root.lost:
            self._lose()
        return lease

    async def take_back(self, lease: PageLease) -> None:
        """Keep the page for the next job; close what it opened, and the page itself if it cannot be used again.

        After a job that ended well the next one has the page at once; `_watch` looks after it.
        """
        lease.unwatch()
        page, strays = lease.page, self._strays(lease)
        self._lent.discard(lease)
        if (timer := self._timers.pop(lease, None)) is not None:
            timer.cancel()
        try:
            if self.instance.gone.done():
                return
            self._looked_at.add(page)
            if sound := await self._sound(lease):
                self._put(page)
            await self._close([*lease.popups, *strays, *([] if sound else [page])])
        finally:
            self._looked_at.discard(page)
            self._rest()

    def close(self) -> None:
        """Close the context, and end the care of its idle pages."""
        if self._tending is not None:
            self._tending.cancel()
        self.root.release()

    def _keep(self, page: Page) -> None:
        page.on("crash", self._crash)
        page.on("close", self._forget)
        page.on("framenavigated", self._moved)
        self._idle.append(page)

    def _crash(self, page: Page) -> None:
        self._crashed.add(page)

    def _moved(self, frame: Frame) -> None:
        if frame.parent_frame is None:
            self._moves[frame.page] += 1

    def _forget(self, page: Page) -> None:
        del self._moves[page]
        self._crashed.discard(page)
        self._hung.discard(page)

    def _fit(self, page: Page) -> bool:
        return page not in self._crashed and page not in self._hung and not page.is_closed()

    async def _sound(self, lease: PageLease) -> bool:
        """Whether a page can be used again. After a job that ended well, and left no routes, it is not even asked."""
        page = lease.page
        sound = self.usable and not lease.lost and self._fit(page)
        if sound and _routed(page):
            sound = await self._unroute(page)
        if sound and not lease.ended_well:
            sound = await self._answers(page)
        return sound and self._fit(page)

    def _put(self, page: Page) -> None:
        self._looked_at.discard(page)
        self._idle.append(page)
        self._used[page] = asyncio.get_running_loop().time()

    def _watch(self, lease: PageLease) -> None:
        """A page that was used before, and has not gone on to another document by then, is asked whether it answers."""
        moves = self._moves[lease.page]

        def look() -> None:
            del self._timers[lease]
            if self._moves[lease.page] == moves and self.usable:
                self._spawn(self._make_sure(lease, moves))

        self._timers[lease] = asyncio.get_running_loop().call_later(LOOK_S, look)

    async def _make_sure(self, lease: PageLease, moves: int) -> None:
        """Who got a page that hangs since the job before loses it; it is closed when it is given back."""
        page = lease.page
        if await self._answers(page, HANG_S) or self._moves[page] != moves or not self._fit(page):
            return
        self._hung.add(page)
        lease.lose(BrowserGone("the page was left busy by the job that had it before"))

    async def _answers(self, page: Page, within_s: float = ANSWER_S) -> bool:
        """Whether a page answers."""
        try:
            async with asyncio.timeout(within_s):
                if (session := await self.instance.page_session(page)) is None:
                    await page.title()
                else:  # a script of Playwright's own would first put its helpers into the page
                    await session.send("Runtime.evaluate", {"expression": "1"})  # pyright: ignore[reportUnknownMemberType]
                    await session.detach()
        except TimeoutError:
            return False
        except PlaywrightError:  # it was closed, or it went on to another document
            return self._fit(page)
        return True

    async def _unroute(self, page: Page) -> bool:
        """Whether the page's routes are off."""
        try:
            async with asyncio.timeout(ANSWER_S):
                await page.unroute_all()
        except (TimeoutError, PlaywrightError):
            return False
        return True

    def _strays(self, last: PageLease) -> list[Page]:
        """Pages that jobs opened in the context beside their own. None while others may still use them."""
        if self._lent != {last} or self._lending.locked():
            return []
        known = {last.page, self._emptied, *self._looked_at, *self._idle, *last.popups}
        return [page for page in self.root.context.pages if page not in known]

    async def _close(self, pages: Iterable[Page]) -> bool:
        """Whether they closed; a browser in which they do not takes no more pages."""
        try:
            async with asyncio.timeout(CLOSE_S):
                for page in pages:
                    with suppress(PlaywrightError):
                        await page.close()
        except TimeoutError:
            self.instance.retire(f"a page did not close within {CLOSE_S:g} s")
            return False
        return True

    # what is idle

    def _rest(self) -> None:
        """See to it that what stays idle is emptied."""
        if not self._lent:
            self._used[self.root.context] = asyncio.get_running_loop().time()
        if self.usable and self._used and (self._tending is None or self._tending.done()):
            self._tending = self._spawn(self._tend())

    async def _tend(self) -> None:
        """Empty pages, and set the context back, when nobody had them for a while; until nothing is left to do."""
        while self.usable and self._used:
            oldest, since = next(iter(self._used.items()))
            left_s = since + IDLE_S - asyncio.get_running_loop().time()
            if left_s > 0:
                await asyncio.sleep(left_s)
                continue
            del self._used[oldest]
            if isinstance(oldest, Page):
                await self._empty(oldest)
            else:
                await self._set_context_back()

    async def _empty(self, page: Page) -> None:
        """Leave the site, and undo what a job set for the page; a page where that fails is closed."""
        if page not in self._idle:
            return
        self._idle.remove(page)
        if not self._fit(page):
            return
        self._emptied = page
        try:
            async with asyncio.timeout(ANSWER_S):
                await asyncio.gather(_leave(page), self._set_page_back(page))
            self._idle.insert(0, page)
        except (TimeoutError, PlaywrightError):
            await self._close([page])
        finally:
            self._emptied = None

    async def _set_page_back(self, page: Page) -> None:
        size = self.options.viewport or VIEWPORT
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

    async def _set_context_back(self) -> None:
        """Undo what jobs set for the whole context. One that cannot be set back is closed."""
        context = self.root.context
        async with self._lending:
            if self._lent:
                return
            try:
                async with asyncio.timeout(CLOSE_S):
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
                    log.warning("a shared context could not be set back", error=type(error).__name__)
                self.root.release()

    def _lose(self) -> None:
        if self._tending is not None:
            self._tending.cancel()
        loss = self.root.loss
        for lease in self._lent:
            if isinstance(loss, BrowserError):
                lease.lose(loss)


def _routed(page: Page) -> bool:
    """Whether a job may have left routes. Playwright has no public question for it; the answer costs it a round trip less."""
    return bool(getattr(getattr(page, "_impl_obj", None), "_routes", True))


async def _leave(page: Page) -> None:
    """Go to an empty page; raises Playwright's TimeoutError if the site's page does not let go."""
    main = page.main_frame
    async with page.expect_event("framenavigated", lambda frame: frame == main, timeout=ANSWER_S * 800):
        await page.evaluate(LEAVE)
