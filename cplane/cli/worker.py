"""`cplane worker`: run jobs."""

from typing import Annotated

import typer


def worker(
    *,
    queues: Annotated[
        str | None,
        typer.Option("--queues", "-q", metavar="NAME:N,…", help="Queues to serve, each with its concurrency."),
    ] = None,
    imports: Annotated[
        str | None, typer.Option("--imports", "-i", metavar="MODULE,…", help="Modules that define jobs.")
    ] = None,
    burst: Annotated[bool, typer.Option("--burst", help="Exit when no job is left.")] = False,
) -> None:
    """Run jobs until stopped by a signal.

    [cyan]$ cplane worker --imports myapp.jobs --queues default:10,browser:4[/]

    The same as [cyan]arq cplane.worker.Settings[/]. On SIGTERM, running jobs get CPLANE_DRAIN_S seconds to
    finish.
    """
    from cplane.cli.imports import import_jobs
    from cplane.settings import load_settings
    from cplane.worker import Worker

    given = {"queues": queues, "imports": imports}
    settings = load_settings(**{name: value for name, value in given.items() if value is not None})
    import_jobs(settings.imports)
    Worker(settings=settings, burst=burst).run()
