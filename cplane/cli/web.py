"""`cplane web`: the HTTP API."""

from typing import Annotated

import typer

from cplane.cli.console import notes
from cplane.cli.event_loop import run
from cplane.cli.signals import StoppedBySignals

Host = Annotated[str, typer.Option("--host", "-H", help="Address to listen on; 0.0.0.0 for all.")]
Port = Annotated[int, typer.Option("--port", "-p", min=0, max=65535, help="Port to listen on; 0 for any free port.")]
Insecure = Annotated[
    bool, typer.Option("--insecure", help="Listen beyond loopback although there are no CPLANE_API_KEYS.")
]


def web(*, host: Host = "127.0.0.1", port: Port = 8000, insecure: Insecure = False) -> None:
    """Serve the HTTP API until stopped by a signal.

    [cyan]$ cplane web --host 0.0.0.0 --port 8000[/]

    The same as [cyan]uvicorn --factory cplane.web:create_app[/]. Beyond loopback it needs CPLANE_API_KEYS.
    """
    run(_serve(host, port, insecure=insecure))


async def _serve(host: str, port: int, *, insecure: bool) -> None:
    from cplane.logs import configure_logs
    from cplane.runtime.gc_tuning import collect_rarely
    from cplane.settings import load_settings
    from cplane.web import create_app, open_server

    settings = load_settings()
    configure_logs(settings)
    with StoppedBySignals():
        async with open_server(create_app(settings), host, port, insecure=insecure) as server:
            collect_rarely()
            notes().print(f"listening on {server.url}, documentation on {server.url}/docs", soft_wrap=True)
            await server.ended()
