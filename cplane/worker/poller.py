"""Polling a queue: what is due now, or once something is; and the sleep in between, which a push ends."""

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
from cplane.runtime.cancellation import end

SLOW_POLL_S = 3.0
"""How often a sleeping worker looks without being woken: a plain arq client wakes nobody."""

BURST_POLL_S = 0.05
"""The same for a worker that is to leave as soon as nothing is left."""

NUDGE_S = 1.0
"""A worker that stops gives Redis so long to answer the claim that it slept on; a lease whose answer is lost ends with its lease."""

T = TypeVar("T")


class Poller:
    """One queue, for a worker that stops some day. Sleeping, it may have sent its next claim already: woken, it has claimed.

    Args:
        queue: how Redis is asked.
        name: the queue's name.
        lease_s: of what is claimed.
        stopping: set when the worker stops; it ends every sleep.
        burst: whether the worker is to leave as soon as nothing is left.
        looks_first: whether the room for a claim must be looked at after a sleep; then no claim is sent before it.
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
        """Until then (monotonic seconds) nothing falls due that is not pushed meanwhile: the next claim waits for that."""

    @property
    def looks_first(self) -> bool:
        """Whether no claim is sent before its room was looked at."""
        return self._looks_first

    async def claim(self, room: int) -> Claim:
        """What there is to claim; if there was nothing a moment ago, once something is pushed."""
        quiet_s = self._quiet_until - time.monotonic()
        self._quiet_until = 0.0
        if quiet_s <= 0:
            return await self._queue.claim(self._name, room, self._lease_s)
        sleep_s = min(quiet_s, self._lease_s / 4)  # trust is counted from before the sleep
        claiming = self._queue.sleep_and_claim(self._name, sleep_s, room, self._lease_s)
        claim = await self._until_stopped(claiming, partial(self._queue.nudge, self._name))
        if claim is None:
            return Claim([], [], [], 0)
        if claim.leases and self._stopping.is_set():  # they came because it was nudged: they stay where they are
            await self._queue.ack([Ack.release(lease) for lease in claim.leases])
            return replace(claim, leases=[])
        return claim

    async def rest(self, wait_s: float | None, *, brought: bool) -> None:
        """Nothing more is due for so long (None: nothing is scheduled), unless it is pushed. Who may have no room must not be woken.

        Args:
            wait_s: as the last claim said.
            brought: whether that claim brought anything.
        """
        longest_s = BURST_POLL_S if self._burst else SLOW_POLL_S
        quiet_s = longest_s if wait_s is None else min(wait_s, longest_s)
        if not self.looks_first:
            self._quiet_until = time.monotonic() + quiet_s
        elif not brought:
            await self._until_stopped(self._queue.sleep(self._name, quiet_s))

    async def close(self) -> None:
        """End what is left of the sleeps."""
        if self._stopped is not None:
            await end([self._stopped])

    async def _until_stopped(
        self, waiting: Coroutine[Any, Any, T], nudge: Callable[[], Awaitable[None]] | None = None
    ) -> T | None:
        """Wait for an answer of Redis; None: the worker stops, and none came, even though it was nudged.

        The wait for the stop is kept from one to the next.
        """
        if self._stopped is None:
            self._stopped = asyncio.create_task(self._stopping.wait(), name=f"stop claiming from {self._name}")
        sleeping = asyncio.create_task(waiting, name=f"sleep until {self._name}")
        try:
            await asyncio.wait((sleeping, self._stopped), return_when=asyncio.FIRST_COMPLETED)
            if nudge is not None and not sleeping.done():
                with suppress(QueueUnavailable, TimeoutError):
                    async with asyncio.timeout(NUDGE_S):
                        await nudge()
                        await asyncio.wait([sleeping])
        finally:
            if not sleeping.done():
                await end([sleeping])
        return None if sleeping.cancelled() else sleeping.result()
