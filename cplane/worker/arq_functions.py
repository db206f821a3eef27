"""Plain arq functions and arq's cron jobs, run by our worker with arq's own rules for retries, timeouts and results."""

import asyncio
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, cast

from arq.constants import keep_cronjob_progress
from arq.cron import CronJob
from arq.worker import Function, RetryJob
from arq.worker import Retry as ArqRetry

from cplane.errors import Retry
from cplane.jobs.definition import Resources
from cplane.jobs.per_host import PerHost
from cplane.jobs.retry import MAX_BACKOFF_S
from cplane.jobs.states import AttemptState, State
from cplane.redis.envelope import Envelope
from cplane.runtime.error_text import Error
from cplane.worker.attempt import Attempt
from cplane.worker.outcome import Outcome
from cplane.worker.runnable import Retention

FOREVER = 0
"""What Redis is told to keep a result for ever."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArqFunction:
    """One entry of `Settings.functions` or `Settings.cron_jobs` that is no `@job`: a coroutine function whose first parameter is arq's ctx.

    A `cplane.worker.runnable.Runnable`.
    """

    name: str
    function: Any
    timeout_s: float
    max_tries: int
    keep_result_ms: int | None
    """None: not kept; FOREVER."""
    keep_lease_ms: int = 0
    """How long the id of a finished cron job stays leased: a worker whose clock is late must not run it again."""
    retry: bool = True
    shared: Mapping[Any, Any] = field(default_factory=dict[Any, Any])
    """arq's ctx, which all functions of a worker share."""
    needs_page: bool = False
    waits: bool = False
    injects: bool = False
    in_thread: bool = False
    retries: int = 0
    wants_session: bool = False
    is_recorded: bool = False

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
        shared: Mapping[Any, Any],
    ) -> "ArqFunction":
        """Read one of arq's entries, with the worker's defaults for what it does not say."""
        forever = keep_forever if entry.keep_result_forever is None else entry.keep_result_forever
        kept_s = keep_result_s if entry.keep_result_s is None else entry.keep_result_s
        return cls(
            name=entry.name,
            function=entry.coroutine,
            timeout_s=float(timeout_s if entry.timeout_s is None else entry.timeout_s),
            max_tries=max_tries if entry.max_tries is None else entry.max_tries,
            keep_result_ms=FOREVER if forever else (int(kept_s * 1000) or None),
            keep_lease_ms=int(keep_cronjob_progress * 1000) if isinstance(entry, CronJob) else 0,
            retry=retry,
            shared=shared,
        )

    def limits(self, defaults: PerHost | None) -> PerHost | None:  # noqa: ARG002  as of every Runnable
        """No limits: arq knows none."""
        return None

    def page_options(self, arguments: Mapping[str, Any]) -> Mapping[str, object]:  # noqa: ARG002  as of every Runnable
        """No options: it has no page."""
        return {}

    def arguments(self, attempt: Attempt) -> dict[str, Any]:  # noqa: ARG002  as of every Runnable
        """Nothing to decode: arq's arguments are used as the envelope has them."""
        return {}

    def given(self, attempt: Attempt) -> object:
        """Return the arguments that were given by name; the others have no names."""
        return cast("Envelope", attempt.envelope).k

    def start(self, attempt: Attempt, arguments: Mapping[str, Any], resources: Resources) -> Awaitable[object]:  # noqa: ARG002  as above
        """Start the function with arq's ctx."""
        envelope, lease = cast("Envelope", attempt.envelope), attempt.lease
        ctx = {
            **self.shared,
            "job_id": lease.id,
            "job_try": attempt.number,
            "enqueue_time": datetime.fromtimestamp(envelope.et / 1000, tz=UTC),
            "score": lease.due_ms,
        }
        return cast("Awaitable[object]", self.function(ctx, *envelope.a, **envelope.k))

    def succeeded(self, result: object) -> Outcome:
        """Return the outcome of a function that returned: its value goes to Redis as arq keeps it."""
        return Outcome(state=State.SUCCEEDED, attempt_state=AttemptState.SUCCEEDED, value=result)

    def retry_in_s(self, error: BaseException, failures: int) -> float | None:  # noqa: ARG002  arq counts tries alone
        """arq's rule: what asks for it, and what was cancelled, is queued again; every other error is final.

        After the last try too: the worker that claims it then finds `max_tries` spent, and that is what it fails with.
        """
        if not self.retry:
            return None
        if isinstance(error, ArqRetry):
            return (error.defer_score or 0) / 1000
        if isinstance(error, Retry):
            return min(max(0.0, error.delay or 0.0), MAX_BACKOFF_S)
        return 0.0 if isinstance(error, RetryJob | asyncio.CancelledError) else None

    def spent(self, attempt: Attempt) -> Outcome | None:
        """Return the failure of a function whose tries are spent."""
        if attempt.number <= self.max_tries:
            return None
        error = Error("JobExecutionFailed", f"max {self.max_tries} retries exceeded")
        return Outcome(state=State.FAILED, attempt_state=AttemptState.FAILED, error=error)

    def next_payload(self, envelope: Envelope | None, outcome: Outcome) -> bytes:  # noqa: ARG002  as of every Runnable
        """No new payload: arq counts tries in a key of their own."""
        return b""

    def retention(self, state: State) -> Retention:  # noqa: ARG002  arq keeps failures for as long as results
        """How long the result and the lease stay in Redis."""
        return Retention(self.keep_result_ms, self.keep_lease_ms)
