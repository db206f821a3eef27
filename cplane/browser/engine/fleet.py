"""The browsers of a pool: launched one after the other, watched, and replaced for whatever reason they end."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import structlog

from cplane.browser.engine.instance import Instance, Limits
from cplane.browser.engine.launch import LAUNCH_TIMEOUT_S, BrowserSource
from cplane.browser.engine.ledger import ProcessRegistry
from cplane.browser.lease import PageLease
from cplane.runtime.cancellation import cancel_all

RELAUNCH_BACKOFF_S = (0.0, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Pauses before a browser is launched again; the last one repeats."""
STABLE_AFTER_S = 5.0
"""A browser that lived longer than this was healthy: the backoff starts from the beginning."""

log = structlog.get_logger("cplane")


class BrowserSupervisor:
    """Keeps `size` browsers running: replaces one that ends, and one that reached a limit while it still runs.

    Args:
        source: where browsers come from.
        size: number of browsers; a browser that is replaced runs in addition until its pages are released.
        limits: when a browser is replaced.
        on_change: called when a browser was launched or stopped taking pages.
        on_retire: called with a browser that takes no more pages.
    """

    def __init__(
        self,
        source: BrowserSource,
        size: int,
        limits: Limits,
        *,
        on_change: Callable[[], None],
        on_retire: Callable[[Instance], None],
    ) -> None:
        self.launches = 0
        """Browsers launched so far."""
        self.lost = 0
        """Browsers that ended by themselves, so far."""
        self.retired = 0
        """Browsers that were replaced so far, because they reached a limit or could no longer be trusted."""
        self._source = source
        self._limits = limits
        self._on_change = on_change
        self._on_retire = on_retire
        self._registry = ProcessRegistry()
        self._running: set[Instance] = set()
        """Every browser that was not closed yet."""
        self._current: list[Instance | None] = [None] * size
        """The browsers that new pages come from, and those that are being replaced; None before the first launch."""
        self._launch_lock = asyncio.Lock()
        """One launch at a time: browsers that start concurrently take the processor from the pages in use."""
        self._last_error: Exception | None = None
        self._closed = False
        self._launched = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()

    async def start(self) -> None:
        """Remove what an earlier worker left behind, and launch the first browser; the others follow.

        Raises:
            BrowserNotFound: there is no browser.
            BrowserGone: the browser does not start.
        """
        await self._registry.sweep()
        first = await self._launch(0)
        for index in range(len(self._current)):
            self._spawn(self._keep_running(index, first if index == 0 else None), "keep a browser running")

    async def close(self) -> None:
        """End every browser, and its pages with it."""
        self._closed = True
        self._launched.set()
        await cancel_all([*self._tasks], retry_interval_s=LAUNCH_TIMEOUT_S)
        await asyncio.gather(*(instance.close() for instance in self._running))
        self._current = [None] * len(self._current)

    @property
    def browsers(self) -> list[Instance]:
        """The browsers that take new pages, those with the fewest pages first."""
        usable = [instance for instance in self._current if instance is not None and instance.usable]
        return sorted(usable, key=lambda instance: instance.pages)

    @property
    def trouble(self) -> str:
        """Why there is no browser."""
        return str(self._last_error or "it is being launched")

    async def wait(self) -> Instance | None:
        """Wait for a browser; returns the one with the fewest pages, or None when the supervisor is closed."""
        while not self._closed:
            if browsers := self.browsers:
                return browsers[0]
            self._launched.clear()
            await self._launched.wait()
        return None

    def owner(self, lease: PageLease) -> Instance:
        """Return the browser that an open page belongs to."""
        return next(instance for instance in self._running if instance.has(lease))

    async def _launch(self, index: int) -> Instance:
        async with self._launch_lock:
            instance = await Instance.start(self._source, self._registry, self._limits)
        self._running.add(instance)
        self._current[index] = instance
        self._last_error = None
        self.launches += 1
        log.info("browser_launched", version=instance.version, launches=self.launches)
        self._launched.set()
        self._on_change()
        return instance

    async def _keep_running(self, index: int, instance: Instance | None) -> None:
        """Launch the next browser when one ends or reaches a limit; close the old one once its pages are released."""
        loop = asyncio.get_running_loop()
        instance = instance or await self._relaunch(index, 0)
        short_lives = 0
        while True:
            since = loop.time()
            await asyncio.wait((instance.ended, instance.limit_reached), return_when=asyncio.FIRST_COMPLETED)
            old, reached_limit = instance, not instance.ended.done()
            if reached_limit or loop.time() - since > STABLE_AFTER_S:
                short_lives = 0
            if not reached_limit:
                self._retire(old)
            instance = await self._relaunch(index, short_lives)
            short_lives += 1
            if reached_limit:
                old.retire(old.limit_reached.result())
                self._retire(old)

    async def _relaunch(self, index: int, failures: int) -> Instance:
        """Launch the next browser, with a backoff by the number of earlier failures. Only cancellation ends this."""
        while True:
            await asyncio.sleep(RELAUNCH_BACKOFF_S[min(failures, len(RELAUNCH_BACKOFF_S) - 1)])
            try:
                return await self._launch(index)
            except Exception as error:
                failures += 1
                self._last_error = error
                log.error("browser_not_launched", error=str(error), failures=failures)

    def _retire(self, old: Instance) -> None:
        """Count a browser that takes no more pages, and close it once its pages are released."""
        if old.gone.done():
            self.lost += 1
            log.warning("browser_lost", reason=old.gone.result(), pages=old.pages)
        else:
            self.retired += 1
        self._on_retire(old)
        self._spawn(self._close_when_idle(old), "close browser when idle")
        self._on_change()

    async def _close_when_idle(self, old: Instance) -> None:
        await old.wait_idle()
        await old.close()
        self._running.discard(old)

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
