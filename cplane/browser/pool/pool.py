"""The pool: a fixed number of isolated pages from a few watched browsers, ready before they are asked for."""

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import structlog
from playwright.async_api import Page

from cplane.browser.engine.fleet import BrowserSupervisor
from cplane.browser.engine.instance import CLOSE_S, Instance, Limits
from cplane.browser.engine.launch import BrowserSource
from cplane.browser.lease import PageLease
from cplane.browser.pool.shared import SharedContext
from cplane.browser.pool.sharing import SharedContexts
from cplane.browser.pool.slots import FairSemaphore
from cplane.browser.pool.stock import Ready, WarmPages
from cplane.egress import EgressProxy, Gate, Upstream
from cplane.errors import BrowserGone, CplaneError, InvalidArguments, PoolTimeout, UsageError
from cplane.jobs.page_options import PageOptions, Trace
from cplane.runtime.cancellation import end

T = TypeVar("T")

OPEN_TRIES = 3
"""Browsers that may die one after the other while one page is opened."""
REST_S = 0.2
"""For so long the processor is left to who has just got a page, before the next one is prepared."""

log = structlog.get_logger("cplane")


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolStats:
    """The pool at one moment."""

    max_pages: int
    free: int
    """Pages that can be acquired now."""
    open: int
    """FairSemaphore in use: pages that are lent, being opened or being closed."""
    parking: int
    """Shared pages that were given back and are being seen to; most of them hold no slot."""
    warm: int
    """Pages that are ready for who asks next."""
    waiting: int
    browsers: int
    """Browsers that take new pages."""
    launches: int
    """Browsers launched so far."""
    lost: int
    """Browsers that ended by themselves."""
    retired: int
    """Browsers that were replaced: worn out, or no longer to be trusted."""
    lent: int
    """Pages lent so far."""
    lent_warm: int
    """Those of them that were ready when they were asked for."""
    browser_version: str | None
    """None while there is no browser."""


