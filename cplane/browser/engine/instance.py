"""One running browser with its driver: both are started, watched and replaced together."""

import asyncio
import contextlib
import shutil
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import structlog
from playwright.async_api import Browser, BrowserContext, CDPSession, Page
from playwright.async_api import Error as PlaywrightError

from cplane.browser.engine.launch import BrowserSource, Launched, first_line, running_pids
from cplane.browser.engine.ledger import ProcessRegistry
from cplane.browser.engine.memory import MemoryGuard
from cplane.browser.engine.process import family, resident_bytes
from cplane.browser.lease import PageLease
from cplane.egress import Gate
from cplane.errors import BrowserError, BrowserGone, InvalidArguments, PageTooLarge, PoolTimeout
from cplane.jobs.page_options import PageOptions
from cplane.runtime.cancellation import cancel_all

OPEN_TIMEOUT_S = 15.0
CLOSE_TIMEOUT_S = 5.0
TRACE_STOP_TIMEOUT_S = 2.0
SHARED_TRACE_FOLDER = "resources"
"""Playwright's name for the folder of the files that several traces of one browser share."""
RESPONSE_TIMEOUT_S = 20.0
"""A browser that does not respond to the simplest call within this time is lost."""
HEARTBEAT_INTERVAL_S = 5.0

log = structlog.get_logger("cplane")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """When a healthy browser is replaced by a new one."""

    pages: int = 500
    """Number of pages opened in it."""
    age_s: float = 3600.0
    """Seconds since it was launched."""
    memory_bytes: int = 2 * 1024**3
    """Memory of all its processes that they do not share; checked every 5 s, on Linux only."""
    page_memory_bytes: int = 1024**3
    """Memory of the renderer of one page; a page with more is killed. For a local Chromium on Linux only."""


Prepare = Callable[[BrowserContext], Any]
"""Prepares a context before its page opens; awaited."""


