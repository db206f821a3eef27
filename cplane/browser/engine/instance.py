"""One running browser with the driver that steers it: started together, watched together, replaced together."""

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
from cplane.browser.engine.process import family, resident_bytes
from cplane.browser.lease import PageLease
from cplane.egress import Gate
from cplane.errors import BrowserError, BrowserGone, InvalidArguments, PoolTimeout
from cplane.jobs.page_options import PageOptions

OPEN_S = 15.0
CLOSE_S = 5.0
STOP_TRACE_S = 2.0
RESOURCES = "resources"
"""Playwright's name for the folder of what several traces of one browser share."""
ANSWER_S = 20.0
"""A browser that does not answer the simplest question for so long is lost."""
HEARTBEAT_S = 5.0

log = structlog.get_logger("cplane")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """When a browser is replaced by a new one, though nothing is wrong with it."""

    pages: int = 500
    """So many pages were opened in it."""
    age_s: float = 3600.0
    memory_bytes: int = 2 * 1024**3
    """Memory of all its processes that they do not share; checked every 5 s, on Linux."""


Dress = Callable[[BrowserContext], Any]
"""Prepares a context before its page opens; awaited."""


class Instance:
    """A running browser. `ended` is done once it takes no new pages; `gone` once it cannot be used at all."""

    def __init__(self, launched: Launched, ledger: ProcessRegistry, limits: Limits) -> None:
        loop = asyncio.get_running_loop()
        self.version = launched.browser.version
        self.process = launched.process
        self.ended: asyncio.Future[str] = loop.create_future()
        """Its result is the reason."""
        self.gone: asyncio.Future[str] = loop.create_future()
        """Its result is the reason."""
        self.worn: asyncio.Future[str] = loop.create_future()
        """It has reached a limit, which is the result, and is to be replaced; until then it goes on."""
        self.driver = launched.driver
        self.browser = launched.browser
        self.profile = launched.profile
        """Its folder, which is removed with it; None when it has none that is ours."""
        self.artifacts = launched.artifacts
        """The folder of its downloads and traces, which is removed with it."""
        self._session = launched.session
        self._ledger = ledger
        self._limits = limits
        self._born = loop.time()
        self._opened = 0
        self._open: set[PageLease] = set()
        self._opening = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._doubted = asyncio.Event()
        """A call failed as if the browser had died: look now, not at the next heartbeat."""
        self.browser.on("disconnected", self._disconnected)
        self._watching = loop.create_task(self._watch(), name="watch browser")

    @classmethod
    async def start(
        cls, source: BrowserSource, ledger: ProcessRegistry | None = None, limits: Limits | None = None
    ) -> Self:
        """Start one, within 15 s; errors as of `BrowserSource.start`."""
        ledger = ledger or ProcessRegistry()
        return cls(await source.start(ledger), ledger, limits or Limits())

    @property
    def pages(self) -> int:
        """Pages that are open: lent, ready, and being closed."""
        return len(self._open)

    @property
    def usable(self) -> bool:
        """Whether it takes new pages."""
        return not self.ended.done()

    def has(self, lease: PageLease) -> bool:
        """Whether a page that is not closed yet is one of its own."""
        return lease in self._open

    async def open(
        self,
        options: PageOptions,
        give_back: Callable[[PageLease], asyncio.Task[None]],
        *,
        resources: AsyncExitStack | None = None,
        arguments: dict[str, Any] | None = None,
        gate: Gate | None = None,
        free_slot: Callable[[PageLease], bool] | None = None,
        dress: Dress | None = None,
        shared: bool = False,
    ) -> PageLease:
        """Open a page in a context of its own, within 15 s. `resources` are closed with the context, whatever happens.

        Raises:
            InvalidArguments: the browser refuses the options.
            BrowserGone: the browser ended meanwhile.
            PoolTimeout: it did not answer in time; it takes no more pages.
        """
        resources = resources or AsyncExitStack()
        self._opening += 1
        self._idle.clear()
        try:
            context, page = await self._open_page({**options.new_context(), **(arguments or {})}, dress)
        except BaseException:
            self._opening -= 1
            self._rest()
            await resources.aclose()
            raise
        self._opening -= 1
        lease = PageLease(
            context,
            page,
            doubt=self.doubt,
            give_back=give_back,
            resources=resources,
            gate=gate,
            free_slot=free_slot,
            shared=shared,
        )
        self._open.add(lease)
        self._opened += 1
        if self._opened >= self._limits.pages:
            self._wear(f"{self._opened} pages were opened in it")
        if self.gone.done():
            lease.lose(self._loss())
        return lease

    async def close_page(self, lease: PageLease) -> None:
        """Close a page and its context, within 5 s; a browser that cannot takes no more pages."""
        try:
            if not self.gone.done():
                await self._close_context(lease.context, traced=lease.traced)
        finally:
            self._open.discard(lease)
            self._rest()
            await lease.resources.aclose()
            if (trace := lease.trace_name) is not None:
                await self._clear(trace, resources=lease.trace_resources)

    async def _clear(self, trace: str, *, resources: bool) -> None:
        """Remove the files of a trace, which Playwright keeps as long as the browser runs; with the last one, what they share."""
        if resources and not any(other.trace_resources for other in self._open):
            with contextlib.suppress(OSError):  # at once: the next trace makes the folder anew
                (self.artifacts / RESOURCES).rename(self.artifacts / f"{trace}-{RESOURCES}")
        await asyncio.to_thread(_remove, self.artifacts, trace)

    async def another_page(self, context: BrowserContext) -> Page:
        """One more page in a context that is open; errors as of `open`."""
        try:
            async with asyncio.timeout(OPEN_S):
                page = await context.new_page()
        except TimeoutError:
            raise self._hangs() from None
        except PlaywrightError as error:
            if await self._is_alive():
                raise BrowserGone(f"the shared context was lost: {first_line(error)}") from None
            raise self._loss() from None
        return page

    async def page_session(self, page: Page) -> CDPSession | None:
        """What a page can be asked with below Playwright; None: the browser is no Chromium."""
        return None if self._session is None else await page.context.new_cdp_session(page)

    def doubt(self) -> None:
        """A call failed as if the browser had died: look now."""
        self._doubted.set()

    def _rest(self) -> None:
        if not self._open and not self._opening:
            self._idle.set()

    async def wait_idle(self) -> None:
        """Wait until no page is open or being opened, or the browser is gone."""
        idle = asyncio.get_running_loop().create_task(self._idle.wait(), name="wait for the last page")
        try:
            await asyncio.wait((idle, self.gone), return_when=asyncio.FIRST_COMPLETED)
        finally:
            idle.cancel()

    def retire(self, reason: str) -> None:
        """Take no new pages; those that are open stay."""
        if not self.ended.done():
            log.info("browser retired", reason=reason, version=self.version, pages=self._opened)
            self.ended.set_result(reason)

    async def close(self) -> None:
        """End the browser and its driver; what does not leave within 5 s is killed. May be called again."""
        self._lose("it was closed")
        self._watching.cancel()
        await asyncio.wait((self._watching,))
        with contextlib.suppress(TimeoutError, PlaywrightError):
            async with asyncio.timeout(CLOSE_S):
                await self.browser.close()
        if self.process is not None:
            self.process.kill()
        await self.driver.stop()
        await self._ledger.strike(self.process, self.profile, self.artifacts)

    async def _open_page(self, arguments: dict[str, Any], dress: Dress | None) -> tuple[BrowserContext, Page]:
        try:
            async with asyncio.timeout(OPEN_S):
                context = await self.browser.new_context(**arguments)
                try:
                    if dress is not None:
                        await dress(context)
                    page = await context.new_page()
                except BaseException:
                    await self._close_context(context)
                    raise
        except TimeoutError:
            raise self._hangs() from None
        except PlaywrightError as error:
            if await self._is_alive():
                raise InvalidArguments(f"the browser refused the page options: {first_line(error)}") from None
            raise self._loss() from None
        return context, page

    def _hangs(self) -> PoolTimeout:
        self.retire(f"it did not open a page within {OPEN_S:g} s")
        return PoolTimeout(f"the browser did not open a page within {OPEN_S:g} s")

    async def _close_context(self, context: BrowserContext, *, traced: bool = False) -> None:
        try:
            async with asyncio.timeout(CLOSE_S):
                if traced:  # until it is stopped, the driver remembers its calls and those of all others
                    with contextlib.suppress(PlaywrightError, TimeoutError):
                        async with asyncio.timeout(STOP_TRACE_S):
                            await context.tracing.stop()
                await context.close()
        except TimeoutError:
            self.retire(f"a context did not close within {CLOSE_S:g} s")
        except PlaywrightError as error:
            if await self._is_alive():
                self.retire(f"a context did not close: {first_line(error)}")

    async def _watch(self) -> None:
        while await self._is_alive():
            await self._weigh()
            self._doubted.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(HEARTBEAT_S):
                    await self._doubted.wait()

    async def _weigh(self) -> None:
        """Whether it has grown too old or too large."""
        age_s = asyncio.get_running_loop().time() - self._born
        if age_s >= self._limits.age_s:
            self._wear(f"it has run for {age_s:.0f} s")
        if self.process is None or self.worn.done():
            return
        with contextlib.suppress(TimeoutError, PlaywrightError):
            async with asyncio.timeout(ANSWER_S):
                used = resident_bytes(await self._pids(self.process.pid))
            if used >= self._limits.memory_bytes:
                self._wear(f"it uses {used >> 20} MiB")

    async def _pids(self, main: int) -> Iterable[int]:
        """Its processes."""
        if self._session is None:
            return await asyncio.to_thread(family, main)
        return await running_pids(self._session)

    def _wear(self, reason: str) -> None:
        if not self.worn.done():
            self.worn.set_result(reason)

    async def _is_alive(self) -> bool:
        """Ask it. When a driver dies, it tells nobody; calls just fail."""
        if self.gone.done():
            return False
        try:
            async with asyncio.timeout(ANSWER_S):
                await self._ask()
        except TimeoutError:
            self._lose(f"it did not answer for {ANSWER_S:g} s")
        except PlaywrightError:
            self._lose("the browser or its driver ended")
        return not self.gone.done()

    async def _ask(self) -> None:
        """The simplest question: to Chromium for its version; to others, who take no questions, for a context."""
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
    """Really launch the browser, or connect to it, open a page and run a script in it; answers the browser's version.

    Raises:
        BrowserError: it cannot be used; the message says why.
    """
    browser = await Instance.start(source or BrowserSource())
    try:
        async with asyncio.timeout(OPEN_S):
            page = (await browser.open(PageOptions(), _keep)).page
            answer = await page.evaluate("6 * 7")
    except (PlaywrightError, TimeoutError) as error:
        raise BrowserGone(f"the browser started, but a page does not work: {first_line(error)}") from None
    finally:
        await browser.close()
    if answer != 42:
        raise BrowserError("the browser runs no scripts")
    return browser.version


def _remove(folder: Path, start: str) -> None:
    with contextlib.suppress(OSError):  # the browser may end meanwhile, and take the folder along
        for path in folder.glob(f"{start}*"):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _keep(_: PageLease) -> asyncio.Task[None]:
    raise NotImplementedError("a probe's page closes with its browser")
