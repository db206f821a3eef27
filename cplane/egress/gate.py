"""An egress gate: a SOCKS5 server (RFC 1928) on loopback for the pages of one browser context."""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address
from typing import Any, cast

from cplane.egress.rules import Blocked, Failed

HANDSHAKE_TIMEOUT_S = 10.0
"""Time for a client to send its request; dialling the host has its own deadlines."""
MAX_CONNECTIONS = 256
"""Concurrent connections of one gate; a browser opens up to 32 through one proxy, and 255 for WebSockets."""
MAX_RECORDED = 50
"""Blocked and failed hosts that are recorded, each."""
MAX_HANDSHAKE_BYTES = 512

VERSION = 5
NO_AUTHENTICATION = 0
CONNECT = 1
V4, NAME, V6 = 1, 3, 4


class Reply(IntEnum):
    """The reply codes of RFC 1928 that we use."""

    SUCCEEDED = 0
    FAILURE = 1
    NOT_ALLOWED = 2
    HOST_UNREACHABLE = 4
    COMMAND_NOT_SUPPORTED = 7
    ADDRESS_NOT_SUPPORTED = 8


Dial = Callable[[str, int, Callable[[], asyncio.Protocol]], Awaitable[tuple[asyncio.Transport, asyncio.Protocol]]]
"""Connects to a host and port if the rules allow it; raises HostBlocked or OSError."""


class HostBlocked(Exception):
    """The rules do not allow a host."""

    def __init__(self, blocked: Blocked) -> None:
        super().__init__(str(blocked))
        self.blocked = blocked


class Gate:
    """A listening socket, its connections, and the hosts that were refused. Closing it ends all connections.

    Args:
        dial: connects to hosts.
        max_bytes: bytes the pages may receive; None: no limit.
    """

    def __init__(self, dial: Dial, max_bytes: int | None) -> None:
        self.blocked: list[Blocked] = []
        """The first 50 hosts that the rules did not allow."""
        self.failed: list[Failed] = []
        """The first 50 hosts that were allowed and could not be reached."""
        self.closed_by: Blocked | None = None
        """The byte limit, once pages have received more than it; no host is connected from then on."""
        self.bytes_in = 0
        """Bytes that pages have received so far."""
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
        """Its address, in the form a browser takes for a proxy."""
        return f"socks5://127.0.0.1:{self._port}"

    @property
    def connections(self) -> int:
        """Number of open connections."""
        return len(self._clients)

    async def open(self) -> None:
        """Listen on loopback."""
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
        """Stop listening, and abort every connection."""
        if self._server is not None:
            self._server.close()
        for client in [*self._clients]:
            client.abort()
        tasks = [*self._tasks]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def add(self, client: "_Client") -> bool:
        """Add a client; returns False if there are too many."""
        if len(self._clients) >= MAX_CONNECTIONS:
            return False
        self._clients.add(client)
        return True

    def remove(self, client: "_Client") -> None:
        """Remove a client that has disconnected."""
        self._clients.discard(client)

    @property
    def dials(self) -> int:
        """Number of dials in flight."""
        return len(self._tasks)

    def connect(self, client: "_Client", host: str, port: int) -> asyncio.Task[None]:
        """Dial for a client, in a task of the gate. The client cancels it when it disconnects."""
        task = asyncio.get_running_loop().create_task(self._connect(client, host, port), name="dial for a page")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _connect(self, client: "_Client", host: str, port: int) -> None:
        if self.closed_by is not None:
            client.refuse(Reply.NOT_ALLOWED)
            return
        try:
            transport, upstream = await self._dial(host, port, lambda: _Upstream(client))
        except HostBlocked as error:
            self._record(self.blocked, error.blocked)
            client.refuse(Reply.NOT_ALLOWED)
        except (OSError, TimeoutError) as error:
            self._record(self.failed, Failed(host, port, str(error) or "it did not respond"))
            client.refuse(Reply.HOST_UNREACHABLE)
        else:
            client.join(transport, cast("_Upstream", upstream))

    def count(self, received: int) -> bool:
        """Count bytes received from hosts; returns False if they exceed the limit."""
        self.bytes_in += received
        if self._max_bytes is None or self.bytes_in <= self._max_bytes:
            return True
        if self.closed_by is None:
            self.closed_by = Blocked(
                "", 0, f"the job's pages received more than {self._max_bytes >> 20} MiB (CPLANE_EGRESS_MAX_MB)"
            )
            self.blocked.append(self.closed_by)
        return False

    @staticmethod
    def _record(records: list[Any], record: object) -> None:
        if len(records) < MAX_RECORDED and record not in records:
            records.append(record)


