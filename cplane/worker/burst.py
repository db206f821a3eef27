"""Burst mode (arq's `burst`): the worker stops when nothing is queued and nothing runs.

The process of a quarantine stops as soon as nothing is due: what is due later is seen by the workers beside it.
"""

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
    ignores_later: bool = False
    """Whether it stops although jobs are queued, if none of them is due."""

    async def stop_if_done(self) -> None:
        """Stop the worker if no queue holds anything and no attempt is left.

        Raises:
            QueueUnavailable: Redis did not respond.
        """
        if not self.enabled or self.completions.hooks_running or len(self.lease_keeper):
            return
        if self.ignores_later:
            left = [(await self.queue.stats(queue)).ready for queue in self.queues]
        else:
            left = [await self.queue.depth(queue) for queue in self.queues]
        if not any(left):
            self.stopping.set()
