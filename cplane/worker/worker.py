"""The worker: opens the gateways, builds the pipeline claimer → runner → recorder, and serves its queues until it is stopped.

`arq cplane.worker.Settings` runs one.
"""

import asyncio
import os
import random
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from datetime import datetime
from typing import Any, cast

import arq.worker
import structlog
from arq.connections import ArqRedis
from redis.exceptions import RedisError

from cplane.errors import CplaneError, DatabaseUnavailable, InfrastructureError, QueueUnavailable, SchemaMismatch
from cplane.jobs.names import quarantine_of, without_quarantine
from cplane.keeper.channel import Hello
from cplane.keeper.launch import become_keeper, is_kept
from cplane.keeper.memory import resident_mb
from cplane.keeper.servers import Servers
from cplane.logs import configure_logs
from cplane.plane.control_plane import ControlPlane
from cplane.postgres import migrations
from cplane.postgres.database import connect_arguments
from cplane.redis.dead_letters import DeadLetterStream
from cplane.redis.events import Event
from cplane.redis.keys import queue_of
from cplane.runtime.batch import Batch
from cplane.runtime.cancellation import cancel_all, wait_first
from cplane.runtime.gc_tuning import collect_rarely
from cplane.runtime.offload import offload
from cplane.worker.acknowledgements import Acknowledgements
from cplane.worker.arq import ArqWorker, redis_settings_of_environment, runs_under_arq
from cplane.worker.attempt import CLEANUP_S, Stop
from cplane.worker.browser_pool import WorkerPages
from cplane.worker.burst import Burst
from cplane.worker.catalog import Catalog
from cplane.worker.claimer import Claimer
from cplane.worker.completions import Completions
from cplane.worker.cooldowns import Cooldowns
from cplane.worker.evidence import EvidenceStore, TraceSampler
from cplane.worker.files import JobFiles
from cplane.worker.kept import Kept
from cplane.worker.leases import LeaseKeeper
from cplane.worker.poller import Poller
from cplane.worker.process_pool import ProcessPool
from cplane.worker.quarantine import Quarantines
from cplane.worker.reconciler import RECONCILE_INTERVAL_S, Reconciler
from cplane.worker.recorder import Recorder
from cplane.worker.resources import JobResources
from cplane.worker.runner import Runner
from cplane.worker.signals import Signals
from cplane.worker.slots import JobBudget, Slots
from cplane.worker.starter import Starter
from cplane.worker.threads import STUCK_AFTER_S, JobThreads
from cplane.worker.triage import Triage
from cplane.worker.watchdog import Watchdog

CRON_INTERVAL_S = 0.5
"""How often cron jobs are looked at: arq's own rhythm."""

ABORT_INTERVAL_S = 0.5
"""How often arq's aborts are read, when `allow_abort_jobs` asks for it."""

BROWSER_CLOSE_S = 30.0
"""What the browser gets to close; every step of that has its own deadline."""

CONVERSIONS = ("cplane.runtime.html_to_markdown",)
"""Modules of cplane's own functions that run in processes."""

log = structlog.get_logger("cplane")