class _Relay(asyncio.Protocol):
    """One side of a connection: it forwards what it receives to the other side, with backpressure."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.other: asyncio.Transport | None = None
        self.ended = False
        """Whether this side has sent its end of file."""
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
        """Forward the end of file. The other side may still send, unless it has sent its own."""
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
    """The browser's side: SOCKS5 handshake, then forwarding."""

    def __init__(self, gate: Gate) -> None:
        super().__init__()
        self._gate = gate
        self._received = b""
        """What the client has sent of its handshake and was not parsed yet."""
        self._greeted = False
        self._requested = False
        self._deadline: asyncio.TimerHandle | None = None
        self._dial_task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if not self._gate.add(self):
            transport.abort() if isinstance(transport, asyncio.Transport) else transport.close()
            return
        self._deadline = asyncio.get_running_loop().call_later(HANDSHAKE_TIMEOUT_S, self.abort)

    def data_received(self, data: bytes) -> None:
        if self.other is not None:
            self._gate.bytes_out += len(data)
            self.other.write(data)
            return
        self._received += data
        if self._requested or len(self._received) > MAX_HANDSHAKE_BYTES:  # a client sends nothing before the reply
            self.abort()
            return
        if not self._greeted:
            self._greet()
        if self._greeted and not self._requested:
            self._read_request()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._cancel_deadline()
        if self._dial_task is not None:
            self._dial_task.cancel()  # nobody waits for it: a page that disconnects keeps nothing open
        self._gate.remove(self)

    def count(self, received: int) -> bool:
        return self._gate.count(received)

    def join(self, other: asyncio.Transport, upstream: "_Upstream") -> None:
        """Start forwarding: the host is connected. What it has sent already follows the reply."""
        if self.transport is None or self.transport.is_closing():
            other.abort()
            return
        self._reply(Reply.SUCCEEDED)
        self.other = other
        self.peer, upstream.peer = upstream, self
        if upstream.early_data:
            self._write(upstream.early_data)

    def refuse(self, reply: Reply) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self._reply(reply)
            self.transport.close()

    def abort(self) -> None:
        for transport in (self.transport, self.other):
            if transport is not None:
                transport.abort()

    def _greet(self) -> None:
        if len(self._received) < 2 or len(self._received) < 2 + self._received[1]:
            return
        methods, self._received = self._received[2 : 2 + self._received[1]], self._received[2 + self._received[1] :]
        if NO_AUTHENTICATION not in methods:
            self.abort()
            return
        self._greeted = True
        self._write(bytes((VERSION, NO_AUTHENTICATION)))

    def _read_request(self) -> None:
        try:
            request = read_request(self._received)
        except ValueError as error:
            self._requested = True
            self.refuse(cast("Reply", error.args[0]))
            return
        if request is None:
            return
        host, port, length = request
        self._requested = True
        if len(self._received) > length:
            self.abort()
            return
        self._cancel_deadline()
        self._dial_task = self._gate.connect(self, host, port)

    def _reply(self, reply: Reply) -> None:
        self._write(bytes((VERSION, reply, 0, V4, 0, 0, 0, 0, 0, 0)))

    def _write(self, data: bytes) -> None:
        if self.transport is not None:
            self.transport.write(data)

    def _cancel_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


class _Upstream(_Relay):
    """The host's side."""

    def __init__(self, client: _Client) -> None:
        super().__init__()
        self.early_data = b""
        """What the host sent before the browser got its reply."""
        self._client = client

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.other = self._client.transport

    def data_received(self, data: bytes) -> None:
        if not self._client.count(len(data)):
            self._client.abort()
        elif self._client.other is None:
            self.early_data += data
        elif self.other is not None:
            self.other.write(data)


def read_request(head: bytes) -> tuple[str, int, int] | None:
    """Parse a SOCKS5 request.

    Returns:
        Host, port, and length of the request in bytes; None: it is not complete.

    Raises:
        ValueError: it is not supported; its argument is the `Reply`.
    """
    if len(head) < 5:
        return None
    version, command, _, address_type = head[:4]
    if version != VERSION:
        raise ValueError(Reply.FAILURE)
    size = {V4: 4, V6: 16, NAME: 1 + head[4]}.get(address_type)
    if size is None:
        raise ValueError(Reply.ADDRESS_NOT_SUPPORTED)
    if len(head) < 4 + size + 2:
        return None
    if command != CONNECT:
        raise ValueError(Reply.COMMAND_NOT_SUPPORTED)
    address, port = head[4 : 4 + size], int.from_bytes(head[4 + size : 6 + size], "big")
    return _host(address_type, address), port, 6 + size


def _host(address_type: int, address: bytes) -> str:
    if address_type == V4:
        return str(IPv4Address(address))
    if address_type == V6:
        return str(IPv6Address(address))
    try:
        host = address[1:].decode("ascii")
    except UnicodeDecodeError:
        raise ValueError(Reply.ADDRESS_NOT_SUPPORTED) from None
    if not host or not host.isprintable() or set(host) & set(" /\\@?#%"):
        raise ValueError(Reply.ADDRESS_NOT_SUPPORTED)
    return host
