"""Burst mode (arq's `burst`): the worker stops when nothing is queued and nothing runs."""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass

from cplane.redis.queue import Queue
from cplane.worker.completions import Completions
from cplane.worker.leases import LeaseKeeper


@dataclass(frozen=True, slots=True)
class Burst:
    """Stops a burst worker. Of another worker, `enabled` is False and nothing happens."""

    enabled: bool
    queue: Queue
    queues: Iterable[str]
    lease_keeper: LeaseKeeper
    completions: Completions
    stopping: asyncio.Event

    async def stop_if_done(self) -> None:
        """Stop the worker if no queue holds anything and no attempt is left.

        Raises:
            QueueUnavailable: Redis did not respond.
        """
        if not self.enabled or self.completions.hooks_running or len(self.lease_keeper):
            return
        depths = [await self.queue.depth(queue) for queue in self.queues]
        if not any(depths):
            self.stopping.set()
