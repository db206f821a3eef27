"""A page that is lent to one job."""

import asyncio
from collections.abc import Callable, Generator, Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, cast
from uuid import uuid4

import structlog
from playwright.async_api import BrowserContext, Page
from playwright.async_api import Error as PlaywrightError

from cplane.egress import Gate
from cplane.errors import BrowserError, BrowserGone, EgressBlocked, HostUnreachable, PageCrashed, PoolTimeout

NOT_CONNECTED = (
    "ERR_SOCKS_CONNECTION_FAILED",
    "NS_ERROR_PROXY",
    "NS_ERROR_CONNECTION",
    "NS_ERROR_UNKNOWN_PROXY",
    "NS_ERROR_UNKNOWN_HOST",
    "SOCKS",
    "Socks",
)
"""How Chromium, Firefox, WebKit and Playwright's own requests say that a SOCKS proxy did not connect them."""
ALREADY = "Tracing has been already started"
TRACED_HINT = (
    "hint: cplane records a trace of this page already; a job that wants its own says browser={'trace': 'off'}"
)
STATE_S = 10.0
TRACE_S = 5.0
DOUBT_S = 2.0
"""How long `cause` waits for the browser's death to be noticed, after a call failed as if it had died."""
ABORT_S = 0.5
"""The same for a navigation that was aborted: a renderer that dies on the way says no more, and neither does a download."""


log = structlog.get_logger("cplane")


