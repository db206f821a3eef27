"""One gate: a SOCKS5 server (RFC 1928) on loopback for the pages of one browser context; it dials what the rules let through."""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address
from typing import Any, cast

from cplane.egress.rules import Blocked, Failed

GREET_S = 10.0
"""What a client has to say where to, it says within this time; what is dialled then has deadlines of its own."""
MOST_CONNECTIONS = 256
"""At once; a browser keeps to 32 through one proxy (and 255 for WebSockets)."""
MOST_NOTED = 50
LONGEST_HEAD = 512

VERSION = 5
NO_AUTHENTICATION = 0
CONNECT = 1
V4, NAME, V6 = 1, 3, 4


class Reply(IntEnum):
    """The codes of RFC 1928 that are used."""

    SUCCEEDED = 0
    FAILURE = 1
    NOT_ALLOWED = 2
    HOST_UNREACHABLE = 4
    COMMAND_NOT_SUPPORTED = 7
    ADDRESS_NOT_SUPPORTED = 8


Dial = Callable[[str, int, Callable[[], asyncio.Protocol]], Awaitable[tuple[asyncio.Transport, asyncio.Protocol]]]
"""Connects to a host and port, or raises HostBlocked or OSError."""


class HostBlocked(Exception):
    """The rules say no."""

    def __init__(self, blocked: Blocked) -> None:
        super().__init__(str(blocked))
        self.blocked = blocked


class Gate:
    """A listening socket, its connections, and what was refused. Closing it ends all of them."""

    def __init__(self, dial: Dial, max_bytes: int | None) -> None:
        self.blocked: list[Blocked] = []
        """What was refused, the first 50."""
        self.failed: list[Failed] = []
        """What could not be reached, the first 50."""
        self.cut: Blocked | None = None
        """Why everything was cut, once pages have got more than they may."""
        self.bytes_in = 0
        """Bytes that pages have got so far."""
        self.bytes_out = 0
        """Bytes that pages have sent so far."""
        self._dial = dial
        self._max_bytes = max_bytes
        self._server: asyncio.Server | None = None
        self._port = 0
        self._clients: set[_Client] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def server(self) -> str:
        """Its address, as a browser takes it for a proxy."""
        return f"socks5://127.0.0.1:{self._port}"

    @property
    def connections(self) -> int:
        """Connections that are open."""
        return len(self._clients)

    async def open(self) -> None:
        """Listen, on loopback only."""
        listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            listening.bind(("127.0.0.1", 0))
            self._port = listening.getsockname()[1]
            loop = asyncio.get_running_loop()
            self._server = await loop.create_server(lambda: _Client(self), sock=listening, backlog=64)
        except BaseException:
            listening.close()
            raise

    async def close(self) -> None:
        """Listen no more, and cut every connection."""
        if self._server is not None:
            self._server.close()
        for client in [*self._clients]:
            client.abort()
        tasks = [*self._tasks]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def enter(self, client: "_Client") -> bool:
        """A client has come; False: there are too many."""
        if len(self._clients) >= MOST_CONNECTIONS:
            return False
        self._clients.add(client)
        return True

    def leave(self, client: "_Client") -> None:
        """A client has gone."""
        self._clients.discard(client)

    @property
    def dials(self) -> int:
        """Connections that are being made."""
        return len(self._tasks)

    def connect(self, client: "_Client", host: str, port: int) -> asyncio.Task[None]:
        """Dial for a client, in a task of the gate's. The client cancels it when it goes."""
        task = asyncio.get_running_loop().create_task(self._connect(client, host, port), name="dial for a page")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _connect(self, client: "_Client", host: str, port: int) -> None:
        if self.cut is not None:
            client.refuse(Reply.NOT_ALLOWED)
            return
        try:
            transport, upstream = await self._dial(host, port, lambda: _Upstream(client))
        except HostBlocked as error:
            self._note(self.blocked, error.blocked)
            client.refuse(Reply.NOT_ALLOWED)
        except (OSError, TimeoutError) as error:
            self._note(self.failed, Failed(host, port, str(error) or "it does not answer"))
            client.refuse(Reply.HOST_UNREACHABLE)
        else:
            client.join(transport, cast("_Upstream", upstream))

    def count(self, received: int) -> bool:
        """Bytes have come; False: more than may come."""
        self.bytes_in += received
        if self._max_bytes is None or self.bytes_in <= self._max_bytes:
            return True
        if self.cut is None:
            self.cut = Blocked(
                "", 0, f"the job's pages got more than {self._max_bytes >> 20} MiB (CPLANE_EGRESS_MAX_MB)"
            )
            self.blocked.append(self.cut)
        return False

    @staticmethod
    def _note(notes: list[Any], note: object) -> None:
        if len(notes) < MOST_NOTED and note not in notes:
            notes.append(note)


