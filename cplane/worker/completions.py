"""Completions: an attempt whose outcome is recorded everywhere is counted, logged, and gives up its lease and slot."""

import asyncio
from typing import Protocol

from cplane.jobs.states import State
from cplane.logs import LogRateLimiter
from cplane.worker.attempt import Attempt
from cplane.worker.hooks import Hooks
from cplane.worker.leases import LeaseKeeper
from cplane.worker.outcome import Outcome

LINES_PER_S = 20
"""Log lines about attempts, at most; under load the others are counted instead."""


class Counters(Protocol):
    """Where finished jobs are counted: arq's attributes of a worker."""

    jobs_complete: int
    jobs_failed: int
    jobs_retried: int


class Completions:
    """The end of the pipeline.

    Args:
        lease_keeper: keeps the leases until here.
        counters: what `arq --check` and the last log line show.
        hooks: arq's `after_job_end`.
    """

    def __init__(self, lease_keeper: LeaseKeeper, counters: Counters, hooks: Hooks) -> None:
        self._lease_keeper = lease_keeper
        self._counters = counters
        self._hooks = hooks
        self._tasks: set[asyncio.Task[None]] = set()
        self._rate_limiter = LogRateLimiter(LINES_PER_S)

    @property
    def hooks_running(self) -> bool:
        """Whether hooks of finished jobs still run."""
        return bool(self._tasks)

    def drop(self, attempt: Attempt) -> None:
        """End an attempt that no longer owned its record."""
        self._release(attempt)
        attempt.log.warning("outcome_dropped", reason="the record was no longer this attempt's")

    def add(self, attempt: Attempt, outcome: Outcome, state: State) -> None:
        """End an attempt whose record is in `state` now."""
        self._release(attempt)
        counters = self._counters
        if state is State.SUCCEEDED:
            counters.jobs_complete += 1
        elif state is State.QUEUED:
            counters.jobs_retried += 1
        else:
            counters.jobs_failed += state is State.FAILED
        if self._rate_limiter.allows():
            self._log(attempt, outcome, state)
        if self._hooks.after_job is not None:
            task = asyncio.create_task(self._hooks.after_job_end(attempt), name=f"after {attempt.lease.id}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def drain(self, timeout_s: float) -> None:
        """Wait up to `timeout_s` seconds for the hooks of finished jobs."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout_s)

    def _release(self, attempt: Attempt) -> None:
        self._lease_keeper.remove(attempt)
        attempt.slot.release()

    def _log(self, attempt: Attempt, outcome: Outcome, state: State) -> None:
        fields: dict[str, object] = {"state": state.value, "outcome": outcome.attempt_state.value}
        if outcome.error is not None:
            fields["error"] = outcome.error.type
        if state is State.QUEUED:
            fields["retry_in_s"] = round(outcome.delay_s, 3)
        if (suppressed := self._rate_limiter.take_suppressed()) > 0:
            fields["suppressed"] = suppressed
        write = attempt.log.info if state is State.SUCCEEDED else attempt.log.warning
        write("attempt_finished", **fields)
