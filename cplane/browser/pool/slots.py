"""A fixed number of slots and an orderly line of those who wait for one."""

import asyncio
from collections import deque
from collections.abc import Callable


class FairSemaphore:
    """First come, first served. A slot is handed straight from who releases it to who waits longest."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._used = 0
        self._waiters: deque[asyncio.Future[None]] = deque()

    @property
    def free(self) -> int:
        """FairSemaphore that can be taken without waiting."""
        return self.size - self._used

    @property
    def used(self) -> int:
        """FairSemaphore that are taken."""
        return self._used

    @property
    def waiting(self) -> int:
        """How many wait."""
        return sum(not waiter.done() for waiter in self._waiters)

    async def acquire(self) -> None:
        """Take a slot, in turn."""
        if self.free:  # then nobody waits: a released slot goes to a waiter before it is free
            self._used += 1
            return
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        except BaseException:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self.release()  # it was handed over while its taker was being cancelled
            elif waiter in self._waiters:
                self._waiters.remove(waiter)
            raise

    def release(self) -> None:
        """Give a slot back."""
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return
        self._used -= 1

    def dismiss(self, error: Callable[[], Exception]) -> None:
        """Send everybody who waits away, each with an error of his own."""
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_exception(error())
