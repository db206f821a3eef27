"""Waits of attempts for other jobs: a queue whose slots are all held by them may be stuck for good, so its worker says so."""

import asyncio
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from cplane.worker.attempt import Attempt

WARN_AFTER_S = 2.0
"""All slots are held by waiting jobs for this long before it is logged: most children end sooner."""

WARN_AGAIN_AFTER_S = 60.0

MAX_NAMED = 5
"""Jobs that a log line names."""

log = structlog.get_logger("cplane")


class Waits:
    """The attempts of one queue that wait for jobs.

    Args:
        concurrency: slots of the queue.
    """

    def __init__(self, concurrency: int) -> None:
        self._concurrency = concurrency
        self._waiting: Counter[Attempt] = Counter()
        self._check: asyncio.TimerHandle | None = None

    @contextmanager
    def wait(self, waiting: "Attempt") -> Generator[None]:
        """Count an attempt as waiting while the block runs. It may wait several times at once."""
        self._waiting[waiting] += 1
        if len(self._waiting) >= self._concurrency and self._check is None:
            self._check = asyncio.get_running_loop().call_later(WARN_AFTER_S, self._warn)
        try:
            yield
        finally:
            self._waiting[waiting] -= 1
            if not self._waiting[waiting]:
                del self._waiting[waiting]

    def _warn(self) -> None:
        """Log it if it lasts, and once a minute while it does."""
        self._check = None
        holders = [attempt for attempt in self._waiting if attempt.slot.occupied]
        if len(holders) < self._concurrency:
            return
        log.warning(
            "slots_held_by_waits",
            queue=holders[0].lease.queue,
            slots=self._concurrency,
            jobs=", ".join(f"{attempt.job.name} {attempt.lease.id}" for attempt in holders[:MAX_NAMED]),
            hint="if they wait for jobs of this queue, give those a queue of their own: no slot is left for them",
        )
        self._check = asyncio.get_running_loop().call_later(WARN_AGAIN_AFTER_S, self._warn)
