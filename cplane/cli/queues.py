"""`cplane queues`: how the queues stand, and what was set aside from them."""

from typing import TYPE_CHECKING, Annotated

import typer

from cplane.cli.console import console, notes
from cplane.cli.jobs import AsJson, print_json
from cplane.cli.loop import run
from cplane.cli.plane import open_plane

if TYPE_CHECKING:
    from cplane.redis.dead_letters import Aside
    from cplane.redis.limiter import HostStand
    from cplane.redis.messages import Stand

app = typer.Typer(invoke_without_command=True)


@app.callback()
def queues(context: typer.Context, *, as_json: AsJson = False) -> None:
    """How the queues stand, and what was set aside from them.

    [cyan]$ cplane queues[/]

    [cyan]$ cplane queues hosts[/]

    [cyan]$ cplane queues aside[/]
    """
    if context.invoked_subcommand is not None:
        return

    async def ask() -> "tuple[list[Stand], int]":
        async with open_plane() as plane:
            return await plane.queues(), await plane.count_aside()

    stands, aside = run(ask())
    if as_json:
        views = [{"name": each.queue, "due": each.due, "later": each.later, "lag": each.lag_s} for each in stands]
        print_json({"queues": views, "aside": aside})
        return
    from cplane.cli.report import queues_table

    console().print(queues_table(stands))
    if aside:
        notes().print(f"[yellow]{aside} set aside[/]; `cplane queues aside` shows them", soft_wrap=True)


@app.command()
def hosts(*, as_json: AsJson = False) -> None:
    """The hosts that jobs wait for, because of a limit or a cooldown.

    [cyan]$ cplane queues hosts[/]
    """

    async def ask() -> "list[HostStand]":
        async with open_plane() as plane:
            return await plane.host_stands()

    stands = run(ask())
    if as_json:
        print_json(
            [
                {
                    "host": each.host,
                    "running": each.in_use,
                    "concurrency": each.concurrency or None,
                    "rate": each.rate or None,
                    "waiting": each.waiting,
                    "next_start": each.next_start_s,
                    "cooldown": each.cooldown_s,
                }
                for each in stands
            ]
        )
    elif stands:
        from cplane.cli.report import hosts_table

        console().print(hosts_table(stands))
    else:
        notes().print("no job waits for a host or a session")


@app.command()
def aside(
    *,
    requeue: Annotated[
        str | None, typer.Option("--requeue", metavar="ID", help="Put this one back into its queue.")
    ] = None,
    drop: Annotated[str | None, typer.Option("--drop", metavar="ID", help="Forget this one.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=10_000, help="Show at most so many.")] = 100,
    as_json: AsJson = False,
) -> None:
    """What nobody could run, newest first, with the reason.

    [cyan]$ cplane queues aside[/]

    [cyan]$ cplane queues aside --requeue ID[/]
    """
    if requeue is not None and drop is not None:
        raise typer.BadParameter("--requeue and --drop exclude each other")

    async def ask() -> "list[Aside]":
        async with open_plane() as plane:
            if requeue is not None:
                await plane.requeue_aside(requeue)
            if drop is not None:
                await plane.drop_aside(drop)
            return [] if requeue or drop else await plane.aside(limit)

    found = run(ask())
    if requeue or drop:
        notes().print("queued again" if requeue else "forgotten")
    elif as_json:
        print_json(
            [{"at": _iso(each.at_ms), "queue": each.queue, "id": each.id, "reason": each.reason} for each in found]
        )
    elif found:
        from cplane.cli.report import aside_table

        console().print(aside_table(found))
    else:
        notes().print("nothing is set aside")


def _iso(at_ms: int) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
