"""`cplane worker`: run jobs."""

from typing import Annotated

import typer


def worker(
    *,
    queues: Annotated[
        str | None,
        typer.Option("--queues", "-q", metavar="NAME:N,…", help="Queues to serve, with how many jobs at once."),
    ] = None,
    imports: Annotated[
        str | None, typer.Option("--imports", "-i", metavar="MODULE,…", help="Modules that define jobs.")
    ] = None,
    burst: Annotated[bool, typer.Option("--burst", help="End when no job is left.")] = False,
) -> None:
    """Run jobs until stopped.

    [cyan]$ cplane worker --imports myapp.jobs[/]

    The same as [cyan]arq cplane.worker.Settings[/]. SIGTERM lets running jobs end within CPLANE_DRAIN_S seconds.
    """
    from cplane.cli.imports import import_jobs
    from cplane.settings import load_settings
    from cplane.worker import Worker

    given = {"queues": queues, "imports": imports}
    settings = load_settings(**{name: value for name, value in given.items() if value is not None})
    import_jobs(settings.imports)
    Worker(settings=settings, burst=burst).run()
