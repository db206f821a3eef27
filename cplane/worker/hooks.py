"""arq's hooks: called around jobs and around the worker's life. A hook that raises is logged; it ends nothing."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import structlog

if TYPE_CHECKING:
    from cplane.worker.attempt import Attempt

Hook = Callable[[dict[Any, Any]], Awaitable[None]]

log = structlog.get_logger("cplane")


@dataclass(frozen=True, slots=True)
class Hooks:
    """The hooks of a worker, with arq's ctx, which all of them share."""

    ctx: dict[Any, Any]
    startup: Hook | None = None
    shutdown: Hook | None = None
    job_start: Hook | None = None
    job_end: Hook | None = None
    after_job: Hook | None = None

    @property
    def around_jobs(self) -> bool:
        """Whether there is a hook before or after the code of each job."""
        return self.job_start is not None or self.job_end is not None

    async def on_startup(self) -> None:
        """Call `on_startup`."""
        await _call(self.startup, self.ctx)

    async def on_shutdown(self) -> None:
        """Call `on_shutdown`."""
        await _call(self.shutdown, self.ctx)

    async def on_job_start(self, attempt: "Attempt") -> None:
        """Call `on_job_start`, before the job's code."""
        await _call(self.job_start, self._of(attempt))

    async def on_job_end(self, attempt: "Attempt") -> None:
        """Call `on_job_end`, after the job's code."""
        await _call(self.job_end, self._of(attempt))

    async def after_job_end(self, attempt: "Attempt") -> None:
        """Call `after_job_end`, when the outcome is recorded."""
        await _call(self.after_job, self._of(attempt))

    def _of(self, attempt: "Attempt") -> dict[Any, Any]:
        lease = attempt.lease
        return {**self.ctx, "job_id": lease.id, "job_try": attempt.number, "score": lease.due_ms}


async def _call(hook: Hook | None, ctx: dict[Any, Any]) -> None:
    if hook is None:
        return
    try:
        await hook(ctx)
    except Exception as error:
        log.error("hook_failed", hook=getattr(hook, "__name__", repr(hook)), exc_info=error)
