"""The browsers of a pool: launched ahead and one after the other, watched, and replaced whatever they end of."""

import asyncio
from collections.abc import Callable
from typing import Any

import structlog

from cplane.browser.engine.instance import Instance, Limits
from cplane.browser.engine.launch import LAUNCH_S, BrowserSource
from cplane.browser.engine.ledger import ProcessRegistry
from cplane.browser.lease import PageLease
from cplane.runtime.cancellation import end

RELAUNCH_S = (0.0, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Pauses before a browser is launched again; the last one repeats."""
STEADY_S = 5.0
"""A browser that lived so long was a good one: the next pause starts from the beginning."""

log = structlog.get_logger("cplane")


class BrowserSupervisor:
    """`size` places, each with a browser that is replaced when it ends, and before it does when it is worn out.

    Args:
        source: how a browser is had.
        size: browsers that run at once; while one is replaced, the old one stays until its pages are given back.
        limits: when one is worn out.
        changed: called when a browser came or went.
        parted: called with a browser that takes no more pages.
    """

    def __init__(
        self,
        source: BrowserSource,
        size: int,
        limits: Limits,
        *,
        changed: Callable[[], None],
        parted: Callable[[Instance], None],
    ) -> None:
        self.launches = 0
        """Browsers launched so far."""
        self.lost = 0
        """Browsers that ended by themselves."""
        self.retired = 0
        """Browsers that were replaced: worn out, or no longer to be trusted."""
        self._source = source
        self._limits = limits
        self._changed = changed
        self._parted = parted
        self._ledger = ProcessRegistry()
        self._running: set[Instance] = set()
        """Every browser that has not ended yet."""
        self._places: list[Instance | None] = [None] * size
        """The browsers that new pages come from."""
        self._launching = asyncio.Lock()
        """One after the other: browsers that start together take the processor from the pages that are in use."""
        self._trouble: Exception | None = None
        self._closed = False
        self._up = asyncio.Event()
        self._keepers: set[asyncio.Task[Any]] = set()

    async def start(self) -> None:
        """Launch the first browser; the others follow. What an earlier worker left behind is removed before.

        Raises:
            BrowserNotFound: there is none.
            BrowserGone: it does not start.
        """
        await self._ledger.sweep()
        first = await self._launch(0)
        for place in range(len(self._places)):
            self._keep(place, first if place == 0 else None)

    async def close(self) -> None:
        """End every browser, and with them their pages."""
        self._closed = True
        self._up.set()
        await end([*self._keepers], again_s=LAUNCH_S)
        await asyncio.gather(*(instance.close() for instance in self._running))
        self._places = [None] * len(self._places)

    @property
    def browsers(self) -> list[Instance]:
        """The browsers that take new pages, those with the fewest first."""
        usable = [instance for instance in self._places if instance is not None and instance.usable]
        return sorted(usable, key=lambda instance: instance.pages)

    @property
    def trouble(self) -> str:
        """Why there is no browser."""
        return str(self._trouble or "it is being launched")

    async def wait(self) -> Instance | None:
        """The browser with the fewest pages, once there is one; None: the fleet is closed."""
        while not self._closed:
            if browsers := self.browsers:
                return browsers[0]
            self._up.clear()
            await self._up.wait()
        return None

    def owner(self, lease: PageLease) -> Instance:
        """The browser a page that is open belongs to."""
        return next(instance for instance in self._running if instance.has(lease))

    async def _launch(self, place: int) -> Instance:
        async with self._launching:
            instance = await Instance.start(self._source, self._ledger, self._limits)
        self._running.add(instance)
        self._places[place] = instance
        self._trouble = None
        self.launches += 1
        log.info("browser launched", version=instance.version, launches=self.launches)
        self._up.set()
        self._changed()
        return instance

    def _keep(self, place: int, instance: Instance | None) -> None:
        self._own(asyncio.get_running_loop().create_task(self._replace(place, instance), name="keep a browser"))

    async def _replace(self, place: int, instance: Instance | None) -> None:
        """Whenever the browser of this place ends or is worn out, launch the next. The old one is closed once its pages are given back."""
        loop = asyncio.get_running_loop()
        instance = instance or await self._relaunch(place, 0)
        short_lives = 0
        while True:
            since = loop.time()
            await asyncio.wait((instance.ended, instance.worn), return_when=asyncio.FIRST_COMPLETED)
            old, worn = instance, not instance.ended.done()
            if worn or loop.time() - since > STEADY_S:
                short_lives = 0
            if not worn:
                self._part(old)
            instance = await self._relaunch(place, short_lives)
            short_lives += 1
            if worn:
                old.retire(old.worn.result())
                self._part(old)

    async def _relaunch(self, place: int, failures: int) -> Instance:
        """The next browser, after as long a pause as the failures before it ask for. Nothing but cancellation ends it."""
        while True:
            await asyncio.sleep(RELAUNCH_S[min(failures, len(RELAUNCH_S) - 1)])
            try:
                return await self._launch(place)
            except Exception as error:
                failures += 1
                self._trouble = error
                log.error("browser not launched", error=str(error), failures=failures)

    def _part(self, old: Instance) -> None:
        """A browser takes no more pages."""
        if old.gone.done():
            self.lost += 1
            log.warning("browser lost", reason=old.gone.result(), pages=old.pages)
        else:
            self.retired += 1
        self._parted(old)
        self._own(asyncio.get_running_loop().create_task(self._discard(old), name="discard browser"))
        self._changed()

    async def _discard(self, old: Instance) -> None:
        await old.wait_idle()
        await old.close()
        self._running.discard(old)

    def _own(self, task: asyncio.Task[None]) -> None:
        self._keepers.add(task)
        task.add_done_callback(self._keepers.discard)
