"""A page that is leased to one job."""

import asyncio
from collections.abc import Callable, Generator, Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, cast
from uuid import uuid4

import structlog
from playwright.async_api import BrowserContext, Page
from playwright.async_api import Error as PlaywrightError

from cplane.egress import Gate
from cplane.errors import (
    BrowserGone,
    CplaneError,
    EgressBlocked,
    HostUnreachable,
    PageCrashed,
    PageTooLarge,
    PoolTimeout,
)

SOCKS_FAILURES = (
    "ERR_SOCKS_CONNECTION_FAILED",
    "NS_ERROR_PROXY",
    "NS_ERROR_CONNECTION",
    "NS_ERROR_UNKNOWN_PROXY",
    "NS_ERROR_UNKNOWN_HOST",
    "SOCKS",
    "Socks",
)
"""How Chromium, Firefox, WebKit and Playwright's own requests report that a SOCKS proxy did not connect them."""
TRACING_STARTED = "Tracing has been already started"
TRACED_HINT = (
    "hint: cplane records a trace of this page already; for a trace of the job's own, set browser={'trace': 'off'}"
)
MAX_OPEN_POPUPS = 10
"""Windows that a page can have open; further ones are closed."""
MAX_POPUPS = 50
"""Windows that a page can open; one that opens more is lost."""
POPUP_CLOSE_TIMEOUT_S = 5.0
STORAGE_TIMEOUT_S = 10.0
TRACE_START_TIMEOUT_S = 5.0
LOSS_WAIT_S = 2.0
"""How long `cause` waits until the browser's death is detected, after a call failed as if it had died."""
ABORT_WAIT_S = 0.5
"""The same after an aborted navigation: all that is reported of a renderer that dies during one, and of a download."""

log = structlog.get_logger("cplane")


