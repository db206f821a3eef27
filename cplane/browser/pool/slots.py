"""A semaphore with a first-in, first-out wait queue."""

import asyncio
from collections import deque
from collections.abc import Callable


class FairSemaphore:
    """A fixed number of slots, granted first come, first served.

    A released slot goes straight to the waiter that has waited longest, so a later caller cannot overtake it.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._used = 0
        self._waiters: deque[asyncio.Future[None]] = deque()

    @property
    def free(self) -> int:
        """Slots that can be acquired without waiting."""
        return self.size - self._used

    @property
    def used(self) -> int:
        """Slots in use."""
        return self._used

    @property
    def waiting(self) -> int:
        """Callers in the wait queue."""
        return sum(not waiter.done() for waiter in self._waiters)

    async def acquire(self) -> None:
        """Acquire a slot; wait in the queue if none is free."""
        if self.free:  # then the queue is empty: a released slot goes to a waiter before it counts as free
            self._used += 1
            return
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        except BaseException:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self.release()  # the slot was granted while the caller was being cancelled
            elif waiter in self._waiters:
                self._waiters.remove(waiter)
            raise

    def release(self) -> None:
        """Release a slot: grant it to the first waiter, if there is one."""
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return
        self._used -= 1

    def dismiss(self, error: Callable[[], Exception]) -> None:
        """Fail every waiter, each with its own error."""
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_exception(error())
