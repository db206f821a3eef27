"""What a job asks for by type: a page, its browser session, a context, a database session. Opened when the attempt begins."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID

from cplane.browser import PageOptions
from cplane.errors import InvalidArguments, SessionBusy, TooManyArtifacts
from cplane.jobs.context import Artifact, Context, Progress
from cplane.jobs.definition import Resources
from cplane.postgres.transaction import JobTransaction
from cplane.sessions.store import HOLD_S, SessionHold, SessionStore
from cplane.worker.attempt import Attempt, Stop
from cplane.worker.browser_pool import WorkerPages
from cplane.worker.cooldowns import Cooldowns
from cplane.worker.evidence import TraceSampler
from cplane.worker.files import JobFiles
from cplane.worker.secrets import log_without_secrets, note_without_secrets
from cplane.worker.session_pages import bind_pages, guarded_options

if TYPE_CHECKING:
    from cplane.browser import PageLease


def _from_any_thread(note: Callable[[Progress], None]) -> Callable[[Progress], None]:
    """Return `note`, to be called in the loop or in another thread: plain jobs report progress, too."""
    loop, thread_id = asyncio.get_running_loop(), threading.get_ident()

    def report(progress: Progress) -> None:
        if threading.get_ident() == thread_id:
            note(progress)
        else:
            with suppress(RuntimeError):  # the loop is closed: the worker has abandoned the job
                loop.call_soon_threadsafe(note, progress)

    return report


@dataclass(frozen=True, slots=True)
class JobResources:
    """Opens what an attempt needs. What it opens is noted on the attempt, which closes it."""

    files: JobFiles
    max_files: int
    """How many files a job may store, each name counted once."""
    pages: WorkerPages
    sessions: SessionStore
    sampler: TraceSampler
    cooldowns: Cooldowns

    async def open(self, attempt: Attempt, arguments: Mapping[str, Any]) -> Resources:
        """Open what the job asks for by type. Waiting for a page is not run time: the deadline starts when it is there.

        Raises:
            InvalidArguments: the page options are wrong.
            SessionBusy: another attempt holds the browser session.
            BrowserError, PoolTimeout: there is no page.
            DatabaseUnavailable: the job asks for a database session, and there is none.
        """
        attempt.transaction = transaction = JobTransaction(self.files.store)
        page_lease = await self._open_page(attempt, arguments) if attempt.job.needs_page else None
        return Resources(
            context=self._context(attempt, transaction),
            page=page_lease and page_lease.page,
            browser_context=page_lease and page_lease.context,
            session=await transaction.begin() if attempt.job.wants_session else None,
        )

    async def _open_page(self, attempt: Attempt, arguments: Mapping[str, Any]) -> "PageLease":
        job = attempt.job
        try:
            options = self._traced(attempt, PageOptions.read(job.page_options(arguments)))
            attempt.session = await self._hold_session(attempt, options)
            state = attempt.session.storage_state if attempt.session is not None else None
            page_lease = await self.pages.pool().acquire_page(options, scope=job.name, storage_state=state)
            attempt.page_lease = page_lease
            if attempt.session is not None:
                bind_pages(page_lease, attempt.session)
        finally:
            attempt.got_page()
        page_lease.broken.add_done_callback(lambda _: attempt.stop(Stop.PAGE_LOST))
        attempt.arm()
        return page_lease

    def _traced(self, attempt: Attempt, options: PageOptions) -> PageOptions:
        """The options with what is traced of this attempt; nothing of a job that keeps no files."""
        attempt.keeps_trace = self.sampler.wants(options.trace) == "on"
        recorded = attempt.job.is_recorded
        trace = self.sampler.trace(options.trace, attempt.job.name, attempt.number) if recorded else "off"
        return options.model_copy(update={"trace": trace})

    async def _hold_session(self, attempt: Attempt, options: PageOptions) -> SessionHold | None:
        """The session that the page options name; the job waits without a page for one that another job holds."""
        if options.session is None:
            return None
        if attempt.record_id is None:
            raise InvalidArguments(
                "a job without a record cannot hold a browser session", hint="leave out record=False"
            )
        hold_s = max(HOLD_S, 2 * attempt.timeout_s)
        held = await self.sessions.acquire(options.session, attempt.record_id, attempt.number, hold_s=hold_s)
        if held is None:
            raise SessionBusy(f"another job holds the browser session '{options.session}'")
        attempt.session = held
        held.binding.check_options(held.name, guarded_options(options))
        return held

    async def _count_file(self, attempt: Attempt, record_id: UUID, name: str) -> None:
        """Note a file of the job before it is stored. Raises TooManyArtifacts: it would be one too many."""
        if attempt.file_names is None:
            earlier = await self.files.store.artifact_names(record_id) if attempt.number > 1 else set[str]()
            attempt.file_names = earlier | (attempt.file_names or set())  # another file may have come while it waited
        if name not in attempt.file_names and len(attempt.file_names) >= self.max_files:
            raise TooManyArtifacts(
                f"'{name}' is one file more than the {self.max_files:,} that a job may store (CPLANE_ARTIFACT_MAX_COUNT)",
                hint="store several in one archive",
            )
        attempt.file_names.add(name)

    def _context(self, attempt: Attempt, transaction: JobTransaction) -> Context:
        async def cool_down(seconds: float) -> bool:
            return await self.cooldowns.start(attempt, seconds)

        report_progress = _from_any_thread(note_without_secrets(attempt))

        async def store_artifact(name: str, data: bytes | AsyncIterator[bytes], media_type: str | None) -> Artifact:
            if attempt.record_id is None:
                raise InvalidArguments("a job without a record keeps no files", hint="leave out record=False")
            await self._count_file(attempt, attempt.record_id, name)
            return await self.files.keep(attempt.record_id, attempt.number, name, data, media_type)

        async def read_artifact(job: UUID, name: str, max_bytes: int) -> tuple[Artifact, bytes]:
            return await self.files.read(job, name, max_bytes)

        return Context(
            id=attempt.uuid,
            key=attempt.lease.id,
            job=attempt.job.name,
            attempt=attempt.number,
            log=log_without_secrets(attempt),
            report_progress=report_progress,
            store_artifact=store_artifact,
            read_artifact=read_artifact,
            transaction=transaction.block,
            cool_down=cool_down,
        )
