"""The worker: claims jobs, starts their records, runs them, records what came of them. `arq cplane.worker.Settings` runs one."""

import asyncio
import os
import random
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from datetime import datetime
from typing import Any, TypeVar, cast

import arq.worker
import click
import structlog
from arq.connections import ArqRedis, RedisSettings
from arq.constants import default_queue_name
from arq.cron import CronJob
from redis.exceptions import RedisError

from cplane.errors import CplaneError, DatabaseUnavailable, InfrastructureError, QueueUnavailable, SchemaMismatch
from cplane.jobs.definition import Job
from cplane.jobs.registry import Registry, load_jobs
from cplane.jobs.states import State
from cplane.logs import LogRateLimiter, configure_logs
from cplane.plane.control_plane import ControlPlane
from cplane.postgres import migrations
from cplane.redis.dead_letters import DeadLetterStream
from cplane.redis.envelope import deserialize, serialize
from cplane.redis.events import Event
from cplane.redis.keys import queue_of
from cplane.runtime.batch import Batch
from cplane.runtime.cancellation import end
from cplane.runtime.gc_tuning import collect_rarely
from cplane.settings import CplaneSettings, load_settings
from cplane.worker.arq_functions import PlainFunction
from cplane.worker.attempt import CLEANUP_S, Attempt, Stop, Tools, run
from cplane.worker.browser_pool import Pages
from cplane.worker.claimer import Claimer, Claims, JobBudget
from cplane.worker.evidence import EvidenceStore, TraceSampler
from cplane.worker.leases import LeaseKeeper
from cplane.worker.outcome import Outcome
from cplane.worker.reconciler import EVERY_S, Reconciler
from cplane.worker.recorder import Recorder
from cplane.worker.watchdog import Watchdog

CRON_S = 0.5
"""How often cron jobs are looked at: arq's own rhythm."""

ABORTS_S = 0.5
"""How often arq's aborts are looked at, when `allow_abort_jobs` asks for it."""

LINES_PER_S = 20
"""Log lines about attempts, at most; under load the others are counted instead."""

BROWSER_CLOSE_S = 30.0
"""What the browser gets to close; every step of that has its own deadline."""


log = structlog.get_logger("cplane")

T = TypeVar("T")
Hook = Callable[[dict[Any, Any]], Awaitable[None]]


