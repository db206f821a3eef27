"""The poller of one queue: claims what is due, and sleeps in between until something is pushed."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from cplane.errors import QueueUnavailable
from cplane.redis.messages import Ack, Claim
from cplane.redis.queue import Queue
from cplane.runtime.cancellation import cancel_all

POLL_INTERVAL_S = 3.0
"""How often a sleeping worker polls without being woken: a plain arq client wakes nobody."""

BURST_POLL_INTERVAL_S = 0.05
"""The same for a burst worker, which stops as soon as nothing is left."""

NUDGE_TIMEOUT_S = 1.0
"""How long a worker that stops waits for the claim that it slept on. A lease whose reply is lost ends by itself."""

T = TypeVar("T")


class Poller:
    """Polls one queue. While it sleeps it may have sent its next claim already: woken, it has claimed.

    Args:
        queue: Redis.
        name: the queue's name.
        lease_s: how long a lease is.
        stopping: set when the worker stops; it ends every sleep.
        burst: whether the worker stops as soon as nothing is left.
        looks_first: whether the capacity must be checked after a sleep; then no claim is sent before it.
    """

    def __init__(
        self, queue: Queue, name: str, *, lease_s: float, stopping: asyncio.Event, burst: bool, looks_first: bool
    ) -> None:
        self._queue = queue
        self._name = name
        self._lease_s = lease_s
        self._stopping = stopping
        self._burst = burst
        self._looks_first = looks_first
        self._stopped: asyncio.Task[bool] | None = None
        self._quiet_until = 0.0
        """Monotonic seconds: until then nothing falls due but what is pushed, and the next claim sleeps."""

    @property
    def looks_first(self) -> bool:
        """Whether the capacity is checked after a sleep, before a claim is sent."""
        return self._looks_first

    async def claim(self, limit: int) -> Claim:
        """Claim what is due; if there was nothing a moment ago, as soon as something is pushed.

        Args:
            limit: how many jobs, at most.
        """
        quiet_s = self._quiet_until - time.monotonic()
        self._quiet_until = 0.0
        if quiet_s <= 0:
            return await self._queue.claim(self._name, limit, self._lease_s)
        sleep_s = min(quiet_s, self._lease_s / 4)  # trust is counted from before the sleep
        claiming = self._queue.sleep_and_claim(self._name, sleep_s, limit, self._lease_s)
        claim = await self._until_stopped(claiming, partial(self._queue.nudge, self._name))
        if claim is None:
            return Claim([], [], [], 0)
        if claim.leases and self._stopping.is_set():  # they came because it was nudged: they are released
            await self._queue.ack([Ack.release(lease) for lease in claim.leases])
            return replace(claim, leases=[])
        return claim

    async def rest(self, wait_s: float | None, *, brought: bool) -> None:
        """Sleep: nothing more is due for `wait_s` seconds unless it is pushed. A worker without capacity must not be woken.

        Args:
            wait_s: as the last claim said; None: nothing is scheduled.
            brought: whether that claim returned anything.
        """
        longest_s = BURST_POLL_INTERVAL_S if self._burst else POLL_INTERVAL_S
        quiet_s = longest_s if wait_s is None else min(wait_s, longest_s)
        if not self.looks_first:
            self._quiet_until = time.monotonic() + quiet_s
        elif not brought:
            await self._until_stopped(self._queue.sleep(self._name, quiet_s))

    async def close(self) -> None:
        """End what is left of the sleeps."""
        if self._stopped is not None:
            await cancel_all([self._stopped])

    async def _until_stopped(
        self, waiting: Coroutine[Any, Any, T], nudge: Callable[[], Awaitable[None]] | None = None
    ) -> T | None:
        """Wait for a reply of Redis. Returns None if the worker stops and none came, even though it was nudged.

        The wait for the stop is kept from one call to the next.
        """
        if self._stopped is None:
            self._stopped = asyncio.create_task(self._stopping.wait(), name=f"stop claiming from {self._name}")
        sleeping = asyncio.create_task(waiting, name=f"sleep until {self._name}")
        try:
            await asyncio.wait((sleeping, self._stopped), return_when=asyncio.FIRST_COMPLETED)
            if nudge is not None and not sleeping.done():
                with suppress(QueueUnavailable, TimeoutError):
                    async with asyncio.timeout(NUDGE_TIMEOUT_S):
                        await nudge()
                        await asyncio.wait([sleeping])
        finally:
            if not sleeping.done():
                await cancel_all([sleeping])
        return None if sleeping.cancelled() else sleeping.result()
