"""The contexts of a pool that jobs share: one for each scope and set of options, opened for the first who asks."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any

from cplane.browser.engine.instance import Instance
from cplane.browser.lease import PageLease
from cplane.browser.pool.shared import SharedContext
from cplane.jobs.page_options import PageOptions

MOST_SHARED = 8
"""Contexts that are kept; of more, the one that was idle longest is closed."""

Name = tuple[str, str]
"""The scope, and the options' key."""


class SharedContexts:
    """Lends pages of shared contexts.

    Args:
        open_root: opens the page that keeps a context open, until a deadline.
        owner: the browser of a page that is open.
        most_uses: pages that one context lends; the next one goes to a new context.
        park: called when a page of a context is given back; returns the task that sees to it.
        free_slot: passed on to the leases.
        tend: runs the care of idle pages.
    """

    def __init__(
        self,
        open_root: Callable[[PageOptions, float], Awaitable[PageLease]],
        *,
        owner: Callable[[PageLease], Instance],
        most_uses: int,
        park: Callable[[SharedContext, PageLease], asyncio.Task[None]],
        free_slot: Callable[[PageLease], bool],
        tend: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
    ) -> None:
        self._open_root = open_root
        self._owner = owner
        self._most_uses = most_uses
        self._park = park
        self._free_slot = free_slot
        self._tend = tend
        self._contexts: dict[Name, SharedContext] = {}
        """The one used last comes last."""
        self._opening: dict[Name, asyncio.Lock] = {}

    async def lend(self, options: PageOptions, deadline: float, scope: str) -> PageLease:
        """A page of the context that the scope shares. Raises what opening a page raises."""
        name = (scope, options.key)
        async with self._opening.setdefault(name, asyncio.Lock()):
            context = self._contexts.get(name)
            if context is None or not context.usable or context.uses >= self._most_uses:
                self._part(name)
                root = await self._open_root(options, deadline)
                context = self._contexts[name] = SharedContext(self._owner(root), root, options, self._tend)
                self._part_most()
            self._contexts[name] = self._contexts.pop(name, context)
            return await context.lend(partial(self._park, context), self._free_slot)

    def settle(self, context: SharedContext) -> None:
        """A page of a context was given back: close the context, if no more of it are to be lent."""
        kept = context in self._contexts.values()
        if not context.busy and not (kept and context.usable):
            context.close()

    def part_with(self, instance: Instance) -> None:
        """Lend no more pages of a browser."""
        for name in [name for name, context in self._contexts.items() if context.instance is instance]:
            self._part(name)

    def clear(self) -> None:
        """Forget all contexts: their browsers are being closed."""
        self._contexts.clear()

    def _part_most(self) -> None:
        """Close the contexts that were idle longest, when there are too many."""
        idle = [name for name, context in self._contexts.items() if not context.busy]
        for name in idle[: max(0, len(self._contexts) - MOST_SHARED)]:
            self._part(name)
        for name in [name for name, lock in self._opening.items() if name not in self._contexts and not lock.locked()]:
            del self._opening[name]

    def _part(self, name: Name) -> None:
        """Lend no more pages of a context; it closes when those that are lent are given back."""
        context = self._contexts.pop(name, None)
        if context is not None and not context.busy:
            context.close()
