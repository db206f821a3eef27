"""`cplane dead-letters`: list, requeue and drop entries of queues that no worker can run."""

from typing import TYPE_CHECKING, Annotated

import typer

from cplane.cli.console import console, notes
from cplane.cli.event_loop import run
from cplane.cli.jobs import AsJson, print_json
from cplane.cli.plane import open_plane

if TYPE_CHECKING:
    from cplane.redis.dead_letters import DeadLetter

app = typer.Typer(invoke_without_command=True)

JobId = Annotated[str, typer.Argument(metavar="ID", help="Id of a dead letter, as the list shows it.")]
Limit = Annotated[int, typer.Option("--limit", "-n", min=1, max=10_000, help="Maximum number to show.", metavar="N")]


@app.callback()
def dead_letters(context: typer.Context) -> None:
    """Entries of queues that no worker can run: list, requeue, drop.

    [cyan]$ cplane dead-letters[/]

    [cyan]$ cplane dead-letters requeue ID[/]

    [cyan]$ cplane dead-letters drop ID[/]
    """
    if context.invoked_subcommand is None:
        _list(100, as_json=False)


@app.command("list")
def list_(*, limit: Limit = 100, as_json: AsJson = False) -> None:
    """List dead letters with their reasons, newest first.

    [cyan]$ cplane dead-letters list --limit 20[/]
    """
    _list(limit, as_json=as_json)


@app.command()
def requeue(job_id: JobId) -> None:
    """Return a dead letter to its queue, ready to run.

    [cyan]$ cplane dead-letters requeue ID[/]
    """

    async def request() -> None:
        async with open_plane() as plane:
            await plane.dead_letters.requeue(job_id)

    run(request())
    notes().print("requeued")


@app.command()
def drop(job_id: JobId) -> None:
    """Delete a dead letter. This cannot be undone.

    [cyan]$ cplane dead-letters drop ID[/]
    """

    async def request() -> None:
        async with open_plane() as plane:
            await plane.dead_letters.drop(job_id)

    run(request())
    notes().print("dropped")


def _list(limit: int, *, as_json: bool) -> None:
    async def request() -> "list[DeadLetter]":
        async with open_plane() as plane:
            return await plane.dead_letters.newest(limit)

    letters = run(request())
    if as_json:
        print_json(
            [{"at": _iso(each.at_ms), "queue": each.queue, "id": each.id, "reason": each.reason} for each in letters]
        )
    elif letters:
        from cplane.cli.report import dead_letters_table

        console().print(dead_letters_table(letters))
    else:
        notes().print("there are no dead letters")


def _iso(at_ms: int) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
