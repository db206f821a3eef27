"""The claimer: leases as many jobs of one queue as there are slots free, and hands each claim to triage.

While the records of one claim are started in Postgres the next claim is in flight in Redis; a queue's slots are claimed in two batches,
so that one runs while the other comes.
"""

import asyncio
import time

import structlog

from cplane.errors import InfrastructureError, SchemaMismatch
from cplane.runtime.cancellation import wait_first
from cplane.worker.browser_pool import WorkerPages
from cplane.worker.burst import Burst
from cplane.worker.leases import LeaseKeeper
from cplane.worker.poller import Poller
from cplane.worker.slots import Slots
from cplane.worker.triage import Triage

INITIAL_BACKOFF_S = 0.1
MAX_BACKOFF_S = 5.0

log = structlog.get_logger("cplane")


class Claimer:
    """Claims from one queue.

    Args:
        queue: its name.
        slots: how many jobs of it may run at once.
        poller: claims, and sleeps while there is nothing.
        triage: takes what was claimed.
        pages: None for a queue whose jobs ask for no page; else only as many jobs are claimed as pages are free.
        lease_keeper: the attempts that run, of which some wait for pages.
        burst: is asked whether to stop when there is nothing to claim.
        stopping: set when the worker stops.
    """

    def __init__(
        self,
        queue: str,
        slots: Slots,
        *,
        poller: Poller,
        triage: Triage,
        pages: WorkerPages | None,
        lease_keeper: LeaseKeeper,
        burst: Burst,
        stopping: asyncio.Event,
    ) -> None:
        self._queue = queue
        self._slots = slots
        self._batch_size = (slots.concurrency + 1) // 2
        self._poller = poller
        self._triage = triage
        self._pages = pages
        self._lease_keeper = lease_keeper
        self._burst = burst
        self._stopping = stopping
        self._processing: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Claim, start, repeat, until stopped; sleep while there is nothing. No outage ends it."""
        backoff_s = INITIAL_BACKOFF_S
        while not self._stopping.is_set():
            try:
                capacity = await self._wait_capacity()
                if capacity and not self._stopping.is_set():
                    await self._claim(min(capacity, self._batch_size))
                backoff_s = INITIAL_BACKOFF_S
            except (InfrastructureError, SchemaMismatch) as error:
                log.warning("claim_failed", queue=self._queue, reason=str(error), retry_in_s=backoff_s)
                await wait_first(asyncio.sleep(backoff_s), self._stopping.wait())
                backoff_s = min(backoff_s * 2, MAX_BACKOFF_S)
        await self._poller.close()
        try:
            await self._processed()
        except (InfrastructureError, SchemaMismatch) as error:
            log.warning("last_claim_not_started", queue=self._queue, reason=str(error))

    async def _wait_capacity(self) -> int:
        """Wait until another job fits. Returns how many do; 0: the worker stops."""
        while not self._stopping.is_set():
            self._slots.expect_free()
            capacity = self._slots.free
            if capacity > 0 and self._pages is None:
                return capacity
            wait_ended = self._lease_keeper.wait_ended
            free_pages = 0 if self._pages is None else self._pages.free - self._lease_keeper.waiting_for_pages
            if min(capacity, free_pages) > 0:
                return min(capacity, free_pages)
            waiting = [self._slots.wait_freed(), self._stopping.wait()]
            if capacity > 0 and self._pages is not None:  # what waits for a page may be of another queue
                waiting.append(wait_ended.wait() if self._pages.free else self._pages.wait_free())
            await wait_first(*waiting)
        return 0

    async def _claim(self, capacity: int) -> None:
        """Claim once. What came is started while the next claim is in flight, but not while the one after it is."""
        if self._slots.spent:
            await self._processed()
            self._stopping.set()
            return
        sent, reserved, claimed = time.monotonic(), self._slots.reserve(capacity), 0
        try:
            claim = await self._poller.claim(len(reserved))
            claimed = len(claim.leases)
        finally:
            reserved.claimed(claimed)
        brought = bool(claim.leases or claim.missing or claim.malformed)
        if brought:
            before, self._processing = self._processing, asyncio.create_task(
                self._triage.process(claim, sent, reserved), name=f"start jobs of {self._queue}"
            )  # fmt: skip
            if before is not None:
                await before
        else:
            await self._processed()
            await self._burst.stop_if_done()
        if claim.wait_s != 0:
            await self._poller.rest(claim.wait_s, brought=brought)
            if not self._poller.looks_first:
                await self._processed()  # with nothing else to do, what would be sent now only delays it

    async def _processed(self) -> None:
        """Wait until what was claimed before is started."""
        before, self._processing = self._processing, None
        if before is not None:
            await before