class Worker(ArqWorker):
    """A worker with arq's constructor and its own loop.

    Without arguments it is configured by CPLANE_* alone. `queue_name` and `max_jobs`, where a settings class gives another queue, name
    the one queue it serves instead of CPLANE_QUEUES. A hook that raises is logged; it ends nothing.

    Raises:
        InvalidSettings: the configuration is incomplete, a module of CPLANE_IMPORTS cannot be found, or something was asked for that
            this worker does not do.
    """

    _threads_left = False
    """Whether calls of plain functions still ran when the worker had stopped."""

    # running and stopping

    def run(self) -> None:
        """Run until SIGTERM or SIGINT, then stop in good order. A second signal ends it at once.

        `arq` on the command line starts a keeper, which starts this program again as its worker process.
        """
        if self.settings.keeper and runs_under_arq() and not is_kept():
            become_keeper()
        configure_logs(self.settings)
        collect_rarely()
        exit_code = 0
        try:
            self.loop.run_until_complete(self.async_run())
        except CplaneError as error:
            log.critical("worker_failed", reason=str(error))
            exit_code = 1
        finally:
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
            self.loop.close()
        if self._threads_left:
            log.warning("threads_abandoned", reason="plain functions cannot be stopped")
            os._exit(exit_code)  # what a thread does while Python ends can crash it
        if exit_code:
            sys.exit(exit_code)

    async def async_run(self) -> None:
        """Run in the caller's loop until `stop()` is called; every connection is closed at the end."""
        self.main_task = asyncio.create_task(self.main(), name="worker")
        try:
            await asyncio.shield(self.main_task)
        except asyncio.CancelledError:
            self.stop()
            await self.main_task
            raise

    @property
    def stopping(self) -> bool:
        """Whether `stop` was called."""
        return self.stop_requested.is_set()

    def stop(self) -> None:
        """Stop claiming, drain, release what still runs, and end."""
        self.stop_requested.set()
        self.drain_requested.set()

    def retire(self) -> None:
        """Stop claiming, and end when all running jobs have ended, however long that takes."""
        self.retiring = True
        self.stop_requested.set()

    async def close(self) -> None:
        """Stop, and wait until everything is closed."""
        self.stop()
        if self.main_task is not None:
            await asyncio.wait([self.main_task])

    async def main(self) -> None:
        """Open everything, serve the queues, close everything."""
        async with AsyncExitStack() as stack:
            self._kept = Kept.of_environment()
            if self._kept is not None:
                stack.callback(self._kept.close)
            self.plane = await stack.enter_async_context(ControlPlane(self.settings))
            await self._check_schema()
            self._share_redis()
            await self._check_eviction()
            await self._open_pipeline(stack)
            self._claimers = {queue: self._claimer(queue, concurrency) for queue, concurrency in self.queues.items()}
            stack.enter_context(self._watchdog)
            if self.given_signals:
                stack.enter_context(Signals(self, is_kept=self._kept is not None))
            await self.hooks.on_startup()
            stack.push_async_callback(self.hooks.on_shutdown)
            await self._serve()

    def _hello(self) -> Hello:
        """Return what the keeper has to know of this worker."""
        settings = self.settings
        database_url = settings.database_url
        redis_url = settings.redis_url
        servers = Servers(redis_url.get_secret_value(), connect_arguments(database_url), settings.lease_s)
        prefix, memory_mb = self.plane.queue.prefix, resident_mb(os.getpid())
        return Hello(self.name, servers, tuple(self.queues), prefix, settings.drain_s, memory_mb)

    def _count_finished(self) -> int:
        return self.jobs_complete + self.jobs_failed + self.jobs_retried

    def _share_redis(self) -> None:
        """Give arq's functions and cron jobs the connections of the plane."""
        self._pool = ArqRedis(
            connection_pool=cast("Any", self.plane.redis.connection_pool),
            default_queue_name=self.queue_name,
            job_serializer=self.job_serializer,
            job_deserializer=self.job_deserializer,
        )
        self.ctx["redis"] = self._pool

    async def _open_pipeline(self, stack: AsyncExitStack) -> None:
        """Build what all queues share, from the end to the beginning: completions ← recorder ← runner ← starter."""
        plane, settings = self.plane, self.settings
        store, queue = plane.store, plane.queue
        self.pages = WorkerPages(settings, self.jobs.jobs.values())
        self._threads = JobThreads(
            self.queues, stuck_after_s=STUCK_AFTER_S, table=None if self._kept is None else self._kept.threads
        )
        stack.callback(self._close_threads)
        processes = await stack.enter_async_context(self._process_pool())
        offload.set(processes.call)
        self._catalog = Catalog(self.jobs, self.arq_functions, self._threads, processes, settings.max_result_bytes)
        self._lease_keeper = LeaseKeeper(store, queue, plane.events, settings.lease_s, self._kept)
        self._watchdog = Watchdog(None if self._kept is None else self._kept.note_interpreter)
        self._completions = Completions(self._lease_keeper, self, self.hooks)
        recorder = await stack.enter_async_context(
            Recorder(
                store,
                queue,
                plane.events,
                self._completions,
                Acknowledgements(settings.max_result_bytes, self.given_serializer),
            )
        )
        events = await stack.enter_async_context(Batch(self._publish, name="publish progress"))
        files, sampler = JobFiles(store, plane.artifacts), TraceSampler(settings.trace)
        cooldowns = Cooldowns(plane.limiter, settings.respect_retry_after)
        self._runner = Runner(
            resources=JobResources(files, settings.artifact_max_count, self.pages, plane.sessions, sampler, cooldowns),
            evidence=EvidenceStore(files, sampler),
            recorder=recorder,
            lease_keeper=self._lease_keeper,
            hooks=self.hooks,
            events=events,
            watchdog=self._watchdog,
            kept=self._kept,
        )
        self._starter = Starter(
            self.name,
            store=store,
            queue=queue,
            catalog=self._catalog,
            lease_keeper=self._lease_keeper,
            runner=self._runner,
            lease_s=settings.lease_s,
            stopping=self.stop_requested,
        )
        self._quarantines = Quarantines(self.queues, self._kept, self.stop_requested)
        self._reconciler = Reconciler(self.name, store, queue, plane.events, self.queues, quarantines=self._quarantines)
        self._burst = Burst(
            self.burst,
            queue,
            [*self.queues, *map(quarantine_of, self._quarantines.own)],
            self._lease_keeper,
            self._completions,
            self.stop_requested,
            ignores_later=self.is_alone,
        )
        self._budget = JobBudget(self.max_burst_jobs if self.burst and self.max_burst_jobs >= 0 else None)

    def _claimer(self, queue: str, concurrency: int) -> Claimer:
        """Build the claimer of one queue."""
        plane, needs_pages = self.plane, self._catalog.needs_pages(queue)
        poller = Poller(
            plane.queue,
            queue,
            lease_s=self.settings.lease_s,
            stopping=self.stop_requested,
            burst=self.burst,
            looks_first=self.burst or needs_pages,  # other queues want the same pages, a burst its budget
        )
        triage = Triage(
            queue,
            queue=plane.queue,
            dead_letters=DeadLetterStream(plane.redis),
            limiter=plane.limiter,
            per_host=self.settings.per_host,
            catalog=self._catalog,
            lease_keeper=self._lease_keeper,
            starter=self._starter,
            runner=self._runner,
            reconciler=self._reconciler,
        )
        return Claimer(
            queue,
            Slots(concurrency, self._budget),
            poller=poller,
            triage=triage,
            pages=self.pages if needs_pages else None,
            lease_keeper=self._lease_keeper,
            burst=self._burst,
            stopping=self.stop_requested,
        )

    def _process_pool(self) -> ProcessPool:
        """Processes that have imported the jobs; ready before the first job if a queue has jobs that run in them."""
        needs_browser = any(map(self.jobs.needs_pages, self.queues))
        modules = dict.fromkeys((*self.settings.imports, *(CONVERSIONS if needs_browser else ())))
        jobs = [job for job in self.jobs.jobs.values() if job.options.runs_in == "process"]
        served = {without_quarantine(queue) for queue in self.queues}
        modules.update(dict.fromkeys(job.fn.__module__ for job in jobs if job.fn.__module__ != "__main__"))
        eager = self.given_signals and any(job.options.queue in served for job in jobs)
        return ProcessPool(list(modules), eager=eager)

    def _close_threads(self) -> None:
        self._threads.close()
        self._threads_left = self._threads.busy

    async def _check_schema(self) -> None:
        try:
            await migrations.check(self.plane.database)
        except DatabaseUnavailable as error:
            log.warning("database_unavailable", reason=str(error), hint="jobs are claimed when it is back")

    async def _check_eviction(self) -> None:
        """A Redis that evicts keys when it is full loses transient jobs, and makes recorded ones late."""
        try:
            policy = await self.plane.queue.eviction_policy()
        except QueueUnavailable as error:
            log.warning("queue_unavailable", reason=str(error), hint="jobs are claimed when it is back")
            return
        if policy is not None:
            log.error("redis_evicts_keys", policy=policy, hint="set maxmemory-policy noeviction: jobs get lost")

    async def _serve(self) -> None:
        """Serve until stopped, or until a task of the worker ends by itself: that is a fault, and stops it."""
        side = self._start_side_tasks()
        needs_browser = any(map(self._catalog.needs_pages, self.queues))
        browser = [asyncio.create_task(self.pages.keep(), name="keep browser")] if needs_browser else []
        claimers = [
            asyncio.create_task(claimer.run(), name=f"claim from {queue}") for queue, claimer in self._claimers.items()
        ]
        claimers += [
            asyncio.create_task(
                self._quarantines.serve(queue, self._claimer(quarantine_of(queue), 1).run),
                name=f"claim from the quarantine of {queue}",
            )
            for queue in self._quarantines.own
        ]
        if self._kept is not None:
            self._kept.serve(self._hello(), lambda: self._lease_keeper, self._count_finished)
            side.append(asyncio.create_task(self._kept.obey(self.retire, self.stop), name="obey the keeper"))
        log.info("worker_started", worker=self.name, queues=dict(self.queues), jobs=len(self.jobs.jobs))
        self.ready.set()
        try:
            await asyncio.wait([*side, *browser, *claimers], return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not self.retiring:
                self.stop()
            await self._drain(claimers)
            await cancel_all(browser, retry_interval_s=BROWSER_CLOSE_S)
            await cancel_all(side)
            log.info(
                "worker_stopped",
                worker=self.name,
                succeeded=self.jobs_complete,
                failed=self.jobs_failed,
                retried=self.jobs_retried,
            )
        for task in (*side, *browser, *claimers):
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error

    def _start_side_tasks(self) -> list[asyncio.Task[None]]:
        """Start what runs beside the pipeline."""
        keeper = self._lease_keeper
        side: dict[str, Awaitable[None]] = {
            "keep leases": keeper.keep(),
            "watch leases": keeper.watch(),
            "watch threads": self._threads.watch(),
            "listen for cancels": self._persist(keeper.listen, "listen for cancels"),
            "reconcile": self._every(RECONCILE_INTERVAL_S, self._reconciler.run, "reconcile"),
            "write health": self._every(self.health_check_interval, self._write_health, "write health"),
        }
        if self.cron_jobs:
            side["run cron jobs"] = self._every(CRON_INTERVAL_S, self._run_cron, "run cron jobs")
        if self.allow_abort_jobs:
            side["read aborts"] = self._every(ABORT_INTERVAL_S, self._abort, "read aborts")
        return [asyncio.create_task(cast("Any", work), name=name) for name, work in side.items()]

    async def _drain(self, claimers: Sequence[asyncio.Task[None]]) -> None:
        """Claiming ends first; running jobs drain while their leases are kept; what is left is released."""
        await asyncio.wait(claimers)
        if self.retiring and (running := self._runner.running()):
            log.info("retiring", running=len(running))
            await wait_first(asyncio.wait(running), self.drain_requested.wait())
        if running := self._runner.running():
            log.info("draining", running=len(running), drain_s=self.settings.drain_s)
        await self._runner.drain(self.settings.drain_s)
        await self._completions.drain(CLEANUP_S)

    # side tasks

    async def _run_cron(self) -> None:
        """arq's own cron: each fire is enqueued once, whichever worker is first."""
        before = [cron_job.next_run for cron_job in self.cron_jobs]
        try:
            await self.run_cron(datetime.now(tz=self.timezone), CRON_INTERVAL_S)
        except RedisError as error:
            raise QueueUnavailable("Redis did not respond while cron jobs were enqueued") from error
        if [cron_job.next_run for cron_job in self.cron_jobs] != before:
            await self.plane.queue.wake(queue_of(self.queue_name))  # arq's client wakes nobody

    async def _abort(self) -> None:
        """arq's `Job.abort`: cancel what runs here and is to be aborted."""
        wanted = await self.plane.queue.aborts()
        for attempt in self._lease_keeper:
            if attempt.lease.id in wanted:
                attempt.stop(Stop.CANCEL)

    async def _publish(self, events: list[Event]) -> list[None]:
        try:
            await self.plane.events.publish(events)
        except QueueUnavailable:
            log.debug("progress_not_published", count=len(events))
        return [None] * len(events)

    async def _write_health(self) -> None:
        """Write arq's health key, which `arq --check` reads."""
        info = (
            f"j_complete={self.jobs_complete} j_failed={self.jobs_failed} j_retried={self.jobs_retried} "
            f"j_ongoing={len(self._lease_keeper)}"
        )
        await self.plane.queue.write_health(self.health_check_key, info, self.health_check_interval + 5)

    async def _every(self, interval_s: float, step: Callable[[], Awaitable[None]], name: str) -> None:
        """Do a step at least every `interval_s` seconds, for ever; the jitter keeps workers apart."""

        async def steps() -> None:
            while True:
                await step()
                await asyncio.sleep(interval_s * random.uniform(0.6, 0.9))  # noqa: S311  spreading load, not keeping a secret

        await self._persist(steps, name)

    async def _persist(self, work: Callable[[], Awaitable[None]], name: str) -> None:
        """Do work for ever. An outage does not end it: it starts again when the server is back."""
        while True:
            try:
                await work()
            except (InfrastructureError, SchemaMismatch) as error:
                log.warning("side_task_failed", task=name, reason=str(error))
            await asyncio.sleep(random.uniform(0.5, 1.5))  # noqa: S311


class Settings:
    """For `arq cplane.worker.Settings`. arq reads only what a class itself defines; everything else comes from CPLANE_*."""

    functions: Sequence[Any] = ()
    redis_settings = redis_settings_of_environment()
    health_check_interval = 30
    handle_signals = True


# The one effect an import has: arq's command line builds `arq.worker.Worker` by that name, so the name is made to mean this class.
arq.worker.Worker = Worker  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
