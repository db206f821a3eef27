"""Opens pages, each in a new context of the browser with the fewest pages, and closes those that are released."""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

from cplane.browser.engine.fleet import BrowserSupervisor
from cplane.browser.engine.instance import Instance
from cplane.browser.lease import PageLease
from cplane.browser.pool.page_slots import PageSlots
from cplane.browser.pool.tasks import PoolTasks
from cplane.egress import EgressProxy, Gate, Upstream
from cplane.errors import BrowserGone, InvalidArguments, PoolTimeout
from cplane.jobs.page_options import PageOptions


class PageOpener:
    """Opens pages and closes them when they are released.

    Args:
        supervisor: its browsers.
        slots: the slot of a lease is released once its page is closed.
        tasks: runs the closing of pages.
        egress: restricts which addresses pages can reach; None: nothing does.
        wait_s: seconds a caller waits for a browser, for the error message.
        on_change: called when a page was opened, or failed to open.
        on_close: called when a page was closed.
    """

    def __init__(
        self,
        supervisor: BrowserSupervisor,
        slots: PageSlots,
        tasks: PoolTasks,
        *,
        egress: EgressProxy | None,
        wait_s: float,
        on_change: Callable[[], None],
        on_close: Callable[[], None],
    ) -> None:
        self._supervisor = supervisor
        self._slots = slots
        self._tasks = tasks
        self._egress = egress
        self._wait_s = wait_s
        self._on_change = on_change
        self._on_close = on_close

    @property
    def has_browser(self) -> bool:
        """Whether a page can be opened without waiting for a browser."""
        return bool(self._supervisor.browsers)

    def browser_of(self, lease: PageLease) -> Instance:
        """The browser that an open page belongs to."""
        return self._supervisor.owner(lease)

    async def open(
        self,
        options: PageOptions,
        deadline: float,
        storage_state: Mapping[str, Any] | None = None,
        *,
        shared: bool = False,
    ) -> PageLease:
        """Open a page in a new context.

        Args:
            options: how the page is set up.
            deadline: when to stop waiting for a browser, in the event loop's time.
            storage_state: cookies and storage the context begins with, in Playwright's format.
            shared: whether several jobs use the context.

        Raises:
            PoolTimeout: there is no browser at the deadline, or it did not open the page in time.
            BrowserGone: the browser ended while it opened the page, or the pool is closed.
            InvalidArguments: the browser refuses the options, or the proxy they name cannot be used.
        """
        browser = await self._wait_for_browser(deadline)
        resources = AsyncExitStack()
        arguments: dict[str, Any] = {} if storage_state is None else {"storage_state": storage_state}
        gate = await self._open_gate(options, resources)
        if gate is not None:
            arguments["proxy"] = {"server": gate.server, "bypass": "<-loopback>"}  # loopback goes through the gate too
        try:
            lease = await browser.open(
                options,
                partial(self._release, browser),
                resources=resources,
                arguments=arguments,
                gate=gate,
                yield_slot=self._slots.yield_slot,
                shared=shared,
            )
            await _start_trace(lease, options)
        finally:
            self._on_change()
        return lease

    async def _wait_for_browser(self, deadline: float) -> Instance:
        try:
            async with asyncio.timeout_at(deadline):
                browser = await self._supervisor.wait()
        except TimeoutError:
            message = f"there is no browser after {self._wait_s:g} s: {self._supervisor.trouble}"
            raise PoolTimeout(message) from None
        if browser is None:
            raise pool_closed()
        return browser

    async def _open_gate(self, options: PageOptions, resources: AsyncExitStack) -> Gate | None:
        """Open the egress gate of one context; a proxy that the options name is connected behind it."""
        if self._egress is None or options.egress == "any":
            return None
        upstream = None
        if (proxy := options.proxy) is not None:
            try:
                upstream = Upstream.read(proxy.server, proxy.username, proxy.password)
            except ValueError as error:
                raise InvalidArguments(f"the proxy cannot be used: {error}") from None
        return await resources.enter_async_context(self._egress.gate(upstream))

    def _release(self, browser: Instance, lease: PageLease) -> asyncio.Task[None]:
        return self._tasks.spawn(self._close(browser, lease), "close page")

    async def _close(self, browser: Instance, lease: PageLease) -> None:
        """Close a page, and release its slot once that is done or has failed."""
        try:
            await browser.close_page(lease)
        finally:
            self._slots.release(lease)
            self._on_close()


def pool_closed() -> BrowserGone:
    """The error of a caller whose pool is closed."""
    return BrowserGone("the browser pool is closed", hint="use it inside `async with BrowserPool() as pool:`")


def release_unclaimed(opening: asyncio.Task[PageLease]) -> None:
    """Release a page that nobody waits for any more; to be used as a done callback of the task that opens it."""
    if not opening.cancelled() and opening.exception() is None:
        opening.result().release()


async def _start_trace(lease: PageLease, options: PageOptions) -> None:
    """Start the trace before the page is leased, so that its job does not wait for it."""
    if options.trace in {None, "off"}:
        return
    try:
        await lease.trace(snapshots=options.trace == "on")
    except BaseException:
        lease.release()
        raise
