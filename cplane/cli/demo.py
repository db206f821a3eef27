"""`cplane demo`: starts everything and runs a few dozen browser jobs."""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cplane.cli.console import console, notes, styled, typed
from cplane.cli.event_loop import run
from cplane.cli.signals import StoppedBySignals
from cplane.cli.web import Port
from cplane.errors import BrowserNotFound, InvalidSettings

if TYPE_CHECKING:
    from rich.console import Console

    from cplane.cli.local import LocalPlane
    from cplane.demo.tour import VisitResult
    from cplane.demo.visits import Visit

FOLDER = Path("cplane-demo")


@dataclass(frozen=True, slots=True)
class Target:
    """The API that the demo uses: its own, or that of a running `cplane dev`."""

    url: str
    key: str | None
    local: "LocalPlane | None"


def demo(
    urls: Annotated[
        list[str] | None,
        typer.Argument(metavar="URL…", help="Pages to visit instead of the sample site.", show_default=False),
    ] = None,
    *,
    keep: Annotated[bool, typer.Option("--keep", "-k", help="Keep everything running until Ctrl-C.")] = False,
    port: Port = 0,
) -> None:
    """Run a few dozen browser jobs on a sample site.

    [cyan]$ cplane demo[/]

    [cyan]$ cplane demo https://example.com[/]

    Installs a browser if there is none, starts Postgres, Redis, the HTTP API and a worker, submits jobs over HTTP, and
    saves pictures, PDF and JSON files in [cyan]./cplane-demo[/]. Exits with status 1 if a job failed.
    """
    raise typer.Exit(run(_demo(urls or [], keep=keep, port=port)))


async def _demo(urls: Sequence[str], *, keep: bool, port: int) -> int:
    if find_spec("httpx2") is None:
        raise InvalidSettings("the demo needs the package httpx2", hint="pip install 'cplane[dev]'")
    shown = notes()
    code: int | None = None
    with StoppedBySignals() as stop:
        await _ensure_browser(shown)
        async with AsyncExitStack() as opening:
            target = await opening.enter_async_context(_target(shown, port))
            visits = await _visits(opening, urls)
            results, took_s = await _run_visits(shown, target, visits)
            code = _report(shown, results, took_s)
            if keep and target.local is not None:
                addresses = (f"{target.url}/api/v1/jobs", f"{target.url}/docs")
                shown.print(styled("still running: API [cyan]{}[/], docs [cyan]{}[/]; stop with Ctrl-C", *addresses))
                raise await target.local.ended()
            _show_next_steps(shown, target)
    return 128 + (stop.signum or 0) if code is None else code


async def _ensure_browser(shown: "Console") -> None:
    """Install a browser if there is none."""
    from rich.text import Text

    from cplane.browser import find_executable, install

    try:
        find_executable()
    except BrowserNotFound:
        shown.print(styled("[bold]no browser is installed[/], installing one"))
        with shown.status("installing") as status:

            def show_line(line: str) -> None:
                status.update(Text(line, "dim", overflow="ellipsis", no_wrap=True))

            found = await install(show_line)
        shown.print(styled("[green]✓[/] browser       [dim]{}[/]", found.path), soft_wrap=True)


@asynccontextmanager
async def _target(shown: "Console", port: int) -> AsyncGenerator[Target]:
    """Return the API of the `cplane dev` that runs in this folder, else start everything."""
    from cplane.cli.local import LocalPlane
    from cplane.runtime.stack_file import running_stack
    from cplane.settings import load_settings

    running = running_stack(Path.cwd()).get("api_url")
    if running is not None:
        shown.print(styled("[green]✓[/] using the running [bold]cplane dev[/]  [dim]{}[/]", running), soft_wrap=True)
        keys = load_settings().api_keys
        yield Target(running, keys[0].get_secret_value() if keys else None, None)
        return
    started = time.perf_counter()
    async with AsyncExitStack() as opening:
        with shown.status("starting Postgres, Redis, HTTP API and a worker"):
            local = await opening.enter_async_context(LocalPlane(Path.cwd(), port=port, log_level="error"))
        took_s = time.perf_counter() - started
        shown.print(
            styled(
                "[green]✓[/] started Postgres, Redis, HTTP API and a worker in {} s  [dim]{}[/]",
                f"{took_s:.1f}",
                local.api_url,
            ),
            soft_wrap=True,
        )
        keys = local.settings.api_keys
        yield Target(local.api_url, keys[0].get_secret_value() if keys else None, local)


async def _visits(opening: AsyncExitStack, urls: Sequence[str]) -> "list[Visit]":
    """Return visits of the given pages, else of the sample site, which is served as long as `opening` is open."""
    from cplane.demo.sample import create_site
    from cplane.demo.visits import sample_visits, visits_of
    from cplane.web import open_server

    if urls:
        return visits_of(urls)
    site = await opening.enter_async_context(open_server(create_site(), "127.0.0.1", 0))
    return sample_visits(site.url)


async def _run_visits(shown: "Console", target: Target, visits: "Sequence[Visit]") -> "tuple[list[VisitResult], float]":
    """Run all visits. Return their results in the order of the visits, and how long they took."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from cplane.demo.api import Api
    from cplane.demo.tour import tour

    await asyncio.to_thread(FOLDER.mkdir, exist_ok=True)
    started = time.perf_counter()
    results: list[VisitResult] = []
    bar = (TextColumn("  browsing"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(
        *bar, TextColumn("{task.description}", style="dim", markup=False), console=shown, transient=True
    ) as progress:
        task_id = progress.add_task("", total=len(visits))
        async with Api.open(target.url, target.key) as api:
            async for result in tour(api, visits, FOLDER):
                results.append(result)
                progress.update(task_id, advance=1, description=f"{result.visit.job} {result.visit.page}")
    results.sort(key=lambda result: visits.index(result.visit))
    return results, time.perf_counter() - started


def _report(shown: "Console", results: "Sequence[VisitResult]", took_s: float) -> int:
    """Show the results. Return the exit code."""
    from cplane.demo.report import results_table, size

    rate = f"{len(results)} browser jobs in {took_s:.1f} s, {len(results) / took_s:.1f} per second"
    shown.print(styled("[green]✓[/] {}", rate))
    console().print(results_table(results))
    failed = [result for result in results if not result.succeeded]
    for result in failed:
        visit = f"{result.visit.job} {result.visit.page}"
        shown.print(styled("[red]✗ {}[/] [dim]{}[/]", visit, result.record["id"]), soft_wrap=True)
        shown.print(result.excerpt, style="red", soft_wrap=True)
    files = [result.file for result in results if result.file is not None]
    if files:
        written = size(sum(result.size for result in results))
        shown.print(
            styled("[green]✓[/] {} files ({}) in [bold]./{}[/], such as {}", len(files), written, FOLDER, files[0])
        )
    return 1 if failed else 0


def _show_next_steps(shown: "Console", target: Target) -> None:
    """Show what to type next."""
    from rich.table import Table
    from rich.text import Text

    grid, command = Table.grid(padding=(0, 2)), typed()
    if target.local is not None:
        grid.add_row(
            "", Text(f"{command} dev", "bold"), "start everything again, with these jobs: http://127.0.0.1:8000/docs"
        )
    else:
        grid.add_row("", Text(f"{target.url}/docs", "bold"), "read about the API, with these jobs")
    grid.add_row("", Text(f"{command} jobs list", "bold"), "list the jobs, in a second terminal while it runs")
    grid.add_row(
        "",
        Text(f"{command} submit screenshot url=https://example.com --save .", "bold"),
        "take a screenshot of any page",
    )
    shown.print("\nnext", grid)
