"""One Chromium with the driver that steers it: launched together, watched together, replaced together."""

import asyncio
import contextlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Self, TypedDict, cast

import structlog
from playwright.async_api import Browser, BrowserContext, CDPSession, Page
from playwright.async_api import Error as PlaywrightError

from cplane.browser.driver import Driver
from cplane.browser.executable import Executable, find_executable
from cplane.browser.lease import PageLease
from cplane.browser.options import PageOptions
from cplane.browser.process import Process
from cplane.errors import BrowserError, BrowserGone, BrowserNotFound, InvalidArguments, PoolTimeout

LAUNCH_S = 15.0
OPEN_S = 15.0
CLOSE_S = 5.0
ANSWER_S = 20.0
"""A browser that does not answer the simplest question for so long is lost."""
HEARTBEAT_S = 5.0
LOG_PREFIX = re.compile(r"^\[[^\]]*\] *")
"""Process, time and place in the source that Chromium writes before each sentence."""

log = structlog.get_logger("cplane")


class Chromium:
    """A running browser. `ended` is done once it takes no new pages; `gone` once it cannot be used at all."""

    def __init__(self, driver: Driver, browser: Browser, session: CDPSession, process: Process | None) -> None:
        loop = asyncio.get_running_loop()
        self.version = browser.version
        self.process = process
        self.ended: asyncio.Future[str] = loop.create_future()
        """Its result is the reason."""
        self.gone: asyncio.Future[str] = loop.create_future()
        """Its result is the reason."""
        self.driver = driver
        self.browser = browser
        self._session = session
        self._leases: set[PageLease] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._doubted = asyncio.Event()
        """A call failed as if the browser had died: look now, not at the next heartbeat."""
        browser.on("disconnected", self._disconnected)
        self._watching = loop.create_task(self._watch(), name="watch browser")

    @classmethod
    async def launch(cls, executable: Executable, *, sandbox: bool) -> Self:
        """Start a driver and a browser, within 15 s.

        Raises:
            BrowserNotFound: the executable is not there any more.
            BrowserGone: it did not start; the message says why.
        """
        driver = Driver()
        try:
            async with asyncio.timeout(LAUNCH_S):
                playwright = await driver.start()
                browser = await playwright.chromium.launch(
                    executable_path=executable.path,
                    headless=True,
                    chromium_sandbox=sandbox,
                    timeout=LAUNCH_S * 1000,
                    # Ctrl-C reaches the driver too: the browser must outlive it until the worker has drained
                    handle_sigint=False,
                    handle_sigterm=False,
                    handle_sighup=False,
                )
                session = await browser.new_browser_cdp_session()
                process = await _find_process(session)
        except BaseException as error:
            await driver.stop()
            if isinstance(error, TimeoutError):
                raise BrowserGone(f"{executable.path} did not start within {LAUNCH_S:g} s") from error
            if isinstance(error, (PlaywrightError, OSError)):
                raise _launch_error(executable, error) from None
            raise
        driver.process = process.child_of(os.getpid()) if process else None
        return cls(driver, browser, session, process)

    @property
    def pages(self) -> int:
        """Pages that are lent."""
        return len(self._leases)

    async def lend(self, options: PageOptions, give_back: Callable[[PageLease], asyncio.Task[None]]) -> PageLease:
        """Open a page in a context of its own, within 15 s, and lend it.

        Raises:
            InvalidArguments: the browser refuses the options.
            BrowserGone: the browser ended meanwhile.
            PoolTimeout: it did not answer in time; it takes no more pages.
        """
        context, page = await self._open(options)
        lease = PageLease(context, page, doubt=self._doubted.set, give_back=give_back)
        self._leases.add(lease)
        self._idle.clear()
        if self.gone.done():
            lease.lose(self._loss())
        return lease

    async def take_back(self, lease: PageLease) -> None:
        """Close a page that was lent, within 5 s; a browser that cannot takes no more pages."""
        try:
            if not self.gone.done():
                await self._close_context(lease.context)
        finally:
            self._leases.discard(lease)
            if not self._leases:
                self._idle.set()

    async def wait_idle(self) -> None:
        """Wait until no page is lent, or the browser is gone."""
        idle = asyncio.get_running_loop().create_task(self._idle.wait(), name="wait for the last page")
        try:
            await asyncio.wait((idle, self.gone), return_when=asyncio.FIRST_COMPLETED)
        finally:
            idle.cancel()

    def retire(self, reason: str) -> None:
        """Take no new pages; those that are open stay."""
        if not self.ended.done():
            log.warning("browser retired", reason=reason, version=self.version)
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

    async def _open(self, options: PageOptions) -> tuple[BrowserContext, Page]:
        try:
            async with asyncio.timeout(OPEN_S):
                context = await self.browser.new_context(**options.new_context())
                try:
                    page = await context.new_page()
                except BaseException:
                    await self._close_context(context)
                    raise
        except TimeoutError:
            self.retire(f"it did not open a page within {OPEN_S:g} s")
            raise PoolTimeout(f"the browser did not open a page within {OPEN_S:g} s") from None
        except PlaywrightError as error:
            if await self._is_alive():
                raise InvalidArguments(f"the browser refused the page options: {_first_line(error)}") from None
            raise self._loss() from None
        return context, page

    async def _close_context(self, context: BrowserContext) -> None:
        try:
            async with asyncio.timeout(CLOSE_S):
                await context.close()
        except TimeoutError:
            self.retire(f"a context did not close within {CLOSE_S:g} s")
        except PlaywrightError as error:
            if await self._is_alive():
                self.retire(f"a context did not close: {_first_line(error)}")

    async def _watch(self) -> None:
        while await self._is_alive():
            self._doubted.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(HEARTBEAT_S):
                    await self._doubted.wait()

    async def _is_alive(self) -> bool:
        """Ask it. When a driver dies, it tells nobody; calls just fail."""
        if self.gone.done():
            return False
        try:
            async with asyncio.timeout(ANSWER_S):
                await self._session.send("Browser.getVersion")  # pyright: ignore[reportUnknownMemberType]
        except TimeoutError:
            self._lose(f"it did not answer for {ANSWER_S:g} s")
        except PlaywrightError:
            self._lose("the browser or its driver ended")
        return not self.gone.done()

    def _disconnected(self, _: Browser) -> None:
        self._lose("the browser process ended")

    def _lose(self, reason: str) -> None:
        if self.gone.done():
            return
        self.gone.set_result(reason)
        if not self.ended.done():
            self.ended.set_result(reason)
        for lease in self._leases:
            lease.lose(self._loss())

    def _loss(self) -> BrowserGone:
        return BrowserGone(f"the browser was lost: {self.gone.result()}")


