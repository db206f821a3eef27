"""`cplane queues`: the state of the queues, and of the hosts that jobs wait for."""

from typing import TYPE_CHECKING

import typer

from cplane.cli.console import console, notes, styled
from cplane.cli.event_loop import run
from cplane.cli.jobs import AsJson, print_json
from cplane.cli.plane import open_plane

if TYPE_CHECKING:
    from cplane.redis.limiter import LimiterStats
    from cplane.redis.messages import QueueStats

app = typer.Typer(invoke_without_command=True)


@app.callback()
def queues(context: typer.Context, *, as_json: AsJson = False) -> None:
    """Show the state of the queues: ready, scheduled and running jobs, and latency.

    [cyan]$ cplane queues[/]

    [cyan]$ cplane queues hosts[/]
    """
    if context.invoked_subcommand is not None:
        return

    async def request() -> "tuple[list[QueueStats], int]":
        async with open_plane() as plane:
            return await plane.queues(), await plane.dead_letters.count()

    stats, dead_letters = run(request())
    if as_json:
        queues = [
            {
                "name": each.queue,
                "ready": each.ready,
                "scheduled": each.scheduled,
                "running": each.running,
                "latency_s": each.latency_s,
            }
            for each in stats
        ]
        print_json({"queues": queues, "dead_letters": dead_letters})
        return
    from cplane.cli.report import queues_table

    console().print(queues_table(stats))
    if dead_letters:
        count = "1 dead letter" if dead_letters == 1 else f"{dead_letters} dead letters"
        notes().print(styled("[yellow]{}[/]; `cplane dead-letters` shows the reasons", count), soft_wrap=True)


@app.command()
def hosts(*, as_json: AsJson = False) -> None:
    """List the hosts that jobs wait for, because of a limit or a cooldown.

    [cyan]$ cplane queues hosts[/]
    """

    async def request() -> "list[LimiterStats]":
        async with open_plane() as plane:
            return await plane.limiter_stats()

    stats = run(request())
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
                for each in stats
            ]
        )
    elif stats:
        from cplane.cli.report import hosts_table

        console().print(hosts_table(stats))
    else:
        notes().print("no job waits for a host or a session")