class Instance:
    """A running browser. `ended` is done once it takes no new pages, `gone` once it cannot be used at all."""

    def __init__(self, launched: Launched, registry: ProcessRegistry, limits: Limits) -> None:
        loop = asyncio.get_running_loop()
        self.version = launched.browser.version
        self.process = launched.process
        self.ended: asyncio.Future[str] = loop.create_future()
        """Its result is the reason."""
        self.gone: asyncio.Future[str] = loop.create_future()
        """Its result is the reason."""
        self.limit_reached: asyncio.Future[str] = loop.create_future()
        """Done once it is to be replaced; its result names the limit. Until then it still takes pages."""
        self.driver = launched.driver
        self.browser = launched.browser
        self.profile = launched.profile
        """Its temporary profile folder, which is removed with it; None: it has none that we made."""
        self.artifacts = launched.artifacts
        """The folder of its downloads and traces, which is removed with it."""
        self._session = launched.session
        self._registry = registry
        self._limits = limits
        self._started_at = loop.time()
        self._opened = 0
        """Pages opened so far."""
        self._open: set[PageLease] = set()
        self._opening = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._check_wanted = asyncio.Event()
        """A call failed as if the browser had died: the next heartbeat is due now."""
        self.browser.on("disconnected", self._disconnected)
        self._memory: MemoryGuard | None = None
        self._tasks = [loop.create_task(self._watch(), name="watch browser")]
        if self.process is not None and self._session is not None:
            self._memory = MemoryGuard(self._session, limits.page_memory_bytes)
            self._tasks.append(loop.create_task(self._memory.watch(self._has_jobs), name="watch page memory"))

    @classmethod
    async def start(
        cls, source: BrowserSource, registry: ProcessRegistry | None = None, limits: Limits | None = None
    ) -> Self:
        """Start a browser within 15 s; errors as of `BrowserSource.start`."""
        registry = registry or ProcessRegistry()
        return cls(await source.start(registry), registry, limits or Limits())

    @property
    def pages(self) -> int:
        """Pages that are open: leased, warm, or being closed."""
        return len(self._open)

    @property
    def usable(self) -> bool:
        """Whether it takes new pages."""
        return not self.ended.done()

    def has(self, lease: PageLease) -> bool:
        """Return whether a page is open in this browser."""
        return lease in self._open

    async def open(
        self,
        options: PageOptions,
        on_release: Callable[[PageLease], asyncio.Task[None]],
        *,
        resources: AsyncExitStack | None = None,
        arguments: dict[str, Any] | None = None,
        gate: Gate | None = None,
        yield_slot: Callable[[PageLease], bool] | None = None,
        prepare: Prepare | None = None,
        shared: bool = False,
    ) -> PageLease:
        """Open a page in a new context, within 15 s.

        Args:
            options: how the page is set up.
            on_release: called when the lease is released; returns the task that calls `close_page`.
            resources: closed after the context, also if the page fails to open.
            arguments: further keyword arguments of Playwright's `browser.new_context`.
            gate: the context's egress gate.
            yield_slot: releases the slot of a lease whose page stays open.
            prepare: prepares the context before its page opens.
            shared: whether several jobs use the context.

        Raises:
            InvalidArguments: the browser refuses the options.
            BrowserGone: the browser ended while it opened the page.
            PoolTimeout: the browser did not respond in time; it takes no more pages.
        """
        resources = resources or AsyncExitStack()
        self._opening += 1
        self._idle.clear()
        try:
            context, page = await self._open_page({**options.new_context(), **(arguments or {})}, prepare)
        except BaseException:
            self._opening -= 1
            self._update_idle()
            await resources.aclose()
            raise
        self._opening -= 1
        lease = PageLease(
            context,
            page,
            check_browser=self.check_now,
            on_release=on_release,
            resources=resources,
            gate=gate,
            yield_slot=yield_slot,
            shared=shared,
            explain_crash=self._explain_crash,
        )
        self._open.add(lease)
        self._opened += 1
        if self._opened >= self._limits.pages:
            self._reach_limit(f"{self._opened} pages were opened in it")
        if self.gone.done():
            lease.lose(self._loss())
        return lease

    async def close_page(self, lease: PageLease) -> None:
        """Close a page and its context within 5 s. If that fails, the browser takes no more pages."""
        try:
            if not self.gone.done():
                await self._close_context(lease.context, traced=lease.traced)
        finally:
            self._open.discard(lease)
            self._update_idle()
            await lease.resources.aclose()
            if (trace := lease.trace_name) is not None:
                await self._remove_trace(trace, resources=lease.trace_resources)

    async def _remove_trace(self, trace: str, *, resources: bool) -> None:
        """Remove the files of a trace, and with the last trace the files they shared.

        Playwright keeps them as long as the browser runs.
        """
        if resources and not any(other.trace_resources for other in self._open):
            with contextlib.suppress(OSError):  # renamed without an await: the next trace makes the folder again
                (self.artifacts / SHARED_TRACE_FOLDER).rename(self.artifacts / f"{trace}-{SHARED_TRACE_FOLDER}")
        await asyncio.to_thread(_remove_files, self.artifacts, trace)

    async def another_page(self, context: BrowserContext) -> Page:
        """Open one more page in an open context; errors as of `open`."""
        try:
            async with asyncio.timeout(OPEN_TIMEOUT_S):
                page = await context.new_page()
        except TimeoutError:
            raise self._open_timed_out() from None
        except PlaywrightError as error:
            if await self._is_alive():
                raise BrowserGone(f"the shared context was lost: {first_line(error)}") from None
            raise self._loss() from None
        return page

    async def page_session(self, page: Page) -> CDPSession | None:
        """Open a DevTools session with a page, below Playwright; None if the browser is not Chromium."""
        return None if self._session is None else await page.context.new_cdp_session(page)

    def _has_jobs(self) -> bool:
        return any(lease.holds_slot for lease in self._open)

    def _explain_crash(self, lease: PageLease) -> PageTooLarge | None:
        return None if self._memory is None else self._memory.explain(lease)

    def check_now(self) -> None:
        """Check now whether the browser is alive, because a call failed as if it had died."""
        self._check_wanted.set()

    def _update_idle(self) -> None:
        if not self._open and not self._opening:
            self._idle.set()

    async def wait_idle(self) -> None:
        """Wait until no page is open or being opened, or the browser is gone."""
        idle = asyncio.get_running_loop().create_task(self._idle.wait(), name="wait until the browser is idle")
        try:
            await asyncio.wait((idle, self.gone), return_when=asyncio.FIRST_COMPLETED)
        finally:
            idle.cancel()

    def retire(self, reason: str) -> None:
        """Take no new pages; those that are open stay open."""
        if not self.ended.done():
            log.info("browser_retired", reason=reason, version=self.version, pages=self._opened)
            self.ended.set_result(reason)

    async def close(self) -> None:
        """End the browser and its driver; what does not end within 5 s is killed. May be called again."""
        self._lose("it was closed")
        await cancel_all(self._tasks)
        with contextlib.suppress(TimeoutError, PlaywrightError):
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self.browser.close()
        if self.process is not None:
            self.process.kill()
        await self.driver.stop()
        await self._registry.remove(self.process, self.profile, self.artifacts)

    async def _open_page(self, arguments: dict[str, Any], prepare: Prepare | None) -> tuple[BrowserContext, Page]:
        try:
            async with asyncio.timeout(OPEN_TIMEOUT_S):
                context = await self.browser.new_context(**arguments)
                try:
                    if prepare is not None:
                        await prepare(context)
                    page = await context.new_page()
                except BaseException:
                    await self._close_context(context)
                    raise
        except TimeoutError:
            raise self._open_timed_out() from None
        except PlaywrightError as error:
            if await self._is_alive():
                raise InvalidArguments(f"the browser refused the page options: {first_line(error)}") from None
            raise self._loss() from None
        return context, page

    def _open_timed_out(self) -> PoolTimeout:
        self.retire(f"it did not open a page within {OPEN_TIMEOUT_S:g} s")
        return PoolTimeout(f"the browser did not open a page within {OPEN_TIMEOUT_S:g} s")

    async def _close_context(self, context: BrowserContext, *, traced: bool = False) -> None:
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                if traced:  # until then, the driver keeps its calls and those of all other contexts in memory
                    with contextlib.suppress(PlaywrightError, TimeoutError):
                        async with asyncio.timeout(TRACE_STOP_TIMEOUT_S):
                            await context.tracing.stop()
                await context.close()
        except TimeoutError:
            self.retire(f"a context did not close within {CLOSE_TIMEOUT_S:g} s")
        except PlaywrightError as error:
            if await self._is_alive():
                self.retire(f"a context did not close: {first_line(error)}")

    async def _watch(self) -> None:
        while await self._is_alive():
            await self._check_limits()
            self._check_wanted.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(HEARTBEAT_INTERVAL_S):
                    await self._check_wanted.wait()

    async def _check_limits(self) -> None:
        """Check its age and its memory."""
        age_s = asyncio.get_running_loop().time() - self._started_at
        if age_s >= self._limits.age_s:
            self._reach_limit(f"it has run for {age_s:.0f} s")
        if self.process is None or self.limit_reached.done():
            return
        with contextlib.suppress(TimeoutError, PlaywrightError):
            async with asyncio.timeout(RESPONSE_TIMEOUT_S):
                used = resident_bytes(await self._pids(self.process.pid))
            if used >= self._limits.memory_bytes:
                self._reach_limit(f"it uses {used >> 20} MiB")

    async def _pids(self, main: int) -> Iterable[int]:
        """The ids of its processes."""
        if self._session is None:
            return await asyncio.to_thread(family, main)
        return await running_pids(self._session)

    def _reach_limit(self, reason: str) -> None:
        if not self.limit_reached.done():
            self.limit_reached.set_result(reason)

    async def _is_alive(self) -> bool:
        """Ping the browser. There is no event when a driver dies; calls just fail."""
        if self.gone.done():
            return False
        try:
            async with asyncio.timeout(RESPONSE_TIMEOUT_S):
                await self._ping()
        except TimeoutError:
            self._lose(f"it did not respond for {RESPONSE_TIMEOUT_S:g} s")
        except PlaywrightError:
            self._lose("the browser or its driver ended")
        return not self.gone.done()

    async def _ping(self) -> None:
        """Make the simplest call: ask Chromium for its version; other browsers have no such call and open a context."""
        if self._session is not None:
            await self._session.send("Browser.getVersion")  # pyright: ignore[reportUnknownMemberType]
        elif not self.browser.is_connected():
            self._lose("the browser process ended")
        else:
            await (await self.browser.new_context()).close()

    def _disconnected(self, _: Browser) -> None:
        self._lose("the browser process ended")

    def _lose(self, reason: str) -> None:
        if self.gone.done():
            return
        self.gone.set_result(reason)
        if not self.ended.done():
            self.ended.set_result(reason)
        for lease in self._open:
            lease.lose(self._loss())

    def _loss(self) -> BrowserGone:
        return BrowserGone(f"the browser was lost: {self.gone.result()}")


async def probe(source: BrowserSource | None = None) -> str:
    """Launch the browser, or connect to it, open a page and run a script in it.

    Args:
        source: where the browser comes from; default: what `find_executable` finds.

    Returns:
        The browser's version.

    Raises:
        BrowserError: it cannot be used; the message says why.
    """
    browser = await Instance.start(source or BrowserSource())
    try:
        async with asyncio.timeout(OPEN_TIMEOUT_S):
            page = (await browser.open(PageOptions(), _not_released)).page
            result = await page.evaluate("6 * 7")
    except (PlaywrightError, TimeoutError) as error:
        raise BrowserGone(f"the browser started, but a page does not work: {first_line(error)}") from None
    finally:
        await browser.close()
    if result != 42:
        raise BrowserError("the browser runs no scripts")
    return browser.version


def _remove_files(folder: Path, prefix: str) -> None:
    with contextlib.suppress(OSError):  # the browser may end at the same time, and its folder be removed
        for path in folder.glob(f"{prefix}*"):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _not_released(_: PageLease) -> asyncio.Task[None]:
    raise NotImplementedError("a probe's page closes with its browser")
