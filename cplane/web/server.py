"""Serves the app in the caller's event loop: uvicorn without its signal handlers, on a socket that is bound first."""

import asyncio
import errno
import socket
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from ipaddress import ip_address
from typing import cast

import uvicorn
from starlette.applications import Starlette

from cplane.errors import InvalidSettings
from cplane.settings import CplaneSettings
from cplane.web.protocol import ConnectionCount, Protocol

SHUTDOWN_GRACE_S = 10.0
"""How long responses in flight may take once the server stops; waits for jobs end immediately."""

BACKLOG = 2048
MAX_PORT = 65535


class WebServer:
    """A server that listens at `url`."""

    def __init__(self, server: "_Uvicorn", task: "asyncio.Task[None]", url: str) -> None:
        self._server = server
        self._task = task
        self.url = url

    async def ended(self) -> None:
        """Wait until the server ends by itself, which it only does by an error, and raise that error."""
        await asyncio.shield(self._task)


@asynccontextmanager
async def open_server(
    app: Starlette, host: str, port: int, *, insecure: bool = False, grace_s: float = SHUTDOWN_GRACE_S
) -> AsyncGenerator[WebServer]:
    """Serve inside an `async with` block, from its first line on. Leaving it lets responses in flight finish.

    Signals are left to the owner of the event loop. The app's lifespan runs around the server, so its errors are raised
    here.

    Args:
        app: the result of `create_app`, or any other Starlette app. The event `app.state.stopping` is set when the
            server stops.
        host: a name or an address of this machine.
        port: 0 to 65535; 0 takes a free port, which `server.url` has.
        insecure: whether an API without keys may listen beyond loopback.
        grace_s: seconds that responses in flight get after leaving.

    Raises:
        InvalidSettings: the address cannot be listened on, or is not loopback and the API has no keys.

    Example:
            async with open_server(create_app(), "127.0.0.1", 8000) as server:
                print(server.url)
                await server.ended()
    """
    listener = await bind(host, port, loopback_only=not insecure and is_open(app))
    stopping = app.state.stopping = asyncio.Event()
    try:
        async with app.router.lifespan_context(app):
            server = _Uvicorn(app, grace_s)
            task = asyncio.create_task(server.serve(sockets=[listener]), name=f"serve HTTP on {host}:{port}")
            try:
                await server.listening(task)
                yield WebServer(server, task, _url(listener))
            finally:
                stopping.set()
                server.should_exit = True
                await asyncio.gather(task, return_exceptions=True)
    finally:
        listener.close()


async def serve(
    app: Starlette,
    host: str,
    port: int,
    *,
    stop: asyncio.Event,
    started: Callable[[str], None] | None = None,
    insecure: bool = False,
    grace_s: float = SHUTDOWN_GRACE_S,
) -> None:
    """Serve until `stop` is set.

    Args:
        app: as for `open_server`.
        host: as for `open_server`.
        port: as for `open_server`.
        stop: the event that ends the server.
        started: called with the URL once the server listens.
        insecure: as for `open_server`.
        grace_s: as for `open_server`.

    Raises:
        InvalidSettings: as for `open_server`.
    """
    async with open_server(app, host, port, insecure=insecure, grace_s=grace_s) as server:
        if started is not None:
            started(server.url)
        stopped = asyncio.create_task(stop.wait(), name="wait for the stop event")
        ended = asyncio.create_task(server.ended(), name="watch the HTTP server")
        try:
            await asyncio.wait((stopped, ended), return_when=asyncio.FIRST_COMPLETED)
            if ended.done():
                ended.result()
        finally:
            stopped.cancel()
            ended.cancel()


class _Uvicorn(uvicorn.Server):
    """uvicorn without signal handlers, which can be waited for until it listens."""

    def __init__(self, app: Starlette, grace_s: float) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=_protocol(app),
                ws="none",
                lifespan="off",  # open_server runs it
                log_config=None,
                access_log=False,  # RequestLog logs requests
                server_header=False,
                proxy_headers=False,  # no response depends on the client's address or scheme
                backlog=BACKLOG,
                timeout_graceful_shutdown=max(1, round(grace_s)),
            )
        )
        self._listening = asyncio.Event()

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        """Leave signals to the owner of the event loop."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, then set the event that `listening` waits for."""
        await super().startup(sockets=sockets)
        self._listening.set()

    async def listening(self, task: "asyncio.Task[None]") -> None:
        """Wait until the server listens. If `task`, which serves, fails before, raise its error."""
        listening = asyncio.create_task(self._listening.wait(), name="wait until HTTP listens")
        try:
            await asyncio.wait((listening, task), return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                task.result()
        finally:
            listening.cancel()


def is_open(app: Starlette) -> bool:
    """Return whether an app is our API, and needs no key."""
    settings: CplaneSettings | None = getattr(app.state, "settings", None)
    return settings is not None and not settings.api_keys


def _protocol(app: Starlette) -> type[asyncio.Protocol]:
    """Return what makes the protocol of a connection, for one server."""
    settings: CplaneSettings | None = getattr(app.state, "settings", None)
    if settings is None:
        return Protocol
    made = partial(Protocol, count=ConnectionCount(settings.connections_per_address))
    return cast("type[asyncio.Protocol]", made)  # uvicorn only calls it


async def bind(host: str, port: int, *, loopback_only: bool = False) -> socket.socket:
    """Return a socket that listens.

    Args:
        host: a name or an address of this machine.
        port: 0 to 65535.
        loopback_only: whether to refuse addresses that other machines can reach.

    Raises:
        InvalidSettings: the address is not valid, not of this machine, in use, or not permitted.
    """
    if not 0 <= port <= MAX_PORT:
        raise InvalidSettings(f"{port} is not a port", hint=f"choose one of 0 to {MAX_PORT}: --port")
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError:
        raise InvalidSettings(
            f"'{host}' is not a name or an address of this machine", hint="choose another: --host"
        ) from None
    family, _, _, _, address = min(found, key=lambda info: info[0] != socket.AF_INET)
    if loopback_only and not ip_address(str(address[0]).partition("%")[0]).is_loopback:
        hint = "set CPLANE_API_KEYS, or say --insecure if a proxy in front of it authenticates clients"
        raise InvalidSettings(f"'{host}' can be reached by other machines, and the API has no keys", hint=hint)
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise _cannot_listen(host, port, error) from None
    return listener


def _cannot_listen(host: str, port: int, error: OSError) -> InvalidSettings:
    match error.errno:
        case errno.EADDRINUSE:
            return InvalidSettings(f"port {port} is taken on {host}", hint="choose another: --port")
        case errno.EACCES:
            return InvalidSettings(f"port {port} is not allowed to this user", hint="choose one above 1023: --port")
        case errno.EADDRNOTAVAIL:
            return InvalidSettings(f"'{host}' is not an address of this machine", hint="choose another: --host")
        case _:
            return InvalidSettings(
                f"cannot listen on {host} port {port}: {error.strerror}", hint="choose another: --host, --port"
            )


def _url(listener: socket.socket) -> str:
    name: tuple[str, int] = listener.getsockname()
    address, port = name[:2]
    shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)  # noqa: S104  a wildcard address cannot be opened
    return f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}"
