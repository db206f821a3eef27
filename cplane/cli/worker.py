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
    processes: Annotated[int, typer.Option("--processes", min=1, help="How many worker processes to run.")] = 1,
    max_jobs: Annotated[
        int,
        typer.Option("--max-jobs", min=0, help="Replace a process after N jobs, when its jobs have ended. 0: never."),
    ] = 0,
    max_memory_mb: Annotated[
        int, typer.Option("--max-memory-mb", min=0, help="Replace a process that uses more MiB. 0: never.")
    ] = 0,
) -> None:
    """Run jobs until stopped by a signal.

    [cyan]$ cplane worker --imports myapp.jobs --queues default:10,browser:4[/]

    The same as [cyan]arq cplane.worker.Settings[/]. On SIGTERM, running jobs get CPLANE_DRAIN_S seconds to
    finish.
    """
    from cplane.keeper.launch import become_keeper, is_kept
    from cplane.settings import load_settings

    given = {"queues": queues, "imports": imports}
    settings = load_settings(**{name: value for name, value in given.items() if value is not None})
    if settings.keeper and not is_kept():
        become_keeper(processes=processes, max_jobs=max_jobs, max_memory_mb=max_memory_mb)
    from cplane.cli.imports import import_jobs
    from cplane.worker import Worker

    import_jobs(settings.imports)
    Worker(settings=settings, burst=burst).run()
