"""Evidence of failed browser jobs: kept as artifacts, within a budget of time; and which jobs are traced because they failed lately."""

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import UUID

import structlog

from cplane.browser import File, PageLease, Trace, collect, collect_trace
from cplane.errors import ArtifactsUnavailable, ArtifactTooLarge, DatabaseUnavailable
from cplane.jobs.states import AttemptState
from cplane.worker.files import JobFiles
from cplane.worker.outcome import Outcome
from cplane.worker.secrets import known_secrets

if TYPE_CHECKING:
    from cplane.worker.attempt import Attempt

BUDGET_S = 5.0
"""From the end of a failed job until its outcome is recorded, whatever the page and the store do."""

SUSPECT_S = 600.0
"""How long after a failure the jobs of its name are traced with snapshots."""

EXPLAINED = frozenset({AttemptState.FAILED, AttemptState.TIMED_OUT, AttemptState.INTERRUPTED})
"""Ends of an attempt of which evidence is kept."""

log = structlog.get_logger("cplane")


class TraceSampler:
    """Decides what is traced. A trace with snapshots costs a sixth more processor time than none: jobs that failed lately get one."""

    def __init__(self, default: Trace) -> None:
        self._default: Trace = default
        self._until: dict[str, float] = {}

    def note(self, job: str) -> None:
        """Note that a job has failed."""
        self._until[job] = time.monotonic() + SUSPECT_S

    def wants(self, wanted: Trace | None) -> Trace:
        """Return what is to be traced, the default included."""
        return self._default if wanted is None else wanted

    def trace(self, wanted: Trace | None, job: str, attempt: int) -> Trace:
        """Return what is traced of an attempt: with snapshots (on) where it is wanted, for a later attempt, or after a recent failure."""
        wanted = self.wants(wanted)
        suspected = attempt > 1 or self._until.get(job, 0.0) > time.monotonic()
        return "on" if suspected and wanted == "on-failure" else wanted


@dataclass(frozen=True, slots=True)
class EvidenceStore:
    """Collects evidence from the page of an attempt and stores it with the record."""

    files: JobFiles
    sampler: TraceSampler

    async def keep(self, attempt: "Attempt", page_lease: PageLease, outcome: Outcome | None) -> None:
        """Keep what the page of a failed job looked like. Slot and page are the next job's already while it is collected."""
        if attempt.record_id is None or outcome is None:
            return
        error = outcome.error
        if error is not None and outcome.attempt_state in EXPLAINED and error.type != "TooManyRequests":
            if outcome.attempt_state is not AttemptState.INTERRUPTED:
                self.sampler.note(attempt.job.name)
            if page_lease.yield_slot():
                attempt.slot.vacate()
            await self._collect(attempt, page_lease, attempt.record_id, f"{error.type}: {error.message}")
        elif attempt.keeps_trace and page_lease.traced:
            await self._collect(attempt, page_lease, attempt.record_id, None)

    async def _collect(self, attempt: "Attempt", page_lease: PageLease, record_id: UUID, error: str | None) -> None:
        """Collect what the page can tell of an error, or its trace alone; what is not stored in time is left out."""
        known = known_secrets(attempt)
        number, within_s = attempt.number, attempt.trusted_until - time.monotonic() - 1.0
        try:
            async with asyncio.timeout(min(BUDGET_S, within_s)):
                files = await (
                    collect_trace(page_lease, number, known)
                    if error is None
                    else collect(page_lease, number, error, known)
                )
                await asyncio.gather(*(self._store(record_id, number, file) for file in files))
        except TimeoutError:
            log.warning("evidence_incomplete", record=str(record_id), attempt=number, reason="out of time")

    async def _store(self, record_id: UUID, attempt: int, file: File) -> None:
        try:
            await self.files.keep(record_id, attempt, file.name, file.data, file.media_type)
        except (ArtifactsUnavailable, ArtifactTooLarge, DatabaseUnavailable) as error:
            log.warning("evidence_not_stored", file=file.name, reason=str(error))
