"""Serving the app inside our own loop: uvicorn without its signal handlers, on a socket that is bound first."""

import asyncio
import errno
import math
import socket
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Self, cast

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from cplane.errors import InvalidSettings

GRACE_S = 10.0
"""How long answers under way may take once the server stops; waits for jobs end at once."""

BACKLOG = 2048
TOGETHER_BYTES = 65_536
MAX_PORT = 65535


class WebServer:
    """A server that listens, at `url`."""

    def __init__(self, server: "_Uvicorn", task: "asyncio.Task[None]", url: str) -> None:
        self._server = server
        self._task = task
        self.url = url

    async def ended(self) -> None:
        """Wait until the server ends by itself, which it only does by an error; raises that error."""
        await asyncio.shield(self._task)


@asynccontextmanager
async def open_server(app: Starlette, host: str, port: int, *, grace_s: float = GRACE_S) -> AsyncGenerator[WebServer]:
    """Serve inside an `async with` block; it listens from the first line on. Leaving lets answers under way finish.

    Signals stay with whoever owns the loop. The app's lifespan runs around it, so that what it raises is raised here.

    Args:
        app: what `create_app` made, or any other app; `app.state.stopping`, an event, tells it that the server stops.
        host: a name or an address of this machine.
        port: 0 takes a free one; `server.url` says which.
        grace_s: seconds that answers under way get when leaving.

    Raises:
        InvalidSettings: the address cannot be listened on.
    """
    listener = await bind(host, port)
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
    grace_s: float = GRACE_S,
) -> None:
    """Serve until `stop` is set; `started` is called with the URL once the server listens.

    Raises:
        InvalidSettings: the address cannot be listened on.
    """
    async with open_server(app, host, port, grace_s=grace_s) as server:
        if started is not None:
            started(server.url)
        stopped = asyncio.create_task(stop.wait(), name="wait for the word to stop")
        ended = asyncio.create_task(server.ended(), name="watch the HTTP server")
        try:
            await asyncio.wait((stopped, ended), return_when=asyncio.FIRST_COMPLETED)
            if ended.done():
                ended.result()
        finally:
            stopped.cancel()
            ended.cancel()


class Together:
    """A transport that sends what is written in one turn of the loop as one.

    uvicorn writes the head of an answer and its body apart, and a call of the system costs a good part of a whole answer.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._parts: list[bytes] = []
        self._size = 0

    def write(self, data: bytes) -> None:
        """Send it when this turn is over; a large part at once, so that whoever writes hears when the client cannot follow."""
        if not self._parts:
            self._loop.call_soon(self._flush)
        self._parts.append(data)
        self._size += len(data)
        if self._size > TOGETHER_BYTES:
            self._flush()

    def close(self) -> None:
        """Send what is left, and close."""
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._parts:
            parts, self._parts, self._size = self._parts, [], 0
            self._transport.write(b"".join(parts))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class IdleTimer:
    """What a connection of uvicorn has for a loop: the timer it sets after each answer, and cancels when a request comes, is one that is kept.

    When it rings it looks whether the connection has been idle for so long, and else rings again.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.create_task = loop.create_task
        self._loop = loop
        self._due = math.inf
        self._close: Callable[[], object] | None = None
        self._rings: asyncio.TimerHandle | None = None

    def call_later(self, delay: float, close: Callable[[], object]) -> Self:
        """Call `close` in so many seconds, if `cancel` is not called before."""
        self._due = self._loop.time() + delay
        self._close = close
        if self._rings is None:
            self._rings = self._loop.call_at(self._due, self._ring)
        return self

    def cancel(self) -> None:
        """The connection is not idle."""
        self._due = math.inf

    def _ring(self) -> None:
        self._rings = None
        if self._close is not None and self._due <= self._loop.time():
            self._close()
        elif self._due < math.inf:
            self._rings = self._loop.call_at(self._due, self._ring)


class _Protocol(HttpToolsProtocol):
    """uvicorn's own, on a transport and with a timer of ours."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.loop = cast("asyncio.AbstractEventLoop", IdleTimer(self.loop))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has come."""
        together: Any = Together(cast("asyncio.Transport", transport), asyncio.get_running_loop())
        super().connection_made(together)


class _Uvicorn(uvicorn.Server):
    """uvicorn that leaves signals alone and tells when it listens."""

    def __init__(self, app: Starlette, grace_s: float) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=_Protocol,
                ws="none",
                lifespan="off",  # open_server runs it
                log_config=None,
                access_log=False,  # RequestLog has a line for each request
                server_header=False,
                proxy_headers=False,  # no answer depends on the client's address or scheme
                backlog=BACKLOG,
                timeout_graceful_shutdown=max(1, round(grace_s)),
            )
        )
        self._listening = asyncio.Event()

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        """Signals belong to whoever owns the loop."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen."""
        await super().startup(sockets=sockets)
        self._listening.set()

    async def listening(self, task: "asyncio.Task[None]") -> None:
        """Wait until it listens; raises what `task`, which serves, failed with instead."""
        listening = asyncio.create_task(self._listening.wait(), name="wait until HTTP listens")
        try:
            await asyncio.wait((listening, task), return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                task.result()
        finally:
            listening.cancel()


async def bind(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        InvalidSettings: it cannot be had, in one sentence with what to do.
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
    shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)  # noqa: S104  "every address" is not one to open
    return f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}"
