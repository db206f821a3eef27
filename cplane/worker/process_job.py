"""Jobs with `runs_in="process"`: the call of one attempt, and what the job reports meanwhile."""

from typing import TYPE_CHECKING, cast

import msgspec

from cplane.jobs.context import Context
from cplane.jobs.definition import AnyJob
from cplane.worker import process_messages as messages
from cplane.worker.process_pool import ProcessPool

if TYPE_CHECKING:
    from cplane.worker.attempt import Attempt

LEVELS = frozenset({"debug", "info", "warning", "error", "critical"})
OWN_FIELDS = frozenset({"event", "exc_info", "stack_info", "record", "job", "attempt"})
"""Fields of a log line that the job cannot set."""


class JsonResult(msgspec.Struct, frozen=True):
    """The result of a job that is JSON already."""

    json: bytes


async def run_in_process(
    pool: ProcessPool,
    job: AnyJob,
    attempt: "Attempt",
    args_json: bytes,
    context: Context | None,
    *,
    max_result_bytes: int,
) -> JsonResult:
    """Run a job in a process. Its deadline starts when the process does.

    Args:
        pool: the processes.
        job: the job.
        attempt: its attempt.
        args_json: its arguments.
        context: takes progress and log lines; None: the job does not ask for it.
        max_result_bytes: size of the largest result, bytes.

    Raises:
        RemoteError: the job raised an error.
        ProcessDied: its process ended under it.
        InfrastructureError: there is no process to run it.
    """
    request = messages.RunJob(
        job=job.name,
        module=job.fn.__module__,
        file=job.fn.__code__.co_filename,
        id=attempt.uuid,
        key=attempt.lease.id,
        attempt=attempt.number,
        failures=attempt.failures,
        args_json=args_json,
        memory_mb=job.options.memory_mb,
        max_result_bytes=max_result_bytes,
    )

    def handle(report: messages.Report) -> None:
        if isinstance(report, messages.Began):
            attempt.begin()
        elif context is not None:
            _pass_on(report, context)

    return JsonResult(cast("bytes", await pool.run(request, handle)))


def _pass_on(report: messages.ProgressLine | messages.LogLine, context: Context) -> None:
    """Do what the job asks its context for."""
    if isinstance(report, messages.ProgressLine):
        context.progress(report.done, report.total, report.note)
        return
    fields = {name: value for name, value in report.fields.items() if name not in OWN_FIELDS}
    write = getattr(context.log, report.level if report.level in LEVELS else "info")
    write(report.event, **fields)