class _Relay(asyncio.Protocol):
    """One side of a connection: what it gets goes to the other; who cannot take more makes the other wait."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.other: asyncio.Transport | None = None
        self.ended = False
        """Whether its own side has said that nothing more comes."""
        self.peer: _Relay | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def pause_writing(self) -> None:
        if self.other is not None:
            with suppress(RuntimeError):
                self.other.pause_reading()

    def resume_writing(self) -> None:
        if self.other is not None:
            with suppress(RuntimeError):
                self.other.resume_reading()

    def eof_received(self) -> bool:
        """The other is told that nothing more comes; it may still have something to say, unless it has said the same."""
        self.ended = True
        if self.other is None or self.peer is None or self.other.is_closing():
            return False
        self.other.write_eof()
        if self.peer.ended:
            self.other.close()
        return not self.peer.ended

    def connection_lost(self, exc: Exception | None) -> None:
        if self.other is not None and not self.other.is_closing():
            if exc is None:
                self.other.close()
            else:
                self.other.abort()


class _Client(_Relay):
    """The browser's side."""

    def __init__(self, gate: Gate) -> None:
        super().__init__()
        self._gate = gate
        self._head = b""
        self._greeted = False
        self._asked = False
        self._deadline: asyncio.TimerHandle | None = None
        self._dialling: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if not self._gate.enter(self):
            transport.abort() if isinstance(transport, asyncio.Transport) else transport.close()
            return
        self._deadline = asyncio.get_running_loop().call_later(GREET_S, self.abort)

    def data_received(self, data: bytes) -> None:
        if self.other is not None:
            self._gate.bytes_out += len(data)
            self.other.write(data)
            return
        self._head += data
        if self._asked or len(self._head) > LONGEST_HEAD:  # nothing is to be said before the answer
            self.abort()
            return
        if not self._greeted:
            self._greet()
        if self._greeted and not self._asked:
            self._ask()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._rest()
        if self._dialling is not None:
            self._dialling.cancel()  # nobody waits for it: a page that asks and goes keeps nothing open
        self._gate.leave(self)

    def count(self, received: int) -> bool:
        return self._gate.count(received)

    def join(self, other: asyncio.Transport, upstream: "_Upstream") -> None:
        """The host is connected. What it said already comes after the answer."""
        if self.transport is None or self.transport.is_closing():
            other.abort()
            return
        self._answer(Reply.SUCCEEDED)
        self.other = other
        self.peer, upstream.peer = upstream, self
        if upstream.early:
            self._write(upstream.early)

    def refuse(self, reply: Reply) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self._answer(reply)
            self.transport.close()

    def abort(self) -> None:
        for transport in (self.transport, self.other):
            if transport is not None:
                transport.abort()

    def _greet(self) -> None:
        if len(self._head) < 2 or len(self._head) < 2 + self._head[1]:
            return
        methods, self._head = self._head[2 : 2 + self._head[1]], self._head[2 + self._head[1] :]
        if NO_AUTHENTICATION not in methods:
            self.abort()
            return
        self._greeted = True
        self._write(bytes((VERSION, NO_AUTHENTICATION)))

    def _ask(self) -> None:
        try:
            read = read_request(self._head)
        except ValueError as error:
            self._asked = True
            self.refuse(cast("Reply", error.args[0]))
            return
        if read is None:
            return
        host, port, length = read
        self._asked = True
        if len(self._head) > length:
            self.abort()
            return
        self._rest()
        self._dialling = self._gate.connect(self, host, port)

    def _answer(self, reply: Reply) -> None:
        self._write(bytes((VERSION, reply, 0, V4, 0, 0, 0, 0, 0, 0)))

    def _write(self, data: bytes) -> None:
        if self.transport is not None:
            self.transport.write(data)

    def _rest(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


class _Upstream(_Relay):
    """The host's side."""

    def __init__(self, client: _Client) -> None:
        super().__init__()
        self.early = b""
        """What came before the browser was told that it is connected."""
        self._client = client

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.other = self._client.transport

    def data_received(self, data: bytes) -> None:
        if not self._client.count(len(data)):
            self._client.abort()
        elif self._client.other is None:
            self.early += data
        elif self.other is not None:
            self.other.write(data)


def read_request(head: bytes) -> tuple[str, int, int] | None:
    """Host, port and length of a request; None: it is not complete.

    Raises:
        ValueError: of a `Reply`: it is not to be served.
    """
    if len(head) < 5:
        return None
    version, command, _, kind = head[:4]
    if version != VERSION:
        raise ValueError(Reply.FAILURE)
    size = {V4: 4, V6: 16, NAME: 1 + head[4]}.get(kind)
    if size is None:
        raise ValueError(Reply.ADDRESS_NOT_SUPPORTED)
    if len(head) < 4 + size + 2:
        return None
    if command != CONNECT:
        raise ValueError(Reply.COMMAND_NOT_SUPPORTED)
    place, port = head[4 : 4 + size], int.from_bytes(head[4 + size : 6 + size], "big")
    return _host(kind, place), port, 6 + size


def _host(kind: int, place: bytes) -> str:
    if kind == V4:
        return str(IPv4Address(place))
    if kind == V6:
        return str(IPv6Address(place))
    try:
        host = place[1:].decode("ascii")
    except UnicodeDecodeError:
        raise ValueError(Reply.ADDRESS_NOT_SUPPORTED) from None
    if not host or not host.isprintable() or set(host) & set(" /\\@?#%"):
        raise ValueError(Reply.ADDRESS_NOT_SUPPORTED)
    return host
