"""What is kept of a failed browser job: its evidence as artifacts, within a budget; and which jobs are traced because they failed lately."""

import asyncio
import time
from dataclasses import dataclass
from uuid import UUID

import structlog

from cplane.artifacts import ArtifactStore
from cplane.browser import File, PageLease, Trace, collect, collect_trace
from cplane.errors import ArtifactsUnavailable, DatabaseUnavailable
from cplane.postgres.store import Store

BUDGET_S = 5.0
"""From the end of a failed job until its outcome is recorded, whatever the page and the store do."""
SUSPECT_S = 600.0
"""So long after a failure the jobs of its name are traced with snapshots."""

log = structlog.get_logger("cplane")


class TraceSampler:
    """Names of jobs that failed lately. A trace with snapshots costs a sixth more processor time than none: it is made where it is worth that."""

    def __init__(self, default: Trace) -> None:
        self._default: Trace = default
        self._until: dict[str, float] = {}

    def note(self, job: str) -> None:
        """A job has failed."""
        self._until[job] = time.monotonic() + SUSPECT_S

    def wants(self, wanted: Trace | None) -> Trace:
        """What is to be traced, the default included."""
        return self._default if wanted is None else wanted

    def trace(self, wanted: Trace | None, job: str, attempt: int) -> Trace:
        """What is recorded of an attempt: with snapshots (on) what is wanted so, is not the first, or whose like failed lately."""
        wanted = self.wants(wanted)
        suspected = attempt > 1 or self._until.get(job, 0.0) > time.monotonic()
        return "on" if suspected and wanted == "on-failure" else wanted


@dataclass(frozen=True, slots=True)
class EvidenceStore:
    """Where evidence goes: files into the store of artifacts, their names into the record."""

    store: Store
    artifacts: ArtifactStore

    async def keep(
        self, page_lease: PageLease, record_id: UUID, attempt: int, *, error: str | None, within_s: float
    ) -> None:
        """Collect what the page can tell of an error, or without one its trace, and store it; what is not stored in time is left out."""
        try:
            async with asyncio.timeout(min(BUDGET_S, within_s)):
                files = await (
                    collect_trace(page_lease, attempt) if error is None else collect(page_lease, attempt, error)
                )
                await asyncio.gather(*(self._store(record_id, attempt, file) for file in files))
        except TimeoutError:
            log.warning("not all evidence could be kept in time", record=str(record_id), attempt=attempt)

    async def _store(self, record_id: UUID, attempt: int, file: File) -> None:
        try:
            artifact, path = await self.artifacts.put(record_id, attempt, file.name, file.data, file.media_type)
            await self.store.add_artifact(record_id, attempt, artifact, path)
        except (ArtifactsUnavailable, DatabaseUnavailable) as error:
            log.warning("evidence could not be kept", file=file.name, reason=str(error))
