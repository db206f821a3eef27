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
from typing import Any, TypeVar, cast

import arq.worker
import click
import structlog
from arq.connections import ArqRedis, RedisSettings
from arq.constants import default_queue_name
from arq.cron import CronJob

from cplane import migrations
from cplane.attempt import CLEANUP_S, Attempt, Outcome, Stop, Tools, decide, perform
from cplane.batch import Batch
from cplane.catalog import load_jobs
from cplane.claimer import Claimer, Claims
from cplane.endings import end
from cplane.errors import (
    CplaneError,
    DatabaseUnavailable,
    InvalidSettings,
    OutsideError,
    QueueUnavailable,
    SchemaMismatch,
)
from cplane.events import Event
from cplane.jobs import Job, Registry
from cplane.leases import Leases
from cplane.logs import configure_logs
from cplane.pages import Pages
from cplane.plane import ControlPlane
from cplane.queue import decode_envelope, encode_envelope, queue_of
from cplane.reconciler import EVERY_S, Reconciler
from cplane.recorder import Ended, Recorder
from cplane.settings import CplaneSettings, load_settings
from cplane.states import AttemptState, State
from cplane.transaction import JobTransaction

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
        if any(not isinstance(function, Job) for function in functions) or cron_jobs:
            raise _refusal(
                InvalidSettings(
                    "this worker runs @job functions only", hint="decorate plain arq functions and cron jobs with @job"
                )
            )
        try:
            self.settings = settings or load_settings()
            self.jobs: Registry = load_jobs(self.settings.imports)
        except CplaneError as error:
            raise _refusal(error) from None
        self.queues = _queues(self.settings, queue_name or default_queue_name, max_jobs)
        _ensure_loop()
        super().__init__(
            [
                arq.worker.func(cast("Any", _refuse), name="cplane")
            ],  # arq insists on a function; ours are in the registry
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
            job_serializer=job_serializer or _serialize,
            job_deserializer=job_deserializer or decode_envelope,
            expires_extra_ms=expires_extra_ms,
            timezone=timezone,
            log_results=log_results,
        )
        self.jobs_complete: int = 0
        self.jobs_failed: int = 0
        self.jobs_retried: int = 0
        self.name = f"{socket.gethostname()}:{os.getpid()}:{os.urandom(2).hex()}"
        self.ready = asyncio.Event()
        """Set once the worker claims jobs."""
        self._signals = handle_signals
        self._stopping = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    # running and stopping

    def run(self) -> None:
        """Run until SIGTERM or SIGINT, then leave in good order. A second signal leaves at once."""
        configure_logs(self.settings)
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
            self._recorder = await stack.enter_async_context(
                Recorder(self.plane.store, self.plane.queue, self.plane.events)
            )
            self._events = await stack.enter_async_context(Batch(self._publish, name="publish progress"))
            self._leases = Leases(self.plane.store, self.plane.queue, self.plane.events, self.settings.lease_s)
            self._pages = Pages(self.settings)
            self._threads = ThreadPoolExecutor(max(4, sum(self.queues.values())), thread_name_prefix="cplane job")
            stack.callback(self._threads.shutdown, wait=False, cancel_futures=True)
            self._tools = Tools(
                store=self.plane.store,
                artifacts=self.plane.artifacts,
                threads=self._threads,
                tell=self._events.put,
                pool=self._pages.pool,
            )
            claims = Claims(
                worker=self.name,
                store=self.plane.store,
                queue=self.plane.queue,
                jobs=self.jobs,
                leases=self._leases,
                pages=self._pages,
                lease_s=self.settings.lease_s,
                stopping=self._stopping,
                begin=self._begin,
                idle=self._idle,
            )
            self._claimers = {queue: Claimer(queue, room, claims) for queue, room in self.queues.items()}
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

    async def _serve(self) -> None:
        """Serve until stopped, or until a task of ours ends by itself: that is a fault, and stops the worker."""
        reconciler = Reconciler(self.plane.store, self.plane.queue, self.plane.events, self.queues)
        side = [
            asyncio.create_task(self._leases.keep(), name="keep leases"),
            asyncio.create_task(self._persist(self._leases.listen, "hear of cancels"), name="hear of cancels"),
            asyncio.create_task(self._every(EVERY_S, reconciler.run, "reconcile"), name="reconcile"),
            asyncio.create_task(
                self._every(self.health_check_interval, self._tell_health, "tell health"), name="tell health"
            ),
        ]
        needs_browser = any(map(self.jobs.needs_pages, self.queues))
        browser = [asyncio.create_task(self._pages.keep(), name="keep browser")] if needs_browser else []
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
        if self._tasks:
            log.info("draining", running=len(self._tasks), at_most_s=self.settings.drain_s)
            await asyncio.wait(self._tasks, timeout=self.settings.drain_s)
        for attempt in self._leases:
            attempt.stop(Stop.RELEASE)
        if self._tasks:
            _, stuck = await asyncio.wait(self._tasks, timeout=CLEANUP_S * 2)
            for task in stuck:
                task.cancel()

    # one attempt

    def _begin(self, attempt: Attempt) -> None:
        attempt.task = asyncio.create_task(self._run(attempt), name=f"attempt {attempt.started.id}")
        self._tasks.add(attempt.task)
        attempt.task.add_done_callback(self._tasks.discard)

    async def _run(self, attempt: Attempt) -> None:
        """Perform, record, tell. Whatever happens, the attempt's room is given back."""
        try:
            await self._hook(self.on_job_start, self._job_ctx(attempt))
            ended = await self._perform(attempt)
            await self._hook(self.on_job_end, self._job_ctx(attempt))
            if ended is not None:
                self._count(attempt, ended.outcome, await self._recorder.record(ended))
            await self._hook(self.after_job_end, self._job_ctx(attempt))
        except Exception as error:
            attempt.log.error("the outcome is unknown; the lease ends by itself", exc_info=error)
        finally:
            self._leases.remove(attempt)
            self._claimers[attempt.queue].leave()

    async def _perform(self, attempt: Attempt) -> Ended | None:
        """The outcome; None when the lease was lost, for then nothing it did counts."""
        async with JobTransaction(self.plane.store) as transaction:
            outcome = await perform(attempt, self._tools, transaction)
            attempt.over = True
            if attempt.stopped is Stop.LEASE_LOST:
                return None
            if outcome.state is not State.SUCCEEDED or not transaction.begun:
                return Ended(attempt, outcome)
            try:
                owned = await transaction.commit(attempt.finish(outcome))
            except OutsideError as error:  # if it did commit, the record refuses to be queued again
                return Ended(attempt, decide(error, attempt.job.options.retry, attempt.started))
            if not owned:
                attempt.log.warning("the record was no longer this attempt's; its writes are rolled back")
                return None
            return Ended(attempt, outcome, recorded=True)

    def _count(self, attempt: Attempt, outcome: Outcome, state: State | None) -> None:
        if state is None:
            attempt.log.warning("the record was no longer this attempt's; its outcome is dropped")
            return
        self.jobs_complete += state is State.SUCCEEDED
        self.jobs_failed += state is State.FAILED
        self.jobs_retried += state is State.QUEUED
        fields: dict[str, object] = {"state": state.value, "outcome": outcome.attempt_state.value}
        if outcome.error is not None:
            fields["error"] = outcome.error.type
        if state is State.QUEUED:
            fields["again_in_s"] = round(outcome.delay_s, 3)
        tell = attempt.log.warning if outcome.attempt_state is not AttemptState.SUCCEEDED else attempt.log.info
        tell("attempt finished", **fields)

    def _job_ctx(self, attempt: Attempt) -> dict[Any, Any]:
        return {
            **self.ctx,
            "job_id": str(attempt.started.id),
            "job_try": attempt.started.attempt,
            "score": attempt.grant.due_ms,
        }

    # helpers

    async def _idle(self) -> None:
        """A burst worker leaves when nothing is queued and nothing runs."""
        if not self.burst or self._tasks:
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
        info = f"j_complete={self.jobs_complete} j_failed={self.jobs_failed} j_retried={self.jobs_retried} j_ongoing={len(self._tasks)}"
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
            except (OutsideError, SchemaMismatch) as error:
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


def _serialize(envelope: dict[str, Any]) -> bytes:
    return encode_envelope(envelope["f"], envelope["a"], envelope["k"])


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
