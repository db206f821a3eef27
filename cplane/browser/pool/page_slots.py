"""Accounting of a pool's slots: which lease holds one, which gave its slot to the next job, and whether one is free."""

import asyncio
from collections.abc import Callable

from cplane.browser.engine.fleet import BrowserSupervisor
from cplane.browser.lease import PageLease
from cplane.browser.pool.slots import FairSemaphore


class PageSlots:
    """The slots of a pool. A page holds one while it is being opened, leased or closed; a warm page holds none.

    Args:
        size: number of slots.
        supervisor: its browsers; without one, no slot counts as free.
    """

    def __init__(self, size: int, supervisor: BrowserSupervisor) -> None:
        self.size = size
        self.is_open = False
        """Whether the pool leases pages."""
        self._supervisor = supervisor
        self._semaphore = FairSemaphore(size)
        self._yielded: set[PageLease] = set()
        """Leases without a slot whose pages are still in use."""
        self._has_free = asyncio.Event()

    @property
    def free(self) -> int:
        """Slots that can be acquired without waiting; 0 while the pool is closed or has no browser."""
        return self._semaphore.free if self.is_open and self._supervisor.browsers else 0

    @property
    def used(self) -> int:
        """Slots in use."""
        return self._semaphore.used

    @property
    def waiting(self) -> int:
        """Callers that wait for a slot."""
        return self._semaphore.waiting

    async def wait_free(self) -> None:
        """Wait until a slot is free, or the pool is closed."""
        await self._has_free.wait()

    def notify(self) -> None:
        """Wake the callers of `wait_free` if a slot is free; to be called whenever slots or browsers change."""
        if self.free or not self.is_open:
            self._has_free.set()
        else:
            self._has_free.clear()

    async def acquire(self) -> None:
        """Acquire a slot; wait in the queue if none is free."""
        try:
            await self._semaphore.acquire()
        finally:
            self.notify()

    def release(self, lease: PageLease | None = None) -> None:
        """Release the slot of a lease, once; without a lease, that of a caller that got no page."""
        if lease is not None:
            if not lease.holds_slot:
                return
            lease.holds_slot = False
        self._semaphore.release()
        self.notify()

    def yield_slot(self, lease: PageLease) -> bool:
        """Release the slot of a page that stays open a little longer.

        Returns:
            False if the lease has no slot, or if as many pages as there are slots stay open without one already.
        """
        self._yielded = {yielded for yielded in self._yielded if not yielded.released}
        if not lease.holds_slot or len(self._yielded) >= self.size:
            return False
        self._yielded.add(lease)
        self.release(lease)
        return True

    def close(self, error: Callable[[], Exception]) -> None:
        """Grant no more slots; every waiter fails with its own error."""
        self.is_open = False
        self._semaphore.dismiss(error)
        self.notify()
