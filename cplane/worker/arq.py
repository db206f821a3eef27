"""arq's side of the worker: its constructor, its settings class, and its name for the worker class."""

import asyncio
import os
import socket
from collections.abc import Callable, Sequence
from typing import Any, cast

import arq.worker
import click
from arq.connections import ArqRedis, RedisSettings
from arq.constants import default_queue_name
from arq.cron import CronJob

from cplane.errors import CplaneError
from cplane.jobs.definition import Job
from cplane.jobs.names import quarantine_of
from cplane.jobs.registry import Registry, load_jobs
from cplane.keeper.channel import ALONE_VARIABLE
from cplane.redis.envelope import deserialize, serialize
from cplane.redis.keys import queue_of
from cplane.settings import CplaneSettings, load_settings
from cplane.worker.arq_functions import ArqFunction
from cplane.worker.hooks import Hook, Hooks

OWN_ARGUMENTS = frozenset({"self", "__class__", "functions", "settings"})
"""Local names of the constructor that are not passed on to arq as they are."""


class ArqWorker(arq.worker.Worker):
    """arq's worker with cplane's settings and jobs; `cplane.worker.worker.Worker` gives it its own loop."""

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
        given = {name: value for name, value in locals().items() if name not in OWN_ARGUMENTS}
        self._read_settings(settings, queue_name or default_queue_name, max_jobs)
        given["burst"] = burst or self.is_alone
        _ensure_loop()
        plain = [function for function in functions if not isinstance(function, Job)]
        arguments: dict[str, Any] = {
            **given,
            "queue_name": queue_name or default_queue_name,
            "handle_signals": False,  # the worker's own handlers are set when the loop runs
            "job_serializer": job_serializer or serialize,
            "job_deserializer": job_deserializer or deserialize,
        }
        super().__init__(
            plain or [arq.worker.func(cast("Any", _refuse), name="cplane")], **arguments
        )  # arq insists on a function
        has_functions = bool(plain or cron_jobs)
        self.arq_functions = self._read_functions(keep_result_forever) if has_functions else {}
        self.hooks = Hooks(self.ctx, on_startup, on_shutdown, on_job_start, on_job_end, after_job_end)
        self.given_serializer = job_serializer
        self.given_signals = handle_signals
        self.name = f"{socket.gethostname()}:{os.getpid()}:{os.urandom(2).hex()}"
        self.ready = asyncio.Event()
        """Set once the worker claims jobs."""
        self.stop_requested = asyncio.Event()
        self.drain_requested = asyncio.Event()
        """Set when running jobs get no more than the drain."""
        self.retiring = False
        self.jobs_complete = self.jobs_failed = self.jobs_retried = 0

    def _read_settings(self, settings: CplaneSettings | None, queue_name: str, max_jobs: int) -> None:
        """Read the configuration and import the jobs."""
        try:
            self.settings = settings or load_settings()
            self.jobs: Registry = load_jobs(self.settings.imports)
        except CplaneError as error:
            raise _refusal(error) from None
        alone = os.environ.pop(ALONE_VARIABLE, None)
        self.is_alone = alone is not None
        """Whether its keeper started it for the jobs of a quarantine."""
        self.queues = _queues(self.settings, queue_name, max_jobs) if alone is None else {quarantine_of(alone): 1}

    def _read_functions(self, keep_forever: bool) -> dict[str, ArqFunction]:
        """Return arq's functions and cron jobs by name, with arq's defaults for what they do not say."""
        return {
            name: ArqFunction.of_arq(
                entry,
                timeout_s=self.job_timeout_s,
                max_tries=self.max_tries,
                keep_result_s=self.keep_result_s,
                keep_forever=keep_forever,
                retry=self.retry_jobs,
                shared=self.ctx,
            )
            for name, entry in self.functions.items()
        }


def _queues(settings: CplaneSettings, queue_name: str, max_jobs: int) -> dict[str, int]:
    if queue_name == default_queue_name:
        return dict(settings.queues)
    return {queue_of(queue_name): max_jobs}


def _refusal(error: CplaneError) -> Exception:
    """Programs get the error itself; `arq` on the command line shows one line instead of a traceback."""
    return click.ClickException(str(error)) if runs_under_arq() else error


def runs_under_arq() -> bool:
    """Return whether `arq` on the command line runs this worker."""
    running = click.get_current_context(silent=True)
    return running is not None and running.command.name == "arq"


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


async def _refuse(_: dict[Any, Any]) -> None:
    raise RuntimeError("not a job")


def redis_settings_of_environment() -> RedisSettings | None:
    """Return where `arq --check` looks; the worker itself connects by CPLANE_REDIS_URL."""
    url = os.environ.get("CPLANE_REDIS_URL")
    return RedisSettings.from_dsn(url) if url and url.startswith(("redis://", "rediss://", "unix://")) else None