class PageLease:
    """A page that one job has until it is released.

    The caller that acquired it releases it once; releasing it again has no effect. `async with lease as page:` releases
    it at the end, and interrupts its body with `PageCrashed` or `BrowserGone` when the page is lost.

    Args:
        context: Playwright's context of the page.
        page: Playwright's page.
        check_browser: makes the browser's watchdog check it now, instead of at the next heartbeat.
        on_release: called once when the lease is released; returns the task that closes or returns the page.
        resources: what is closed after the context.
        gate: the context's egress gate; None: it has none.
        yield_slot: releases the slot of a page that stays open; returns whether it did.
        shared: whether several jobs use the context.
        explain_crash: returns why the page has crashed, if cplane is the reason; else None.
    """

    def __init__(
        self,
        context: BrowserContext,
        page: Page,
        *,
        check_browser: Callable[[], None],
        on_release: "Callable[[PageLease], asyncio.Task[None]]",
        resources: AsyncExitStack | None = None,
        gate: Gate | None = None,
        yield_slot: "Callable[[PageLease], bool] | None" = None,
        shared: bool = False,
        explain_crash: "Callable[[PageLease], CplaneError | None]" = lambda _: None,
    ) -> None:
        self.context = context
        self.page = page
        self.resources = resources or AsyncExitStack()
        self.gate = gate
        self.holds_slot = False
        """Whether the lease holds one of the pool's slots; a warm page has none."""
        self.traced = False
        """Whether a trace is being recorded."""
        self.trace_name: str | None = None
        """The prefix of the names of its trace's files, set before they are made; None: there are none."""
        self.trace_resources = False
        """Whether its trace has files that other traces of the browser may share."""
        self.ended_well = False
        """Whether the job ended without an error. If so, a shared page goes to the next job immediately, unchecked."""
        self._shared = shared
        self._yield_slot = yield_slot
        self.popups: list[Page] = []
        """Windows that the page opened. In a context of its own, they close with the context."""
        self._closing_popups: set[asyncio.Task[None]] = set()
        self._explain_crash = explain_crash
        self.broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Gets the exception `PageCrashed` or `BrowserGone` when the page is lost; never a result."""
        self._check_browser = check_browser
        self._on_release = on_release
        self._closing: asyncio.Task[None] | None = None
        self._guarded: asyncio.Task[object] | None = None
        self._cancels_before = 0
        self._interrupted = False
        self._watch(page)
        page.on("popup", self._on_popup)
        if not shared:  # the job may open pages itself
            context.on("page", self._watch)

    @property
    def released(self) -> bool:
        """Whether the page was released."""
        return self._closing is not None

    @property
    def lost(self) -> bool:
        """Whether the page crashed or its browser ended."""
        return self.broken.done()

    def release(self) -> None:
        """Release the page. Returns immediately; the pool closes the context."""
        if self._closing is None:
            self._closing = self._on_release(self)

    async def wait_closed(self) -> None:
        """Wait until the context of the released page is closed, or closing it has failed."""
        if self._closing is not None:
            await asyncio.shield(self._closing)

    def lose(self, error: CplaneError) -> None:
        """Mark the page as lost; those that watch `broken` receive the error."""
        if not self.broken.done() and not self.released:
            self.broken.set_exception(error)
            self.broken.exception()  # watching is optional: asyncio must not warn about an error that nobody read

    async def cause(self, error: BaseException) -> BaseException:
        """Find the cause of an error that a job raised.

        A call that is in flight when a browser or a renderer dies fails a moment before the death is detected. So this
        waits up to 2 s if the error looks like that.

        Args:
            error: what the job raised.

        Returns:
            The loss of its page, the host that the egress gate did not connect, or `error` itself.
        """
        if self.traced and any(
            TRACING_STARTED in link.message for link in _chain(error) if isinstance(link, PlaywrightError)
        ):
            error.add_note(TRACED_HINT)
        wait_s = max(map(_loss_wait_s, _chain(error)))
        if not self.broken.done() and wait_s:
            self._check_browser()
            await asyncio.wait([self.broken], timeout=wait_s)
        return self.loss or self._unconnected(error) or error

    def _unconnected(self, error: BaseException) -> EgressBlocked | HostUnreachable | None:
        """The host that the gate did not connect, if that is why a call failed; the browser does not know why."""
        messages = [link.message for link in _chain(error) if isinstance(link, PlaywrightError)]
        if self.gate is None or not any(sign in message for message in messages for sign in SOCKS_FAILURES):
            return None
        blocked = [host for host in self.gate.blocked if any(host.host in message for message in messages)]
        failed = [host for host in self.gate.failed if any(host.host in message for message in messages)]
        if failed and not blocked:
            return HostUnreachable(str(failed[-1]))
        blocked = blocked or self.gate.blocked  # after a redirect, the message names the first address
        return EgressBlocked(str(blocked[-1])) if blocked else None

    def yield_slot(self) -> bool:
        """Release the slot now, so that the next job gets a page before this one is closed.

        Returns:
            False if the slot stays with the lease, because too many pages stay open without a slot already.
        """
        return self._yield_slot is not None and self._yield_slot(self)

    async def trace(self, *, snapshots: bool) -> None:
        """Start a trace for Playwright's trace viewer. If that fails, it is logged and the job continues without one.

        A shared context is not traced, because its trace would show other jobs.

        Args:
            snapshots: record the page before and after each call, and its requests; that costs three times as much.
        """
        if self._shared or self.traced:
            return
        self.trace_name, self.trace_resources = uuid4().hex, snapshots
        try:
            async with asyncio.timeout(TRACE_START_TIMEOUT_S):
                await self.context.tracing.start(
                    name=self.trace_name, snapshots=snapshots, screenshots=False, sources=False
                )
            self.traced = True
        except (PlaywrightError, TimeoutError) as error:
            log.warning("page_not_traced", reason=str(error).partition("\n")[0])

    @contextmanager
    def folder(self) -> Generator[Path]:
        """Make a temporary folder for the length of a block."""
        with TemporaryDirectory(prefix="cplane-trace-", ignore_cleanup_errors=True) as folder:
            yield Path(folder)

    async def storage_state(self) -> dict[str, Any]:
        """Read the cookies, localStorage and IndexedDB of the context, within 10 s.

        Returns:
            The storage state in Playwright's format, as `browser.new_context(storage_state=…)` takes it.

        Raises:
            PageCrashed: the page crashed.
            BrowserGone: the browser ended, or the context was closed.
            PoolTimeout: the browser did not respond in time.
        """
        try:
            async with asyncio.timeout(STORAGE_TIMEOUT_S):
                return cast("dict[str, Any]", await self.context.storage_state(indexed_db=True))
        except TimeoutError:
            raise PoolTimeout(f"the browser did not return its storage state within {STORAGE_TIMEOUT_S:g} s") from None
        except PlaywrightError as error:
            cause = await self.cause(error)
            raise (
                cause if cause is not error else BrowserGone(f"the storage state cannot be read: {error.message}")
            ) from None

    async def __aenter__(self) -> Page:
        self._guarded = cast("asyncio.Task[object]", asyncio.current_task())
        self._cancels_before = self._guarded.cancelling()
        self.broken.add_done_callback(self._interrupt)
        return self.page

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        task, self._guarded = self._guarded, None
        self.ended_well = error is None
        try:
            if self._interrupted and task is not None:
                only_ours = task.uncancel() <= self._cancels_before
                if only_ours and isinstance(error, asyncio.CancelledError) and (loss := self.loss):
                    raise loss from None
            elif isinstance(error, Exception) and (cause := await self.cause(error)) is not error:
                raise cause from error
        finally:
            self.release()

    @property
    def loss(self) -> BaseException | None:
        """Why the page was lost; None: it was not."""
        return self.broken.exception() if self.broken.done() and not self.broken.cancelled() else None

    def _interrupt(self, _: asyncio.Future[None]) -> None:
        if self._guarded is not None and self.loss is not None:
            self._interrupted = True
            self._guarded.cancel()

    def unwatch(self) -> None:
        """Remove the page's listeners: the page continues without this lease."""
        self.page.remove_listener("crash", self._on_crash)
        self.page.remove_listener("popup", self._on_popup)

    def _on_popup(self, popup: Page) -> None:
        self.popups.append(popup)
        popup.on("popup", self._on_popup)
        if self._shared:
            self._watch(popup)
        if len(self.popups) > MAX_POPUPS:
            hint = "they are closed with the job; a page that has to open more can be split into several jobs"
            self.lose(PageTooLarge(f"the page {self.page.url[:200]} opened more than {MAX_POPUPS} windows", hint=hint))
        elif sum(not opened.is_closed() for opened in self.popups) > MAX_OPEN_POPUPS:
            closing = asyncio.get_running_loop().create_task(_close_popup(popup), name="close popup")
            self._closing_popups.add(closing)
            closing.add_done_callback(self._closing_popups.discard)

    def _watch(self, page: Page) -> None:
        page.on("crash", self._on_crash)

    def _on_crash(self, page: Page) -> None:
        hint = "the page may need more memory than there is"
        crashed = PageCrashed(f"the renderer of {page.url[:200]} died", hint=hint)
        self.lose(self._explain_crash(self) or crashed)


async def _close_popup(popup: Page) -> None:
    with suppress(PlaywrightError, TimeoutError):
        async with asyncio.timeout(POPUP_CLOSE_TIMEOUT_S):
            await popup.close()


def _loss_wait_s(error: BaseException) -> float:
    """How long to wait for the loss of the page to be detected after a call failed with this; 0: it looks otherwise."""
    if not isinstance(error, PlaywrightError):
        return 0.0
    if "has been closed" in error.message or "crashed" in error.message:
        return LOSS_WAIT_S
    return ABORT_WAIT_S if "ERR_ABORTED" in error.message or "frame was detached" in error.message else 0.0


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
