"""`cplane dev`: Postgres, Redis, the HTTP API and a worker on this machine."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cplane.cli.console import notes, typed
from cplane.cli.event_loop import run
from cplane.cli.signals import StoppedBySignals
from cplane.cli.target import module_of
from cplane.cli.web import Host, Insecure, Port
from cplane.errors import BrowserNotFound

if TYPE_CHECKING:
    from rich.console import RenderableType

    from cplane.cli.local import LocalPlane

Targets = Annotated[
    list[str] | None, typer.Argument(metavar="APP.py…", help="Files or modules that define jobs.", show_default=False)
]


def dev(targets: Targets = None, *, host: Host = "127.0.0.1", port: Port = 8000, insecure: Insecure = False) -> None:
    """Run everything on this machine: Postgres, Redis, the HTTP API and a worker.

    [cyan]$ cplane dev app.py[/]

    Data is kept in [cyan].cplane[/], from one run to the next. While it runs, programs in this folder need no settings.
    If CPLANE_DATABASE_URL or CPLANE_REDIS_URL is set, that server is used instead of an embedded one.
    """
    started = time.perf_counter()
    run(_dev([module_of(target) for target in targets or []], host, port, started, insecure=insecure))


async def _dev(imports: list[str], host: str, port: int, started: float, *, insecure: bool) -> None:
    from cplane.cli.local import LocalPlane

    stderr = notes()
    with StoppedBySignals():
        async with LocalPlane(Path.cwd(), host=host, port=port, insecure=insecure, imports=imports) as local:
            took_s = time.perf_counter() - started
            stderr.print(banner(local, took_s), soft_wrap=True)
            raise await local.ended()
    stderr.print("stopped")


def banner(local: "LocalPlane", took_s: float) -> "RenderableType":
    """Return a table of addresses and of what to type next."""
    from rich.table import Table
    from rich.text import Text

    parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in local.took_s.items())
    grid = Table.grid(padding=(0, 2))
    grid.add_row("", Text("cplane is ready", "bold green"), Text(f"in {took_s:.1f} s ({parts})", "dim"))
    grid.add_row("", "API", Text(f"{local.api_url}/api/v1/jobs", "cyan"))
    grid.add_row("", "docs", Text(f"{local.api_url}/docs", "cyan"))
    grid.add_row("", "jobs", Text(", ".join(local.job_names)))
    grid.add_row("", "submit", Text(f"{typed()} submit screenshot url=https://example.com --save ."))
    grid.add_row("", "browser", _browser(local))
    grid.add_row("", "pages", Text(_egress(local), "dim"))
    grid.add_row("", "data", Text(local.data))
    grid.add_row("", "stop", "Ctrl-C")
    return grid


def _egress(local: "LocalPlane") -> str:
    """Describe which addresses pages may reach."""
    settings = local.settings
    if settings.egress == "off":
        return "reach every address that this machine reaches: CPLANE_EGRESS is off"
    also = f" and {', '.join(settings.egress_allow)}" if settings.egress_allow else ""
    return f"reach public addresses{also}; `cplane worker` refuses loopback unless CPLANE_EGRESS_ALLOW has it"


def _browser(local: "LocalPlane") -> "RenderableType":
    from rich.text import Text

    from cplane.browser import find_executable

    try:
        return Text(str(find_executable(local.settings.browser_executable).path))
    except BrowserNotFound as error:
        return Text(f"{error.message}; browser jobs wait until you run: cplane browser install", "yellow")