class Worker(arq.worker.Worker):
    """A worker with arq's constructor and a loop of its own.

    Without arguments it is configured by CPLANE_* alone. `queue_name` and `max_jobs`, where a settings class gives another queue, name
    the one queue it serves instead of CPLANE_QUEUES. A hook that raises is logged; it ends nothing.

    Raises:
        InvalidSettings: the configuration is incomplete, a module of CPLANE_IMPORTS cannot be found, or something was asked for that
            this worker does not do.
    """

    def __init__(
        self,
        functions: Sequence[Any] = (),
        *,
        queue_name: str | None = default_queue_name,
        cron_jobs: Sequence[CronJob] | None = None,
        redis_settings: RedisSettings | None = None,
        redis_pool: ArqRedis | None = None,
        burst: bool = False,
        on_startup: Hook | None = None,
        on_shutdown: Hook | None = None,
        on_job_start: Hook | None = None,
        on_job_end: Hook | None = None,
        after_job_end: Hook | None = None,
        handle_signals: bool = True,
        job_completion_wait: int = 0,
        max_jobs: int = 10,
        job_timeout: Any = 300,
        keep_result: Any = 3600,
        keep_result_forever: bool = False,
        poll_delay: Any = 0.5,
        queue_read_limit: int | None = None,
        max_tries: int = 5,
        health_check_interval: Any = 30,
        health_check_key: str | None = None,
        ctx: dict[Any, Any] | None = None,
        retry_jobs: bool = True,
        allow_abort_jobs: bool = False,
        max_burst_jobs: int = -1,
        job_serializer: Callable[[dict[str, Any]], bytes] | None = None,
        job_deserializer: Callable[[bytes], dict[str, Any]] | None = None,
        expires_extra_ms: int = 86_400_000,
        timezone: Any = None,
        log_results: bool = True,
        settings: CplaneSettings | None = None,
    ) -> None:
        try:
            self.settings = settings or load_settings()
            self.jobs: Registry = load_jobs(self.settings.imports)
        except CplaneError as error:
            raise _refusal(error) from None
        self.queues = _queues(self.settings, queue_name or default_queue_name, max_jobs)
        _ensure_loop()
        plain = [function for function in functions if not isinstance(function, Job)]
        super().__init__(
            plain or [arq.worker.func(cast("Any", _refuse), name="cplane")],  # arq insists on a function
            cron_jobs=cron_jobs,
            queue_name=queue_name or default_queue_name,
            redis_settings=redis_settings,
            redis_pool=redis_pool,
            burst=burst,
            on_startup=cast("Any", on_startup),
            on_shutdown=cast("Any", on_shutdown),
            on_job_start=cast("Any", on_job_start),
            on_job_end=cast("Any", on_job_end),
            after_job_end=cast("Any", after_job_end),
            handle_signals=False,  # ours are set when the loop runs
            job_completion_wait=job_completion_wait,
            max_jobs=max_jobs,
            job_timeout=job_timeout,
            keep_result=keep_result,
            keep_result_forever=keep_result_forever,
            poll_delay=poll_delay,
            queue_read_limit=queue_read_limit,
            max_tries=max_tries,
            health_check_interval=health_check_interval,
            health_check_key=health_check_key,
            ctx=ctx,
            retry_jobs=retry_jobs,
            allow_abort_jobs=allow_abort_jobs,
            max_burst_jobs=max_burst_jobs,
            job_serializer=job_serializer or serialize,
            job_deserializer=job_deserializer or deserialize,
            expires_extra_ms=expires_extra_ms,
            timezone=timezone,
            log_results=log_results,
        )
        self._plain = {} if not (plain or cron_jobs) else {
            name: PlainFunction.of_arq(
                entry,
                timeout_s=self.job_timeout_s,
                max_tries=max_tries,
                keep_result_s=self.keep_result_s,
                keep_forever=keep_result_forever,
                retry=retry_jobs,
            )
            for name, entry in self.functions.items()
        }  # fmt: skip
        self._given_serializer = job_serializer
        self.jobs_complete: int = 0
        self.jobs_failed: int = 0
        self.jobs_retried: int = 0
        self.name = f"{socket.gethostname()}:{os.getpid()}:{os.urandom(2).hex()}"
        self.ready = asyncio.Event()
        """Set once the worker claims jobs."""
        self._signals = handle_signals
        self._stopping = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._ration = LogRateLimiter(LINES_PER_S)
        self._between_hooks = on_job_start is not None or on_job_end is not None

    # running and stopping

    def run(self) -> None:
        """Run until SIGTERM or SIGINT, then leave in good order. A second signal leaves at once."""
        configure_logs(self.settings)
        collect_rarely()
        try:
            self.loop.run_until_complete(self.async_run())
        except CplaneError as error:
            log.critical("the worker stops", reason=str(error))
            sys.exit(1)
        finally:
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
            self.loop.close()
        if self._threads_busy():
            log.warning("plain functions that cannot be stopped are left behind")
            os._exit(0)  # a thread cannot be cancelled, and Python would wait for it

    async def async_run(self) -> None:
        """Run in the loop of the caller until `stop()` is called; every connection is closed at the end."""
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
        return self._stopping.is_set()

    def stop(self) -> None:
        """Stop claiming, drain, hand back what still runs, leave."""
        self._stopping.set()

    async def close(self) -> None:
        """Stop, and wait until everything is closed."""
        self.stop()
        if self.main_task is not None:
            await asyncio.wait([self.main_task])

    async def main(self) -> None:
        """Open everything, serve the queues, close everything."""
        self._turning = asyncio.get_running_loop()
        async with AsyncExitStack() as stack:
            self.plane = await stack.enter_async_context(ControlPlane(self.settings))
            await self._check_schema()
            self._pool = ArqRedis(
                connection_pool=cast("Any", self.plane.redis.connection_pool),
                default_queue_name=self.queue_name,
                job_serializer=self.job_serializer,
                job_deserializer=self.job_deserializer,
            )
            self.ctx["redis"] = self._pool
            await self._check_eviction()
            self._recorder = await stack.enter_async_context(
                Recorder(self.plane.store, self.plane.queue, self.plane.events, self._recorded, self._given_serializer)
            )
            self._events = await stack.enter_async_context(Batch(self._publish, name="publish progress"))
            self._lease_keeper = LeaseKeeper(
                self.plane.store, self.plane.queue, self.plane.events, self.settings.lease_s
            )
            self.pages = Pages(self.settings, self.jobs.jobs.values())
            self._threads = ThreadPoolExecutor(max(4, sum(self.queues.values())), thread_name_prefix="cplane job")
            stack.callback(self._threads.shutdown, wait=False, cancel_futures=True)
            tools = Tools(
                store=self.plane.store,
                artifacts=self.plane.artifacts,
                threads=self._threads,
                tell=self._events.post,
                pool=self.pages.pool,
                sessions=self.plane.sessions,
                evidence=EvidenceStore(self.plane.store, self.plane.artifacts),
                trace_sampler=TraceSampler(self.settings.trace),
                vacate=self._vacate,
                limiter=self.plane.limiter,
                respects_retry_after=self.settings.respect_retry_after,
                settle=self._settle,
                ctx=self.ctx,
            )
            self._reconciler = Reconciler(self.name, self.plane.store, self.plane.queue, self.plane.events, self.queues)
            claims = Claims(
                worker=self.name,
                store=self.plane.store,
                queue=self.plane.queue,
                dead_letters=DeadLetterStream(self.plane.redis),
                limiter=self.plane.limiter,
                per_host=self.settings.per_host,
                jobs=self.jobs,
                functions=self._plain,
                lease_keeper=self._lease_keeper,
                pages=self.pages,
                tools=tools,
                lease_s=self.settings.lease_s,
                burst=self.burst,
                job_budget=JobBudget(self.max_burst_jobs if self.burst and self.max_burst_jobs >= 0 else None),
                stopping=self._stopping,
                begin=self._begin,
                restore=self._reconciler.restore,
                idle=self._idle,
            )
            self._claimers = {queue: Claimer(queue, room, claims) for queue, room in self.queues.items()}
            stack.enter_context(Watchdog())
            if self._signals:
                stack.enter_context(_Signals(self))
            await self._hook(self.on_startup, self.ctx)
            stack.push_async_callback(self._hook, self.on_shutdown, self.ctx)
            await self._serve()

    async def _check_schema(self) -> None:
        try:
            await migrations.check(self.plane.database)
        except DatabaseUnavailable as error:
            log.warning("Postgres is away; jobs are claimed when it is back", reason=str(error))

    async def _check_eviction(self) -> None:
        """A Redis that throws keys away when it is full loses transient jobs, and makes recorded ones late."""
        try:
            policy = await self.plane.queue.eviction()
        except QueueUnavailable as error:
            log.warning("Redis is away; jobs are claimed when it is back", reason=str(error))
            return
        if policy is not None:
            hint = "set maxmemory-policy noeviction"
            log.error("Redis throws keys away when its memory is full: jobs get lost", policy=policy, hint=hint)

    async def _serve(self) -> None:
        """Serve until stopped, or until a task of ours ends by itself: that is a fault, and stops the worker."""
        side: list[asyncio.Task[None]] = [
            asyncio.create_task(self._lease_keeper.keep(), name="keep leases"),
            asyncio.create_task(self._lease_keeper.watch(), name="watch leases"),
            asyncio.create_task(self._persist(self._lease_keeper.listen, "hear of cancels"), name="hear of cancels"),
            asyncio.create_task(self._every(EVERY_S, self._reconciler.run, "reconcile"), name="reconcile"),
            asyncio.create_task(
                self._every(self.health_check_interval, self._tell_health, "tell health"), name="tell health"
            ),
        ]
        if self.cron_jobs:
            side.append(asyncio.create_task(self._every(CRON_S, self._run_cron, "run cron jobs"), name="run cron jobs"))
        if self.allow_abort_jobs:
            side.append(
                asyncio.create_task(self._every(ABORTS_S, self._abort, "hear of aborts"), name="hear of aborts")
            )
        needs_browser = any(map(self.jobs.needs_pages, self.queues))
        browser = [asyncio.create_task(self.pages.keep(), name="keep browser")] if needs_browser else []
        claimers = [
            asyncio.create_task(claimer.run(), name=f"claim from {queue}") for queue, claimer in self._claimers.items()
        ]
        log.info("worker started", worker=self.name, queues=dict(self.queues), jobs=len(self.jobs.jobs))
        self.ready.set()
        try:
            await asyncio.wait([*side, *browser, *claimers], return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.stop()
            await self._drain(claimers)
            await end(browser, again_s=BROWSER_CLOSE_S)
            await end(side)
            log.info(
                "worker stopped",
                worker=self.name,
                succeeded=self.jobs_complete,
                failed=self.jobs_failed,
                again=self.jobs_retried,
            )
        for task in (*side, *browser, *claimers):
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error

    async def _drain(self, claimers: Sequence[asyncio.Task[None]]) -> None:
        """Claiming ends first; running jobs drain while their leases are kept; what is left goes back."""
        await asyncio.wait(claimers)
        if running := self._running():
            log.info("draining", running=len(running), at_most_s=self.settings.drain_s)
            await asyncio.wait(running, timeout=self.settings.drain_s)
        for attempt in self._lease_keeper:
            attempt.stop(Stop.RELEASE)
        if running := self._running():
            _, stuck = await asyncio.wait(running, timeout=CLEANUP_S * 2)
            for task in stuck:
                task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=CLEANUP_S)

    def _running(self) -> set[asyncio.Task[None]]:
        """The tasks of attempts that have not ended."""
        return {attempt.task for attempt in self._lease_keeper if attempt.task is not None and not attempt.task.done()}

    # one attempt

    def _begin(self, attempts: Sequence[Attempt]) -> None:
        """Run attempts. Deadlines begin when all have made their first step: most jobs that end in it need none."""
        create_task = self._turning.create_task
        for attempt in attempts:
            coroutine = self._run(attempt) if self._between_hooks else run(attempt)
            attempt.task = create_task(coroutine, name=f"{attempt.job.name} {attempt.lease.id}")
        self._turning.call_soon(_arm, attempts)

    async def _run(self, attempt: Attempt) -> None:
        """An attempt between arq's hooks."""
        try:
            await self._hook(self.on_job_start, self._job_ctx(attempt))
        except asyncio.CancelledError:
            if attempt.stopped is None:
                raise
        await run(attempt)  # stopped in the hook: it says so at once
        await self._hook(self.on_job_end, self._job_ctx(attempt))

    def _settle(self, attempt: Attempt, outcome: Outcome | None) -> None:
        """An attempt is over: there is room for another, and what came of it is recorded."""
        self._vacate(attempt)
        if outcome is None:
            self._recorded(attempt, None, None)
        else:
            self._recorder.post(attempt, outcome)

    def _vacate(self, attempt: Attempt) -> None:
        if not attempt.vacated:
            attempt.vacated = True
            self._claimers[attempt.lease.queue].leave()

    def _recorded(self, attempt: Attempt, outcome: Outcome | None, state: State | None) -> None:
        """Everything is told: count it, and say so."""
        self._lease_keeper.remove(attempt)
        self._claimers[attempt.lease.queue].recorded()
        if state is None or outcome is None:
            attempt.log.warning("the record was no longer this attempt's; its outcome is dropped")
            return
        if state is State.SUCCEEDED:
            self.jobs_complete += 1
        elif state is State.QUEUED:
            self.jobs_retried += 1
        else:
            self.jobs_failed += state is State.FAILED
        if self._ration.allows():
            self._tell_outcome(attempt, outcome, state)
        if self.after_job_end is not None:
            hook = self._hook(self.after_job_end, self._job_ctx(attempt))
            task = asyncio.create_task(hook, name=f"after {attempt.lease.id}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _tell_outcome(self, attempt: Attempt, outcome: Outcome, state: State) -> None:
        fields: dict[str, object] = {"state": state.value, "outcome": outcome.attempt_state.value}
        if outcome.error is not None:
            fields["error"] = outcome.error.type
        if state is State.QUEUED:
            fields["again_in_s"] = round(outcome.delay_s, 3)
        if (untold := self._ration.untold()) > 0:
            fields["and_others"] = untold
        tell = attempt.log.info if state is State.SUCCEEDED else attempt.log.warning
        tell("attempt finished", **fields)

    def _job_ctx(self, attempt: Attempt) -> dict[Any, Any]:
        return {
            **self.ctx,
            "job_id": attempt.lease.id,
            "job_try": attempt.number,
            "score": attempt.lease.due_ms,
        }

    # helpers

    async def _run_cron(self) -> None:
        """arq's own cron: each fire is enqueued once, whichever worker is first."""
        before = [cron_job.next_run for cron_job in self.cron_jobs]
        try:
            await self.run_cron(datetime.now(tz=self.timezone), CRON_S)
        except RedisError as error:
            raise QueueUnavailable("Redis did not answer while cron jobs were enqueued") from error
        if [cron_job.next_run for cron_job in self.cron_jobs] != before:
            await self.plane.queue.wake(queue_of(self.queue_name))  # arq's client wakes nobody

    async def _abort(self) -> None:
        """arq's `Job.abort`: what runs here and is to be aborted is cancelled."""
        wanted = await self.plane.queue.aborts()
        for attempt in self._lease_keeper:
            if attempt.lease.id in wanted:
                attempt.stop(Stop.CANCEL)

    async def _idle(self) -> None:
        """A burst worker leaves when nothing is queued and nothing runs."""
        if not self.burst or self._tasks or len(self._lease_keeper):
            return
        depths = [await self.plane.queue.depth(queue) for queue in self.queues]
        if not any(depths):
            self.stop()

    async def _publish(self, events: list[Event]) -> list[None]:
        try:
            await self.plane.events.publish(events)
        except QueueUnavailable:
            log.debug("progress could not be told", count=len(events))
        return [None] * len(events)

    async def _tell_health(self) -> None:
        """arq's health key, which `arq --check` reads."""
        info = f"j_complete={self.jobs_complete} j_failed={self.jobs_failed} j_retried={self.jobs_retried} j_ongoing={len(self._lease_keeper)}"
        await self.plane.queue.tell_health(self.health_check_key, info, self.health_check_interval + 5)

    async def _hook(self, hook: Any, ctx: dict[Any, Any]) -> None:
        if hook is None:
            return
        try:
            await hook(ctx)
        except Exception as error:
            log.error("a hook failed", hook=getattr(hook, "__name__", repr(hook)), exc_info=error)

    async def _every(self, every_s: float, step: Callable[[], Awaitable[None]], name: str) -> None:
        """Do a step at least every `every_s` seconds, for ever; the jitter keeps workers apart."""

        async def steps() -> None:
            while True:
                await step()
                await asyncio.sleep(every_s * random.uniform(0.6, 0.9))  # noqa: S311  spreading load, not keeping a secret

        await self._persist(steps, name)

    async def _persist(self, work: Callable[[], Awaitable[None]], name: str) -> None:
        """Work that goes on when a server comes back; no outage ends it."""
        while True:
            try:
                await work()
            except (InfrastructureError, SchemaMismatch) as error:
                log.warning("a side task failed; trying again", task=name, reason=str(error))
            await asyncio.sleep(random.uniform(0.5, 1.5))  # noqa: S311

    def _threads_busy(self) -> bool:
        threads = getattr(self, "_threads", None)
        return threads is not None and any(thread.is_alive() for thread in threads._threads)  # noqa: SLF001  it has no other way to ask


class _Signals:
    """SIGTERM and SIGINT stop the worker; a second one leaves at once."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._loop = asyncio.get_running_loop()

    def __enter__(self) -> None:
        for signum in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(signum, self._handle, signum)

    def __exit__(self, *_: object) -> None:
        for signum in (signal.SIGTERM, signal.SIGINT):
            self._loop.remove_signal_handler(signum)

    def _handle(self, signum: signal.Signals) -> None:
        if self._worker.stopping:
            log.warning("leaving at once; what runs starts again elsewhere when its lease has ended")
            os._exit(128 + signum)
        log.info("stopping", signal=signum.name)
        self._worker.stop()


def _queues(settings: CplaneSettings, queue_name: str, max_jobs: int) -> dict[str, int]:
    if queue_name == default_queue_name:
        return dict(settings.queues)
    return {queue_of(queue_name): max_jobs}


def _refusal(error: CplaneError) -> Exception:
    """Programs get the error itself; `arq` on the command line shows one line instead of a traceback."""
    running = click.get_current_context(silent=True)
    return click.ClickException(str(error)) if running is not None and running.command.name == "arq" else error


def _ensure_loop() -> None:
    """arq's constructor wants a loop; `arq` and `cplane worker` get the fastest there is."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.set_event_loop(_new_loop())


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop  # noqa: PLC0415  never required
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def _arm(attempts: Sequence[Attempt]) -> None:
    for attempt in attempts:
        attempt.arm()


async def _refuse(_: dict[Any, Any]) -> None:
    raise RuntimeError("not a job")


def _redis_settings() -> RedisSettings | None:
    """Where `arq --check` looks; the worker itself connects by CPLANE_REDIS_URL."""
    url = os.environ.get("CPLANE_REDIS_URL")
    return RedisSettings.from_dsn(url) if url and url.startswith(("redis://", "rediss://", "unix://")) else None


class Settings:
    """For `arq cplane.worker.Settings`. arq reads only what a class itself defines; everything else comes from CPLANE_*."""

    functions: Sequence[Any] = ()
    redis_settings = _redis_settings()
    health_check_interval = 30
    handle_signals = True


# The one effect an import of ours has: arq's command line builds `arq.worker.Worker` by that name, so the name is made to mean ours.
arq.worker.Worker = Worker  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
