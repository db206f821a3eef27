"""`cplane jobs`: look at jobs, cancel them, run them again."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cplane.cli.console import console, notes
from cplane.cli.loop import run
from cplane.cli.plane import open_plane, read_id
from cplane.states import State

if TYPE_CHECKING:
    from cplane.records import ArtifactRecord, AttemptRecord, JobRecord

app = typer.Typer(no_args_is_help=True)

Id = Annotated[str, typer.Argument(metavar="ID", help="The id of a job, as `cplane jobs list` shows it.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.callback()
def jobs() -> None:
    """Look at jobs, cancel them, run them again.

    [cyan]$ cplane jobs list --state failed[/]
    """


@app.command("list")
def list_jobs(
    *,
    state: Annotated[State | None, typer.Option("--state", "-s", help="Only those in this state.")] = None,
    job: Annotated[str | None, typer.Option("--job", "-j", help="Only those of this name.")] = None,
    queue: Annotated[str | None, typer.Option("--queue", "-q", help="Only those of this queue.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=1000, help="At most so many.")] = 20,
    as_json: AsJson = False,
) -> None:
    """Jobs, newest first.

    [cyan]$ cplane jobs list --state failed --limit 5[/]
    """
    from datetime import UTC, datetime

    from cplane.cli.report import records_table
    from cplane.store import RecordFilter

    async def ask() -> "list[JobRecord]":
        async with open_plane() as plane:
            return await plane.records(RecordFilter(state, job, queue), limit=limit)

    records = run(ask())
    if as_json:
        from cplane.web.views import job_summary

        print_json([job_summary(record, f"/api/v1/jobs/{record.id}").model_dump(mode="json") for record in records])
    elif records:
        console().print(records_table(records, datetime.now(UTC)))
    else:
        notes().print("there are no such jobs")


@app.command()
def show(job_id: Id, *, as_json: AsJson = False) -> None:
    """One job with its result, its runs and its files.

    [cyan]$ cplane jobs show ID[/]
    """
    from cplane.cli.report import record_view

    record_id = read_id(job_id)

    async def ask() -> "tuple[JobRecord, list[AttemptRecord], list[ArtifactRecord]]":
        async with open_plane() as plane:
            record = await plane.record(record_id)
            return record, await plane.attempts(record_id), await plane.artifacts_of([record_id])

    record, attempts, artifacts = run(ask())
    if as_json:
        print_json(record_json(record, attempts, artifacts))
    else:
        console().print(record_view(record, attempts, artifacts))


@app.command()
def cancel(job_id: Id) -> None:
    """Cancel a job; a running one is stopped by its worker.

    [cyan]$ cplane jobs cancel ID[/]
    """
    record_id = read_id(job_id)

    async def ask() -> State:
        async with open_plane() as plane:
            return await plane.cancel(record_id)

    state = run(ask())
    notes().print("cancelled" if state is State.CANCELLED else "its worker is told to stop it")


@app.command()
def retry(job_id: Id) -> None:
    """Run a failed or cancelled job again.

    [cyan]$ cplane jobs retry ID[/]
    """
    record_id = read_id(job_id)

    async def ask() -> None:
        async with open_plane() as plane:
            await plane.retry(record_id)

    run(ask())
    notes().print("queued again")


def record_json(
    record: "JobRecord", attempts: "Sequence[AttemptRecord]" = (), artifacts: "Sequence[ArtifactRecord]" = ()
) -> dict[str, Any]:
    """A record as GET /api/v1/jobs/{id} shows it."""
    from cplane.web.views import job_view

    return job_view(record, attempts, artifacts, f"/api/v1/jobs/{record.id}").model_dump(mode="json")


def print_json(value: object) -> None:
    """Pretty on a terminal, one line when piped."""
    import json
    import sys

    if sys.stdout.isatty():
        console().print_json(data=value, ensure_ascii=False)
    else:
        typer.echo(json.dumps(value, ensure_ascii=False))
