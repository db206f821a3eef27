"""Plain arq functions and arq's cron jobs, run by our worker with arq's own meaning of retries, timeouts and results."""

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, cast

from arq.constants import keep_cronjob_progress
from arq.cron import CronJob
from arq.worker import Function, RetryJob
from arq.worker import Retry as ArqRetry

from cplane.errors import Retry
from cplane.redis.envelope import Envelope
from cplane.redis.messages import Lease

FOR_EVER = 0
"""What Redis is told to keep a result for ever."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainFunction:
    """One entry of `Settings.functions` or `Settings.cron_jobs` that is no `@job`: a coroutine function whose first parameter is arq's ctx."""

    name: str
    function: Any
    timeout_s: float
    max_tries: int
    keep_result_ms: int | None
    """None: not kept; FOR_EVER."""
    keep_lease_ms: int = 0
    """How long an ended cron job's id stays leased: a worker whose clock is late must not run it again."""
    retry: bool = True
    needs_page: bool = False

    @classmethod
    def of_arq(
        cls,
        entry: Function | CronJob,
        *,
        timeout_s: float,
        max_tries: int,
        keep_result_s: float,
        keep_forever: bool,
        retry: bool,
    ) -> "PlainFunction":
        """What arq was told, with the worker's defaults for what it was not."""
        forever = keep_forever if entry.keep_result_forever is None else entry.keep_result_forever
        kept_s = keep_result_s if entry.keep_result_s is None else entry.keep_result_s
        return cls(
            name=entry.name,
            function=entry.coroutine,
            timeout_s=float(timeout_s if entry.timeout_s is None else entry.timeout_s),
            max_tries=max_tries if entry.max_tries is None else entry.max_tries,
            keep_result_ms=FOR_EVER if forever else (int(kept_s * 1000) or None),
            keep_lease_ms=int(keep_cronjob_progress * 1000) if isinstance(entry, CronJob) else 0,
            retry=retry,
        )

    def call(self, args: bytes | Envelope, lease: Lease, number: int, shared: dict[Any, Any]) -> Awaitable[object]:
        """Start the function with arq's ctx."""
        envelope = cast("Envelope", args)
        ctx = {
            **shared,
            "job_id": lease.id,
            "job_try": number,
            "enqueue_time": datetime.fromtimestamp(envelope.et / 1000, tz=UTC),
            "score": lease.due_ms,
        }
        return cast("Awaitable[object]", self.function(ctx, *envelope.a, **envelope.k))

    def retry_in_s(self, error: BaseException) -> float | None:
        """arq's rule: what asks for it, and what was cancelled, is queued again; every other error is final.

        After the last try too: who claims it then finds `max_tries` spent, and that is what it fails with.
        """
        if not self.retry:
            return None
        if isinstance(error, ArqRetry):
            return (error.defer_score or 0) / 1000
        if isinstance(error, Retry):
            return max(0.0, error.delay or 0.0)
        return 0.0 if isinstance(error, RetryJob | asyncio.CancelledError) else None
