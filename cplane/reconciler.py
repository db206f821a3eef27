"""Mends what faults left behind, every few seconds in every worker; no leader is needed."""

from collections.abc import Iterable, Sequence

import structlog

from cplane.events import Event, Events
from cplane.queue import Push, Pushed, Queue
from cplane.states import State
from cplane.store import Standing, Store

EVERY_S = 5.0
BATCH = 500

log = structlog.get_logger("cplane")


class Reconciler:
    """One pass ends leases of dead workers and schedules what Redis does not hold."""

    def __init__(self, store: Store, queue: Queue, events: Events, queues: Iterable[str]) -> None:
        self._store = store
        self._queue = queue
        self._events = events
        self._queues = tuple(queues)

    async def run(self) -> None:
        """One pass.

        Raises:
            DatabaseUnavailable, QueueUnavailable: the rest is done by the next pass.
        """
        reaped = await self._store.reap(BATCH)
        if reaped:
            log.warning("leases ended without their worker", count=len(reaped))
            await self._schedule([standing for standing in reaped if standing.state is State.QUEUED])
            await self._events.publish([Event(standing.id, standing.state) for standing in reaped])
        for queue in self._queues:
            scheduled = await self._schedule(await self._store.overdue(queue, BATCH))
            if scheduled:
                log.info("jobs that Redis did not hold are scheduled", queue=queue, count=scheduled)

    async def _schedule(self, standings: Sequence[Standing]) -> int:
        pushes = [
            Push.of_record(standing.queue, standing.id, standing.job, standing.due_in_ms) for standing in standings
        ]
        return (await self._queue.enqueue(pushes)).count(Pushed.SCHEDULED)
