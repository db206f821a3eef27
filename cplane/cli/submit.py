"""`cplane submit`: submits one job, waits for it, prints its result."""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from uuid import UUID

import typer

from cplane.cli.console import notes, styled
from cplane.cli.event_loop import run
from cplane.cli.jobs import print_json, record_json
from cplane.cli.plane import open_plane
from cplane.errors import CplaneError, InvalidTransition, JobCancelled, JobFailed
from cplane.jobs.states import Priority, State
from cplane.runtime.cancellation import cancel_all

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from cplane.plane.control_plane import ControlPlane
    from cplane.plane.transient import TransientJob
    from cplane.postgres.models import ArtifactRecord, JobRecord

QUEUED_HINT_DELAY_S = 5.0
"""A job that is still queued after this time may have no worker; a hint says so."""


def submit(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the job.")],
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE…", help="Arguments; lists and objects as JSON.")
    ] = None,
    *,
    args_json: Annotated[
        str | None, typer.Option("--args", "-a", metavar="JSON", help="Arguments as one JSON object.")
    ] = None,
    queue: Annotated[str | None, typer.Option("--queue", "-q", help="A queue other than the job's own.")] = None,
    priority: Annotated[
        Priority | None, typer.Option("--priority", "-p", help="A priority other than the job's own.")
    ] = None,
    delay: Annotated[
        float | None, typer.Option("--delay", "-d", metavar="SECONDS", help="Start it after this many seconds.")
    ] = None,
    job_timeout: Annotated[
        float | None,
        typer.Option(
            "--job-timeout", metavar="SECONDS", help="Maximum duration of each attempt; at most the job's own."
        ),
    ] = None,
    key: Annotated[
        str | None, typer.Option("--key", "-k", help="Idempotency key: the same key returns the same job.")
    ] = None,
    imports: Annotated[
        str | None, typer.Option("--imports", "-i", metavar="MODULE,…", help="Modules that define jobs.")
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Wait for the result, or print the id and exit.")
    ] = True,
    timeout: Annotated[
        float | None, typer.Option("--timeout", "-t", metavar="SECONDS", help="Maximum wait; the job goes on.")
    ] = None,
    save: Annotated[
        Path | None, typer.Option("--save", "-o", metavar="FOLDER", help="Save the job's artifacts here.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the complete record as JSON.")] = False,
) -> None:
    """Submit a job, wait for it, print its result.

    [cyan]$ cplane submit screenshot url=https://example.com --save .[/]

    A value is parsed as JSON where the job takes more than text: [cyan]n=3 flag=true viewport='{"width": 800}'[/]
    """
    from cplane.cli.arguments import read_arguments
    from cplane.cli.imports import import_jobs

    async def request() -> None:
        async with open_plane(imports) as plane:
            job = import_jobs(plane.settings.imports).get(name)
            if wait and not job.options.keeps_result:
                raise InvalidTransition(
                    job.options.no_result_message, hint="add --no-wait to submit it without waiting"
                )
            values = read_arguments(arguments or [], args_json, job.schema())
            handle = await plane.create_job(
                name, values, key=key, delay=delay, queue=queue, priority=priority, timeout=job_timeout
            )
            if not wait:
                print_json(record_json(await plane.job(handle.id))) if as_json else typer.echo(str(handle.id))
                return
            record = await _wait(plane, handle.id, name, timeout)
            artifacts = await plane.artifacts_of([record.id]) if job.options.record else []
            _print_outcome(record, artifacts, as_json=as_json)
            await _save_artifacts(plane, record.id, artifacts, save)

    run(request())


def _print_outcome(record: "JobRecord | TransientJob", artifacts: "list[ArtifactRecord]", *, as_json: bool) -> None:
    """Print the record or its result. Raises JobFailed, JobCancelled."""
    if as_json:
        print_json(record_json(record, artifacts=artifacts))
    _raise_unless_succeeded(record)
    if not as_json:
        print_json(record.result)


async def _wait(
    plane: "ControlPlane", record_id: UUID, name: str, timeout_s: float | None
) -> "JobRecord | TransientJob":
    """Return the final record; show its progress on stderr until then."""
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=notes(), transient=True) as progress:
        task_id = progress.add_task(f"{name} {record_id}", total=None, note=State.QUEUED.value)
        shown = asyncio.create_task(_show(plane, record_id, progress, task_id), name="show progress")
        hint = asyncio.create_task(_hint(progress, task_id), name="hint at a missing worker")
        try:
            return await plane.wait(record_id, timeout_s)
        except TimeoutError:
            raise CplaneError(
                f"job {record_id} is not final after {timeout_s:g} s; it goes on",
                hint=f"`cplane jobs show {record_id}` shows it",
            ) from None
        except asyncio.CancelledError:
            progress.console.print(f"job {record_id} goes on; `cplane jobs show {record_id}` shows it", soft_wrap=True)
            raise
        finally:
            await cancel_all([shown, hint])


async def _show(plane: "ControlPlane", record_id: UUID, progress: "Progress", task_id: "TaskID") -> None:
    """Show the events of the record until cancelled; without Redis, show the error."""
    from cplane.cli.report import progress_text
    from cplane.errors import QueueUnavailable

    try:
        async for events in plane.progress(record_id):
            for event in events:
                progress.update(task_id, note=event.state.value)
                if event.data and event.data.get("done") is not None:
                    done, total, note = event.data["done"], event.data.get("total"), event.data.get("note")
                    progress.update(task_id, completed=done, total=total, note=progress_text(done, total, note))
    except QueueUnavailable as error:
        progress.update(task_id, note=str(error))


async def _hint(progress: "Progress", task_id: "TaskID") -> None:
    await asyncio.sleep(QUEUED_HINT_DELAY_S)
    if progress.tasks[task_id].fields["note"] == State.QUEUED:
        progress.console.print("still queued; is a worker running that serves its queue?", soft_wrap=True)


def _raise_unless_succeeded(record: "JobRecord | TransientJob") -> None:
    if record.state is State.CANCELLED:
        raise JobCancelled(f"job '{record.job}' was cancelled", hint=f"`cplane jobs retry {record.id}` requeues it")
    if record.state is State.FAILED:
        if record.error_traceback:
            notes().print(record.error_traceback.rstrip(), style="dim", soft_wrap=True)
        raise JobFailed(
            record.job, record.error_type or "Error", record.error_message or "", record.error_traceback or ""
        )


async def _save_artifacts(
    plane: "ControlPlane", record_id: UUID, artifacts: "list[ArtifactRecord]", folder: Path | None
) -> None:
    """Save the artifacts to `folder`; without one, list them."""
    from cplane.cli.report import artifacts_table

    if not artifacts:
        return
    if folder is None:
        notes().print(artifacts_table(artifacts))
        notes().print("--save FOLDER saves them", style="dim")
        return
    await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
    for artifact in artifacts:
        path = folder / artifact.name
        async with plane.open_artifact(record_id, artifact.name) as (_, chunks):
            with await asyncio.to_thread(path.open, "wb") as file:
                async for chunk in chunks:
                    await asyncio.to_thread(file.write, chunk)
        notes().print(styled("[green]saved[/] {}", path), soft_wrap=True)
