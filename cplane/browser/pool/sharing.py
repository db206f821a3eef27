"""The shared contexts of a pool: one for each scope and set of options, opened for the first job that needs it."""

import asyncio
from collections.abc import Callable
from functools import partial

from cplane.browser.engine.instance import Instance
from cplane.browser.lease import PageLease
from cplane.browser.pool.opener import PageOpener
from cplane.browser.pool.page_slots import PageSlots
from cplane.browser.pool.shared import SharedContext
from cplane.browser.pool.tasks import PoolTasks
from cplane.jobs.page_options import PageOptions

MAX_SHARED_CONTEXTS = 8
"""Contexts that are kept open; beyond that, the one that was idle longest is closed."""

ContextKey = tuple[str, str]
"""The scope, and the key of the options."""


class SharedContexts:
    """Leases pages of shared contexts.

    Args:
        opener: opens the page that keeps a context open.
        slots: the slots of the pool.
        tasks: runs the return of pages, and the maintenance of idle ones.
        max_uses: pages that one context leases; the next page comes from a new context.
        on_change: called when a page was returned.
    """

    def __init__(
        self,
        opener: PageOpener,
        slots: PageSlots,
        tasks: PoolTasks,
        *,
        max_uses: int,
        on_change: Callable[[], None],
    ) -> None:
        self.returning = 0
        """Released pages that are still being checked."""
        self._opener = opener
        self._slots = slots
        self._tasks = tasks
        self._max_uses = max_uses
        self._on_change = on_change
        self._contexts: dict[ContextKey, SharedContext] = {}
        """In order of use; the one used last comes last."""
        self._opening: dict[ContextKey, asyncio.Lock] = {}

    async def acquire(self, options: PageOptions, deadline: float, scope: str) -> PageLease:
        """Acquire a page of the context that this scope and these options share; errors as of `PageOpener.open`.

        A context with credentials is not shared: it is closed, with its egress gate, when its page is returned.
        """
        if options.has_credentials:
            root = await self._opener.open(options, deadline, shared=True)
            alone = SharedContext(self._opener.browser_of(root), root, options, self._tasks)
            return await alone.acquire(partial(self._return, alone), self._slots.yield_slot)
        key = (scope, options.key)
        async with self._opening.setdefault(key, asyncio.Lock()):
            context = self._contexts.get(key)
            if context is None or not context.usable or context.uses >= self._max_uses:
                self._retire(key)
                root = await self._opener.open(options, deadline, shared=True)
                context = SharedContext(self._opener.browser_of(root), root, options, self._tasks)
                self._contexts[key] = context
                self._retire_surplus()
            self._contexts[key] = self._contexts.pop(key, context)
            return await context.acquire(partial(self._return, context), self._slots.yield_slot)

    def retire(self, browser: Instance) -> None:
        """Lease no more pages of a browser."""
        for key in [key for key, context in self._contexts.items() if context.instance is browser]:
            self._retire(key)

    def clear(self) -> None:
        """Drop all contexts; their browsers are being closed."""
        self._contexts.clear()

    def _return(self, context: SharedContext, lease: PageLease) -> asyncio.Task[None]:
        return self._tasks.spawn(self._return_page(context, lease), "return page")

    async def _return_page(self, context: SharedContext, lease: PageLease) -> None:
        """Return a page to its context.

        Its slot is released at the start: the next job gets another page of the context. That holds for up to as many
        pages as there are slots; beyond that, the slot is released once the page is returned.
        """
        self.returning += 1
        try:
            if self.returning <= self._slots.size:
                self._slots.release(lease)
            await context.return_page(lease)
        finally:
            self.returning -= 1
            self._slots.release(lease)
            self._close_if_retired(context)
            self._on_change()

    def _close_if_retired(self, context: SharedContext) -> None:
        """Close a context that has no leased pages and will lease no more."""
        kept = context in self._contexts.values()
        if not context.busy and not (kept and context.usable):
            context.close()

    def _retire_surplus(self) -> None:
        """Close the contexts that were idle longest, when there are too many."""
        idle = [key for key, context in self._contexts.items() if not context.busy]
        for key in idle[: max(0, len(self._contexts) - MAX_SHARED_CONTEXTS)]:
            self._retire(key)
        for key in [key for key, lock in self._opening.items() if key not in self._contexts and not lock.locked()]:
            del self._opening[key]

    def _retire(self, key: ContextKey) -> None:
        """Lease no more pages of a context; it is closed when its leased pages are returned."""
        context = self._contexts.pop(key, None)
        if context is not None and not context.busy:
            context.close()
