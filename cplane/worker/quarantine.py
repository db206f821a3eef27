"""The quarantines of a worker's queues: where jobs wait that were aboard two crashes, to run alone.

A keeper starts a process for a quarantine in which a job is due. It runs one job at a time and nothing else, so a crash of it
is that job's own. A worker without a keeper runs such jobs itself, one at a time of each queue, beside the others: then the
one from the quarantine is to blame.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable

from cplane.jobs.names import quarantine_of
from cplane.runtime.cancellation import wait_first
from cplane.worker.kept import Kept


class Quarantines:
    """The quarantines of the queues that a worker serves.

    Args:
        queues: the queues.
        kept: the link to the keeper; None: this worker runs the jobs itself.
        stopping: set when the worker stops.
    """

    def __init__(self, queues: Iterable[str], kept: Kept | None, stopping: asyncio.Event) -> None:
        self._due = {queue: asyncio.Event() for queue in queues if queue != quarantine_of(queue)}
        self._kept = kept
        self._stopping = stopping

    @property
    def queues(self) -> tuple[str, ...]:
        """The queues that have a quarantine; a quarantine has none of its own."""
        return tuple(self._due)

    @property
    def own(self) -> tuple[str, ...]:
        """The queues whose quarantines this worker serves itself."""
        return self.queues if self._kept is None else ()

    def report(self, queue: str) -> None:
        """Say that a job is due in the quarantine of a queue."""
        if self._kept is None:
            self._due[queue].set()
        else:
            self._kept.report_quarantined(queue)

    async def serve(self, queue: str, claim: Callable[[], Awaitable[None]]) -> None:
        """Serve the quarantine of a queue from when a job is due in it, until the worker stops.

        Args:
            queue: the queue.
            claim: claims from its quarantine, until the worker stops.
        """
        await wait_first(self._due[queue].wait(), self._stopping.wait())
        if not self._stopping.is_set():
            await claim()