class BrowserPool:
    """At most `max_pages` pages at once, each in a fresh context of its own; who waits is served in order.

    `async with BrowserPool() as pool:` launches the browsers. One that dies is replaced by the pool itself; the pages it
    took along are lost (`BrowserGone`). One that is worn out is replaced before it takes no more pages.

    Args:
        max_pages: pages at once.
        browsers: browsers that share them.
        warm: pages kept ready beyond those in use, of the options that are asked for most; default: half of `max_pages`.
        executable: the browser's binary; default: looked up.
        sandbox: Chromium's sandbox; default: on unless root.
        source: how browsers are had, when there is more to say than their binary.
        limits: when a browser is replaced.
        egress: what holds pages to the addresses they may reach; default: nothing does. It is open as long as the pool is.
        trace: what is recorded of pages whose options do not say: on, with snapshots of the page; on-failure, without; off, nothing.
        wait_s: seconds `acquire_page` waits for a page at most.
    """

    def __init__(
        self,
        max_pages: int = 4,
        *,
        browsers: int = 1,
        warm: int | None = None,
        executable: Path | None = None,
        sandbox: bool | None = None,
        source: BrowserSource | None = None,
        limits: Limits | None = None,
        egress: EgressProxy | None = None,
        trace: Trace = "off",
        wait_s: float = 30.0,
    ) -> None:
        if max_pages < 1 or wait_s <= 0:
            raise UsageError(f"a pool has 1 or more pages and waits more than 0 s, not {max_pages} and {wait_s}")
        if not 1 <= browsers <= max_pages or (warm is not None and warm < 0):
            raise UsageError(f"{max_pages} pages need 1 to {max_pages} browsers and 0 or more warm pages")
        self.wait_s = wait_s
        self._limits = limits or Limits()
        source = source or BrowserSource(executable=executable, sandbox=sandbox)
        self._on_server = source.server_url is not None
        self._fleet = BrowserSupervisor(
            _source(source, egress),
            browsers,
            self._limits,
            changed=self._changed,
            parted=self._part,
        )
        self._egress = egress
        self._trace: Trace = trace
        self._slots = FairSemaphore(max_pages)
        self._stock = WarmPages((max_pages + 1) // 2 if warm is None else warm)
        self._stock.expect(self._decided(PageOptions()))
        self._sharing = SharedContexts(
            partial(self._open_page, shared=True),
            owner=self._fleet.owner,
            most_uses=self._limits.pages,
            park=self._park,
            free_slot=self._free_slot,
            tend=self._tend,
        )
        self._tasks: set[asyncio.Task[Any]] = set()
        self._staying: set[PageLease] = set()
        """Pages that gave up their slots and are not released yet."""
        self._parking = 0
        """Shared pages that were given back and are being seen to."""
        self._resting: asyncio.TimerHandle | None = None
        """A page was lent a moment ago."""
        self._has_free = asyncio.Event()
        self._entered = self._open = False
        self._lent = self._lent_warm = 0

    async def __aenter__(self) -> Self:
        """Launch the first browser; the others follow.

        Raises:
            BrowserNotFound: there is none.
            BrowserGone: it does not start.
        """
        if self._entered:
            raise UsageError("a pool is opened once", hint="make another BrowserPool")
        self._entered = True
        try:
            await self._fleet.start()
        except BaseException:
            await self._fleet.close()
            raise
        self._open = True
        self._changed()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close everything; pages that are still lent are lost. It is finished even if it is cancelled."""
        self._open = False
        closing = asyncio.get_running_loop().create_task(self._close(), name="close browser pool")
        try:
            await asyncio.shield(closing)
        except asyncio.CancelledError:
            await asyncio.wait([closing])  # every step of it has its deadline
            raise

    @property
    def browsers(self) -> list[Instance]:
        """The browsers that new pages come from, those with the fewest pages first."""
        return self._fleet.browsers

    @property
    def free(self) -> int:
        """Pages that could be acquired right now; 0 while there is no browser."""
        return self._slots.free if self._open and self.browsers else 0

    async def wait_free(self) -> None:
        """Wait until `free` is at least 1; also answers when the pool is closed."""
        await self._has_free.wait()

    def expect(self, options: PageOptions) -> None:
        """Pages with these options will be asked for: keep some ready."""
        if options.mode == "fresh":
            self._stock.expect(self._decided(options))
            self._changed()

    def stats(self) -> PoolStats:
        """The pool as it is now."""
        browsers = self.browsers
        return PoolStats(
            max_pages=self._slots.size,
            free=self.free,
            open=self._slots.used,
            parking=self._parking,
            warm=self._stock.open,
            waiting=self._slots.waiting,
            browsers=len(browsers),
            launches=self._fleet.launches,
            lost=self._fleet.lost,
            retired=self._fleet.retired,
            lent=self._lent,
            lent_warm=self._lent_warm,
            browser_version=browsers[0].version if browsers else None,
        )

    # lending

    @asynccontextmanager
    async def page(
        self, options: PageOptions | None = None, *, scope: str = "", storage_state: Mapping[str, Any] | None = None
    ) -> AsyncGenerator[Page]:
        """A page for the length of a block; its loss interrupts the block with `PageCrashed` or `BrowserGone`.

        Raises:
            PoolTimeout: none became free, or none could be opened, in time.
            BrowserGone: the pool is closed.
            InvalidArguments: the browser refuses the options.
        """
        async with await self.acquire_page(options, scope=scope, storage_state=storage_state) as page:
            yield page

    async def acquire_page(
        self, options: PageOptions | None = None, *, scope: str = "", storage_state: Mapping[str, Any] | None = None
    ) -> PageLease:
        """A page until it is released; errors as of `page`. Cancelled at any moment, it leaves nothing behind.

        Args:
            options: how the page is set up.
            scope: with isolation "shared": those who name the same scope, and the same options, share a context.
            storage_state: cookies and storage the context begins with, as Playwright's `context.storage_state()` answers them.
        """
        self._check_open()
        options = self._decided(options or PageOptions())
        deadline = asyncio.get_running_loop().time() + self.wait_s
        try:
            async with asyncio.timeout_at(deadline):
                await self._take_slot()
        except TimeoutError:
            message = f"none of {self._slots.size} pages became free within {self.wait_s:g} s"
            raise PoolTimeout(message, hint="CPLANE_BROWSER_PAGES and CPLANE_BROWSER_WAIT_S set both") from None
        if options.mode == "fresh" and storage_state is None and (lease := self._take_ready(options)) is not None:
            return lease
        opening = self._spawn(self._provide(options, deadline, scope, storage_state), "provide page")
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if opening.cancelled() and not (task and task.cancelling()):
                raise BrowserGone("the pool was closed while it opened a page") from None
            opening.add_done_callback(_release_unclaimed)
            raise

    def _take_ready(self, options: PageOptions) -> PageLease | None:
        """A page that is ready, at once; None: there is none."""
        key = options.key
        ready = self._stock.take(key)
        if ready is None:
            return None
        if not ready.open:  # on its way: whoever provides a page waits for it
            self._stock.put(ready)
            return None
        self._stock.ask(options)
        lease = ready.opening.result()
        self._lend(lease, warm=True)
        return lease

    async def _provide(
        self, options: PageOptions, deadline: float, scope: str, storage_state: Mapping[str, Any] | None
    ) -> PageLease:
        """With a slot in hand: a page, from the next browser if one dies meanwhile."""
        try:
            for tries_left in reversed(range(OPEN_TRIES)):
                try:
                    if options.mode == "shared":
                        lease = await self._sharing.lend(options, deadline, scope)
                    elif options.mode == "fresh" and storage_state is None:
                        lease = await self._await_ready(options) or await self._open_page(options, deadline)
                    else:
                        lease = await self._open_page(options, deadline, storage_state)
                except BrowserGone:
                    if not tries_left:
                        raise
                else:
                    self._lend(lease)
                    return lease
            raise AssertionError
        except BaseException:
            self._return_slot()
            self._changed()
            raise

    async def _await_ready(self, options: PageOptions) -> PageLease | None:
        """A page that is on its way already."""
        self._stock.ask(options)
        ready = self._stock.take(options.key)
        self._changed()
        if ready is None:
            return None
        await asyncio.wait([ready.opening])
        return None if ready.spoiled else ready.opening.result()

    def _lend(self, lease: PageLease, *, warm: bool = False) -> None:
        lease.lent = True
        self._lent += 1
        self._lent_warm += warm
        self._rest()
        self._changed()

    async def _open_page(
        self,
        options: PageOptions,
        deadline: float,
        storage_state: Mapping[str, Any] | None = None,
        *,
        shared: bool = False,
    ) -> PageLease:
        """A page in a new context of the browser that has the fewest."""
        instance = await self._instance(deadline)
        resources = AsyncExitStack()
        arguments: dict[str, Any] = {} if storage_state is None else {"storage_state": storage_state}
        gate = await self._gate(options, resources)
        if gate is not None:
            arguments["proxy"] = {"server": gate.server, "bypass": "<-loopback>"}  # loopback goes by the gate too
        give_back = partial(self._take_back, instance)
        try:
            lease = await instance.open(
                options,
                give_back,
                resources=resources,
                arguments=arguments,
                gate=gate,
                free_slot=self._free_slot,
                shared=shared,
            )
            await _record(lease, options)
        finally:
            self._changed()
        return lease

    async def _gate(self, options: PageOptions, resources: AsyncExitStack) -> Gate | None:
        """The way out for one context; a proxy that the options name stands behind it."""
        if self._egress is None or options.egress == "any":
            return None
        upstream = None
        if (proxy := options.proxy) is not None:
            try:
                upstream = Upstream.read(proxy.server, proxy.username, proxy.password)
            except ValueError as error:
                raise InvalidArguments(f"the proxy cannot be used: {error}") from None
        return await resources.enter_async_context(self._egress.gate(upstream))

    # taking back

    async def _take_slot(self) -> None:
        try:
            await self._slots.acquire()
        finally:
            self._tell()

    def _free_slot(self, lease: PageLease) -> bool:
        """The slot of a page that stays open a little longer goes to the next; of at most as many pages as there are slots."""
        self._staying = {staying for staying in self._staying if not staying.released}
        if not lease.lent or len(self._staying) >= self._slots.size:
            return False
        self._staying.add(lease)
        self._return_slot(lease)
        return True

    def _return_slot(self, lease: PageLease | None = None) -> None:
        """A slot is free again: of a lease, once; of one that got no page."""
        if lease is not None:
            if not lease.lent:
                return
            lease.lent = False
        self._slots.release()
        self._tell()

    def _take_back(self, instance: Instance, lease: PageLease) -> asyncio.Task[None]:
        return self._spawn(self._close_page(instance, lease), "close page")

    async def _close_page(self, instance: Instance, lease: PageLease) -> None:
        """The slot is free again once the page is closed or was given up."""
        try:
            await instance.close_page(lease)
        finally:
            self._return_slot(lease)
            self._rested()

    def _park(self, context: SharedContext, lease: PageLease) -> asyncio.Task[None]:
        return self._spawn(self._park_page(context, lease), "park page")

    async def _park_page(self, context: SharedContext, lease: PageLease) -> None:
        """The slot is free at once, and whoever is next gets another page of the context; of at most as many pages as there are slots."""
        self._parking += 1
        try:
            if self._parking <= self._slots.size:
                self._return_slot(lease)
            await context.take_back(lease)
        finally:
            self._parking -= 1
            self._return_slot(lease)
            self._sharing.settle(context)
            self._changed()

    def _tend(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        return self._spawn(work, "tend shared pages")

    # pages that are ready

    def _restock(self) -> None:
        """Close the pages nobody will ask for, and open those that will be asked for; both off the path of any job.

        What a page is opened with is the same processor that a job's page is visited with. So no more is opened than could be lent now, and one
        for whoever is next; and while one was lent a moment ago, nothing but what the next who asks needs.
        """
        for ready in self._stock.surplus():
            _discard_ready(ready)
        if not self._open or not self.browsers:
            return
        missing, stocked = self._stock.missing(), len([*self._stock])
        if self._resting is None:
            missing = missing[: max(0, max(1, self._slots.free) - stocked)]
        else:
            missing = missing[:1] if self._slots.free and not stocked else []
        for options in missing:
            opening = self._spawn(self._prepare(options), "prepare page")
            self._stock.put(Ready(options.key, opening))

    def _rest(self) -> None:
        if self._resting is not None:
            self._resting.cancel()
        self._resting = asyncio.get_running_loop().call_later(REST_S, self._rested)

    def _rested(self) -> None:
        """A page was given back, or had its start: see to the next ones."""
        if self._resting is not None:
            self._resting.cancel()
            self._resting = None
        self._changed()

    async def _prepare(self, options: PageOptions) -> PageLease:
        try:
            return await self._open_page(options, asyncio.get_running_loop().time() + self.wait_s)
        except InvalidArguments:
            self._stock.forget(options.key)
            self._changed()
            raise

    # browsers

    async def _instance(self, deadline: float) -> Instance:
        try:
            async with asyncio.timeout_at(deadline):
                instance = await self._fleet.wait()
        except TimeoutError:
            message = f"there is no browser after {self.wait_s:g} s: {self._fleet.trouble}"
            raise PoolTimeout(message) from None
        if instance is None:
            raise _closed()
        return instance

    def _part(self, old: Instance) -> None:
        """A browser takes no more pages: what it has ready, or shares, is given up."""
        self._sharing.part_with(old)
        for ready in self._stock:
            if ready.open and old.has(ready.opening.result()):
                self._stock.remove(ready)
                _discard_ready(ready)

    # the end, and helpers

    async def _close(self) -> None:
        """Send the waiters away, end the browsers and with them the pages, and see every task end."""
        self._slots.dismiss(_closed)
        self._rested()
        self._stock.clear()
        self._sharing.clear()
        await self._fleet.close()
        rest = list(self._tasks)
        if rest:
            await asyncio.wait(rest, timeout=CLOSE_S)
        await end(rest)

    def _decided(self, options: PageOptions) -> PageOptions:
        """Options with what is recorded. A server of Playwright's keeps the files of all traces: there it is only what is likely to be needed."""
        trace = options.trace or self._trace
        if trace == "on-failure" and self._on_server:
            trace = "off"
        return options if trace == (options.trace or "off") else options.model_copy(update={"trace": trace})

    def _check_open(self) -> None:
        if not self._open:
            raise _closed()

    def _changed(self) -> None:
        """A browser came or went, or a page did: tell whoever waits, and see to the pages that are to be ready."""
        self._restock()
        self._tell()

    def _tell(self) -> None:
        """Let `wait_free` know."""
        if self.free or not self._open:
            self._has_free.set()
        else:
            self._has_free.clear()

    def _spawn(self, work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._settle)
        return task

    def _settle(self, task: asyncio.Task[Any]) -> None:
        """A task has ended. What fails belongs to who waits for it, if anybody still does; a fault of ours is told."""
        self._tasks.discard(task)
        if task.cancelled() or not (error := task.exception()) or isinstance(error, CplaneError):
            return
        log.error("the browser pool failed", step=task.get_name(), exc_info=error)


def _source(source: BrowserSource, egress: EgressProxy | None) -> BrowserSource:
    """With egress, nothing may go past the proxy: no QUIC, and no UDP of WebRTC."""
    if egress is None:
        return source
    if source.remote and not source.local:
        hint = "set CPLANE_EGRESS=off when that machine's own network holds pages back"
        raise UsageError(f"the browser at {source.place} cannot use the egress proxy of this machine", hint=hint)
    return replace(source, proxied=True)


async def _record(lease: PageLease, options: PageOptions) -> None:
    """A trace begins before anybody has the page: whoever gets it waits for nothing."""
    if options.trace in {None, "off"}:
        return
    try:
        await lease.trace(snapshots=options.trace == "on")
    except BaseException:
        lease.release()
        raise


def _closed() -> BrowserGone:
    return BrowserGone("the browser pool is closed", hint="use it inside `async with BrowserPool() as pool:`")


def _discard_ready(ready: Ready) -> None:
    """Close a page nobody has asked for."""
    ready.opening.add_done_callback(_release_unclaimed)


def _release_unclaimed(opening: asyncio.Task[PageLease]) -> None:
    """Nobody wants the page any more: take it back."""
    if not opening.cancelled() and opening.exception() is None:
        opening.result().release()