class PageLease:
    """A page in a context of its own, until it is released.

    Whoever acquired it releases it, once; releasing again changes nothing. `async with lease as page:` releases at the
    end, and interrupts its body with `PageCrashed` or `BrowserGone` when there is no page to work with any more.
    """

    def __init__(
        self,
        context: BrowserContext,
        page: Page,
        *,
        doubt: Callable[[], None],
        give_back: "Callable[[PageLease], asyncio.Task[None]]",
        resources: AsyncExitStack | None = None,
        gate: Gate | None = None,
        free_slot: "Callable[[PageLease], bool] | None" = None,
        shared: bool = False,
    ) -> None:
        self.context = context
        self.page = page
        self.resources = resources or AsyncExitStack()
        """What is closed after the context."""
        self.gate = gate
        """The context's way out; None: there is no proxy of ours before it."""
        self.lent = False
        """Whether a job has the page, and with it one of the pool's slots; a page that is kept ready has none."""
        self.traced = False
        """Whether a trace is being recorded."""
        self.trace_name: str | None = None
        """How the files of its trace begin, from before they are made; None: there are none."""
        self.trace_resources = False
        """Whether its trace has files that it may share with other traces of the browser."""
        self.ended_well = False
        """Whether the job ended without an error: then a page that is shared goes to the next at once, and is asked meanwhile."""
        self._shared = shared
        self._free_slot = free_slot
        self.popups: list[Page] = []
        """Pages that the page opened, in a context that is shared; in one of its own they close with it."""
        self.broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Gets a `PageCrashed` or `BrowserGone` when the page is lost; never a result."""
        self._doubt = doubt
        self._give_back = give_back
        self._closing: asyncio.Task[None] | None = None
        self._guarded: asyncio.Task[object] | None = None
        self._cancels_before = 0
        self._interrupted = False
        self._watch(page)
        if shared:
            page.on("popup", self._opened)
        else:
            context.on("page", self._watch)

    @property
    def released(self) -> bool:
        """Whether the page was given back."""
        return self._closing is not None

    @property
    def lost(self) -> bool:
        """Whether there is no page to work with any more."""
        return self.broken.done()

    def release(self) -> None:
        """Give the page back: answers at once, the pool closes the context."""
        if self._closing is None:
            self._closing = self._give_back(self)

    async def wait_closed(self) -> None:
        """Wait until the released page's context is closed, or was given up."""
        if self._closing is not None:
            await asyncio.shield(self._closing)

    def lose(self, error: BrowserError) -> None:
        """The page is lost: whoever watches `broken` learns why."""
        if not self.broken.done() and not self.released:
            self.broken.set_exception(error)
            self.broken.exception()  # nobody has to watch: an unread error is not worth asyncio's warning

    async def cause(self, error: BaseException) -> BaseException:
        """What really happened when a job raised `error`: the loss of its page, a host that was refused, or `error` itself.

        A call under way when a browser or a renderer dies fails a moment before anyone knows why.
        """
        if self.traced and any(ALREADY in link.message for link in _chain(error) if isinstance(link, PlaywrightError)):
            error.add_note(TRACED_HINT)
        doubt_s = max(map(_doubt_s, _chain(error)))
        if not self.broken.done() and doubt_s:
            self._doubt()
            await asyncio.wait([self.broken], timeout=doubt_s)
        return self.loss or self._refusal(error) or error

    def _refusal(self, error: BaseException) -> EgressBlocked | HostUnreachable | None:
        """The host behind a call that failed because the gate did not connect it; the browser itself knows no reason."""
        told = [link.message for link in _chain(error) if isinstance(link, PlaywrightError)]
        if self.gate is None or not any(sign in message for message in told for sign in NOT_CONNECTED):
            return None
        blocked = [host for host in self.gate.blocked if any(host.host in message for message in told)]
        failed = [host for host in self.gate.failed if any(host.host in message for message in told)]
        if failed and not blocked:
            return HostUnreachable(str(failed[-1]))
        blocked = blocked or self.gate.blocked  # a redirect led there: the message names where it began
        return EgressBlocked(str(blocked[-1])) if blocked else None

    def yield_slot(self) -> bool:
        """Let the next job have a page before this one is closed; False: so many pages wait for that already that it must wait."""
        return self._free_slot is not None and self._free_slot(self)

    async def trace(self, *, snapshots: bool) -> None:
        """Record what happens from now on, as Playwright's trace viewer shows it. What fails is told; the job goes on without.

        A context that is shared is not traced: its trace would show the jobs of others.

        Args:
            snapshots: with the page before and after each call, and with its requests; that costs three times as much.
        """
        if self._shared or self.traced:
            return
        self.trace_name, self.trace_resources = uuid4().hex, snapshots
        try:
            async with asyncio.timeout(TRACE_S):
                await self.context.tracing.start(
                    name=self.trace_name, snapshots=snapshots, screenshots=False, sources=False
                )
            self.traced = True
        except (PlaywrightError, TimeoutError) as error:
            log.warning("the page is not traced", reason=str(error).partition("\n")[0])

    @contextmanager
    def folder(self) -> Generator[Path]:
        """A folder for the length of a block."""
        with TemporaryDirectory(prefix="cplane-trace-", ignore_cleanup_errors=True) as folder:
            yield Path(folder)

    async def storage_state(self) -> dict[str, Any]:
        """Cookies, localStorage and IndexedDB of the context, as `browser.new_context(storage_state=…)` takes them, within 10 s.

        Raises:
            PageCrashed, BrowserGone: there is no context to ask any more.
            PoolTimeout: it does not answer.
        """
        try:
            async with asyncio.timeout(STATE_S):
                return cast("dict[str, Any]", await self.context.storage_state(indexed_db=True))
        except TimeoutError:
            raise PoolTimeout(f"the browser did not tell its storage within {STATE_S:g} s") from None
        except PlaywrightError as error:
            cause = await self.cause(error)
            raise (
                cause if cause is not error else BrowserGone(f"the storage cannot be read: {error.message}")
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
                ours = task.uncancel() <= self._cancels_before
                if ours and isinstance(error, asyncio.CancelledError) and (loss := self.loss):
                    raise loss from None
            elif isinstance(error, Exception) and (cause := await self.cause(error)) is not error:
                raise cause from error
        finally:
            self.release()

    @property
    def loss(self) -> BaseException | None:
        """Why there is no page to work with any more; None: there is."""
        return self.broken.exception() if self.broken.done() and not self.broken.cancelled() else None

    def _interrupt(self, _: asyncio.Future[None]) -> None:
        if self._guarded is not None and self.loss is not None:
            self._interrupted = True
            self._guarded.cancel()

    def unwatch(self) -> None:
        """Listen no more: the page goes on without this lease."""
        self.page.remove_listener("crash", self._crashed)
        self.page.remove_listener("popup", self._opened)

    def _opened(self, popup: Page) -> None:
        self.popups.append(popup)
        popup.on("popup", self._opened)
        self._watch(popup)

    def _watch(self, page: Page) -> None:
        page.on("crash", self._crashed)

    def _crashed(self, page: Page) -> None:
        hint = "the page may need more memory than there is"
        self.lose(PageCrashed(f"the renderer of {page.url[:200]} died", hint=hint))


def _doubt_s(error: BaseException) -> float:
    """How long to wait for the news that the page is lost, after a call failed with this; 0: it does not look like that."""
    if not isinstance(error, PlaywrightError):
        return 0.0
    if "has been closed" in error.message or "crashed" in error.message:
        return DOUBT_S
    return ABORT_S if "ERR_ABORTED" in error.message or "frame was detached" in error.message else 0.0


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
