"""The runner: takes attempts from the claimers, runs each in its own task, and hands its outcome to the recorder."""

import asyncio
from collections.abc import Sequence

from cplane.redis.events import Event
from cplane.runtime.batch import Batch
from cplane.worker.attempt import CLEANUP_S, Attempt, Stop, run
from cplane.worker.evidence import EvidenceStore
from cplane.worker.hooks import Hooks
from cplane.worker.kept import Kept
from cplane.worker.leases import LeaseKeeper
from cplane.worker.outcome import Outcome
from cplane.worker.recorder import Recorder
from cplane.worker.resources import JobResources
from cplane.worker.watchdog import Watchdog


class Runner:
    """Runs attempts.

    Args:
        resources: opens what a job asks for by type.
        evidence: keeps the evidence of failed browser jobs.
        recorder: takes the outcomes.
        lease_keeper: keeps the leases of the attempts until their outcomes are recorded.
        hooks: arq's hooks around each attempt.
        events: publishes progress.
        watchdog: knows for how long the event loop was blocked.
        kept: the keeper, which is told what runs; None: there is none.
    """

    def __init__(
        self,
        *,
        resources: JobResources,
        evidence: EvidenceStore,
        recorder: Recorder,
        lease_keeper: LeaseKeeper,
        hooks: Hooks,
        events: "Batch[Event, None]",
        watchdog: Watchdog,
        kept: Kept | None = None,
    ) -> None:
        self.resources = resources
        self.evidence = evidence
        self.watchdog = watchdog
        self._recorder = recorder
        self._lease_keeper = lease_keeper
        self._hooks = hooks
        self._events = events
        self._kept = kept
        self._loop = asyncio.get_running_loop()

    def start(self, attempts: Sequence[Attempt]) -> None:
        """Run attempts. Deadlines start when all have made their first step: most jobs that end in it need none."""
        create_task, kept = self._loop.create_task, self._kept
        if kept is not None and attempts:
            kept.board(attempts)
        for attempt in attempts:
            self._lease_keeper.add(attempt)
            coroutine = self._run_between_hooks(attempt) if self._hooks.around_jobs else run(attempt)
            if kept is not None:
                coroutine = kept.tasks.follow(coroutine, attempt.seq)
            attempt.task = create_task(coroutine, name=f"{attempt.job.name} {attempt.lease.id}")
        self._loop.call_soon(_arm, attempts)

    def finish_unstarted(self, attempt: Attempt, outcome: Outcome) -> None:
        """Record an outcome that was decided before the attempt began."""
        self._lease_keeper.add(attempt)
        attempt.seal()
        self.finish(attempt, outcome)

    def finish(self, attempt: Attempt, outcome: Outcome | None) -> None:
        """Let the next job in, and hand the outcome over. None: the lease was lost, and nothing the job did counts."""
        attempt.slot.vacate()
        if outcome is None:
            self._recorder.drop(attempt)
        else:
            self._recorder.post(attempt, outcome)

    def end_wait(self) -> None:
        """Say that an attempt waits for a page no more."""
        self._lease_keeper.end_wait()

    def publish(self, event: Event) -> None:
        """Publish progress, together with what is published at the same time."""
        self._events.post(event)

    async def drain(self, drain_s: float) -> None:
        """Wait up to `drain_s` seconds for running jobs; then stop those that still run, and release them."""
        if running := self.running():
            await asyncio.wait(running, timeout=drain_s)
        for attempt in self._lease_keeper:
            attempt.stop(Stop.RELEASE)
        if running := self.running():
            _, stuck = await asyncio.wait(running, timeout=CLEANUP_S * 2)
            for task in stuck:
                task.cancel()

    def running(self) -> set[asyncio.Task[None]]:
        """The tasks of attempts that have not ended."""
        return {attempt.task for attempt in self._lease_keeper if attempt.task is not None and not attempt.task.done()}

    async def _run_between_hooks(self, attempt: Attempt) -> None:
        try:
            await self._hooks.on_job_start(attempt)
        except asyncio.CancelledError:
            if attempt.stopped is None:
                raise
        await run(attempt)  # stopped in the hook: it ends at once
        await self._hooks.on_job_end(attempt)


def _arm(attempts: Sequence[Attempt]) -> None:
    for attempt in attempts:
        attempt.arm()