async def probe(executable: Path | None = None, *, sandbox: bool | None = None) -> str:
    """Really launch the browser, open a page and run a script in it; answers the browser's version.

    Raises:
        BrowserError: it cannot be used; the message says why.
    """
    found = find_executable(executable)
    browser = await Chromium.launch(found, sandbox=sandboxed(sandbox))
    try:
        async with asyncio.timeout(OPEN_S):
            page = (await browser.lend(PageOptions(), _keep)).page
            answer = await page.evaluate("6 * 7")
    except (PlaywrightError, TimeoutError) as error:
        raise BrowserGone(f"{found.path} started, but a page does not work: {_first_line(error)}") from None
    finally:
        await browser.close()
    if answer != 42:
        raise BrowserError(f"{found.path} runs no scripts")
    return browser.version


def sandboxed(choice: bool | None) -> bool:
    """Whether Chromium's sandbox is on: as told; by default unless root, for whom Chromium refuses it."""
    return os.geteuid() != 0 if choice is None else choice


def _keep(_: PageLease) -> asyncio.Task[None]:
    raise NotImplementedError("a probe's page closes with its browser")


class _RunningProcess(TypedDict):
    type: str
    id: int


class _ProcessInfo(TypedDict):
    processInfo: list[_RunningProcess]


async def _find_process(session: CDPSession) -> Process | None:
    try:
        answer = cast("_ProcessInfo", await session.send("SystemInfo.getProcessInfo"))  # pyright: ignore[reportUnknownMemberType]
    except PlaywrightError:
        return None
    pids = [process["id"] for process in answer["processInfo"] if process["type"] == "browser"]
    return Process.find(pids[0]) if pids else None


def _first_line(error: BaseException) -> str:
    """The sentence of an error of Playwright, without its call and browser logs."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:500]


def _launch_error(executable: Executable, error: PlaywrightError | OSError) -> BrowserError:
    if not executable.path.exists():
        return BrowserNotFound(f"{executable.path} is not there any more", hint="run `cplane browser install`")
    complaint = _complaint(str(error))
    hint = None
    if "sandbox" in complaint.lower():
        hint = "the sandbox wants another user than root, and user namespaces; CPLANE_BROWSER_SANDBOX=0 turns it off"
    elif "error while loading shared libraries" in complaint:
        hint = "libraries are missing: run `cplane browser install`"
    return BrowserGone(f"{executable.path} did not start: {complaint}", hint=hint)


def _complaint(text: str) -> str:
    """The browser's last words, or Playwright's first ones."""
    words = [line.partition("[err]")[2].strip() for line in text.splitlines() if "[err]" in line]
    telling = [line for line in words if "FATAL" in line or "error while loading" in line] or words[-1:]
    complaint = (telling or text.strip().splitlines() or [""])[0]
    return LOG_PREFIX.sub("", complaint)[:300]
