"""`cplane jobs`: list, show, cancel and retry jobs."""

from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cplane.cli.console import console, notes
from cplane.cli.event_loop import run
from cplane.cli.plane import open_plane, read_id
from cplane.jobs.states import State
from cplane.runtime.visible import visible

if TYPE_CHECKING:
    from cplane.plane.transient import TransientJob
    from cplane.postgres.models import ArtifactRecord, AttemptRecord, JobRecord
    from cplane.postgres.rows import RecordFilter, RecordSummary

app = typer.Typer(no_args_is_help=True)

Id = Annotated[str, typer.Argument(metavar="ID", help="Id of a job, as `cplane jobs list` shows it.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.callback()
def jobs() -> None:
    """List, show, cancel and retry jobs.

    [cyan]$ cplane jobs list --state failed[/]
    """


@app.command("list")
def list_jobs(
    *,
    state: Annotated[State | None, typer.Option("--state", "-s", help="Only jobs in this state.")] = None,
    job: Annotated[str | None, typer.Option("--job", "-j", help="Only jobs of this name.")] = None,
    queue: Annotated[str | None, typer.Option("--queue", "-q", help="Only jobs of this queue.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=1000, help="Maximum number to list.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first.

    [cyan]$ cplane jobs list --state failed --limit 5[/]
    """
    from datetime import UTC, datetime

    from cplane.cli.report import records_table
    from cplane.postgres.rows import RecordFilter

    async def request() -> "list[RecordSummary]":
        async with open_plane() as plane:
            return await plane.records(RecordFilter(state, job, queue), limit=limit)

    records = run(request())
    if as_json:
        from cplane.web.views import job_summary

        print_json([job_summary(record, f"/api/v1/jobs/{record.id}").model_dump(mode="json") for record in records])
    elif records:
        console().print(records_table(records, datetime.now(UTC)))
    else:
        notes().print("there are no such jobs")


@app.command()
def show(job_id: Id, *, as_json: AsJson = False) -> None:
    """Show a job with its result, its attempts and its artifacts.

    [cyan]$ cplane jobs show ID[/]
    """
    from cplane.cli.report import record_view
    from cplane.plane.transient import TransientJob

    record_id = read_id(job_id)

    async def request() -> "tuple[JobRecord | TransientJob, list[AttemptRecord], list[ArtifactRecord]]":
        async with open_plane() as plane:
            record = await plane.job(record_id)
            if isinstance(record, TransientJob):
                return record, [], []
            return record, await plane.attempts(record_id), await plane.artifacts_of([record_id])

    record, attempts, artifacts = run(request())
    if as_json:
        print_json(record_json(record, attempts, artifacts))
    else:
        console().print(record_view(record, attempts, artifacts))


@app.command()
def cancel(job_id: Id) -> None:
    """Cancel a job. A running job is cancelled by its worker.

    [cyan]$ cplane jobs cancel ID[/]
    """
    record_id = read_id(job_id)

    async def request() -> State:
        async with open_plane() as plane:
            return await plane.cancel(record_id)

    state = run(request())
    notes().print("cancelled" if state is State.CANCELLED else "the worker that runs it is notified")


class Retriable(StrEnum):
    """States of a job that can be retried."""

    FAILED = "failed"
    CANCELLED = "cancelled"


@app.command()
def retry(
    job_id: Annotated[
        str | None, typer.Argument(metavar="ID", help="Id of a job; without it, all jobs that match the options.")
    ] = None,
    *,
    state: Annotated[Retriable | None, typer.Option("--state", "-s", help="All jobs in this state.")] = None,
    job: Annotated[str | None, typer.Option("--job", "-j", help="With --state: only jobs of this name.")] = None,
    queue: Annotated[str | None, typer.Option("--queue", "-q", help="With --state: only jobs of this queue.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count the jobs.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
) -> None:
    """Requeue a failed or cancelled job, or many of them.

    [cyan]$ cplane jobs retry ID[/]

    [cyan]$ cplane jobs retry --state failed --job screenshot --dry-run[/]
    """
    many = state is not None or job is not None or queue is not None or dry_run or yes
    if job_id is None and state is None:
        raise typer.BadParameter("give the id of a job, or a state: --state failed")
    if job_id is not None and many:
        raise typer.BadParameter("an id names one job; omit the id, or the options")
    if job_id is None:
        _retry_many(State(str(state)), job, queue, dry_run=dry_run, yes=yes)
        return
    record_id = read_id(job_id)

    async def request() -> None:
        async with open_plane() as plane:
            await plane.retry(record_id)

    run(request())
    notes().print("requeued")


def _retry_many(state: State, job: str | None, queue: str | None, *, dry_run: bool, yes: bool) -> None:
    import sys

    from cplane.errors import InvalidArguments
    from cplane.postgres.rows import RecordFilter

    where = RecordFilter(state, job, queue)
    count = run(_count(where))
    jobs = f"{count} {state} job{'' if count == 1 else 's'}"
    if dry_run or not count:
        notes().print(f"{jobs} would be requeued" if count else "there are no such jobs")
        return
    if not yes:
        if not sys.stdin.isatty():
            raise InvalidArguments(f"{jobs} would be requeued", hint="add --yes to do it, --dry-run to count only")
        typer.confirm(f"requeue {jobs}?", abort=True, err=True)
    done = run(_show_retries(where, count))
    notes().print(f"{done} requeued")


async def _count(where: "RecordFilter") -> int:
    async with open_plane() as plane:
        return await plane.count_retriable(where)


async def _show_retries(where: "RecordFilter", count: int) -> int:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("requeueing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    done = 0
    async with open_plane() as plane:
        with Progress(*columns, console=notes(), transient=True) as progress:
            line = progress.add_task("", total=count)
            async for ids in plane.retry_many(where):
                done += len(ids)
                progress.update(line, completed=done)
    return done


def record_json(
    record: "JobRecord | TransientJob",
    attempts: "Sequence[AttemptRecord]" = (),
    artifacts: "Sequence[ArtifactRecord]" = (),
) -> dict[str, Any]:
    """Return a record as GET /api/v1/jobs/{id} returns it."""
    from cplane.web.views import job_view

    return job_view(record, attempts, artifacts, f"/api/v1/jobs/{record.id}").model_dump(mode="json")


def print_json(value: object) -> None:
    """Print JSON, indented on a terminal, on one line into a pipe."""
    import json
    import sys

    if sys.stdout.isatty():
        console().print_json(data=value, ensure_ascii=False)
    else:
        typer.echo(visible(json.dumps(value, ensure_ascii=False)))
