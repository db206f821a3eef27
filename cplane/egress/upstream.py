"""A job's proxy, to which the gate connects: by HTTP CONNECT (RFC 9110) or SOCKS5 (RFC 1928, 1929)."""

import asyncio
import base64
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import cast
from urllib.parse import urlsplit

from cplane.egress.rules import bracketed

MAX_REPLY_BYTES = 16_384
DEFAULT_PORTS = {"http": 80, "socks5": 1080}


class UpstreamRefused(Exception):
    """The proxy does not connect to the host; the message has its reply."""


@dataclass(frozen=True, slots=True)
class Upstream:
    """The address of a proxy, and the credentials for it."""

    scheme: str
    """http or socks5."""
    host: str
    port: int
    username: str | None = None
    password: str | None = field(default=None, repr=False)

    @classmethod
    def read(cls, server: str, username: str | None = None, password: str | None = None) -> "Upstream":
        """Read the address of a proxy.

        Args:
            server: http://host:port or socks5://host:port; without a scheme, it is http.
            username: of its credentials, if it needs any.
            password: of its credentials.

        Raises:
            ValueError: it is not such an address.
        """
        url = urlsplit(server if "://" in server else f"http://{server}")
        if url.scheme not in DEFAULT_PORTS or not url.hostname:
            raise ValueError("a proxy is http://host:port or socks5://host:port")
        port = url.port or DEFAULT_PORTS[url.scheme]
        return cls(url.scheme, url.hostname, port, username or None, password or None)

    @property
    def address(self) -> str:
        """Its address without credentials."""
        return f"{self.scheme}://{bracketed(self.host)}:{self.port}"

    def protocol(self, host: str, port: int) -> Callable[[], asyncio.Protocol]:
        """Return a factory of the protocol that asks the proxy to connect to a host."""
        return lambda: _Handshake(self, host, port)

    async def wait_connected(self, handshake: asyncio.Protocol) -> None:
        """Wait until the proxy has connected to the host.

        Args:
            handshake: made by a factory of `protocol`.

        Raises:
            UpstreamRefused: the proxy does not connect to it.
        """
        await cast("_Handshake", handshake).connected


class _Step(Enum):
    """What was sent last."""

    METHODS = auto()
    CREDENTIALS = auto()
    REQUEST = auto()
    CONNECTED = auto()


class _Handshake(asyncio.Protocol):
    """The handshake before the proxy forwards bytes. Bytes that come early are kept for the next protocol."""

    def __init__(self, upstream: Upstream, host: str, port: int) -> None:
        self.connected: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.received = b""
        self._upstream = upstream
        self._host, self._port = host, port
        self._step = _Step.METHODS
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        if self._upstream.scheme == "http":
            self._step = _Step.REQUEST
            self._transport.write(self._http_request())
        else:
            methods = b"\x05\x02\x00\x02" if self._upstream.username else b"\x05\x01\x00"
            self._transport.write(methods)

    def data_received(self, data: bytes) -> None:
        self.received += data
        if self._step is _Step.CONNECTED:
            return
        if len(self.received) > MAX_REPLY_BYTES:
            self._refuse("its reply does not end")
        elif self._upstream.scheme == "http":
            self._read_http()
        else:
            self._read_socks()

    def eof_received(self) -> bool:
        self._refuse("it closed the connection")
        return False

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  asyncio's name
        self._refuse("it closed the connection")

    def _http_request(self) -> bytes:
        target = f"{bracketed(self._host)}:{self._port}"
        lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}"]
        if self._upstream.username is not None:
            credentials = f"{self._upstream.username}:{self._upstream.password or ''}".encode()
            lines.append(f"Proxy-Authorization: Basic {base64.b64encode(credentials).decode()}")
        return "\r\n".join([*lines, "", ""]).encode()

    def _read_http(self) -> None:
        head, end, rest = self.received.partition(b"\r\n\r\n")
        if not end:
            return
        status = head.split(b"\r\n", 1)[0].decode("latin-1")
        if not status.startswith("HTTP/1.") or status.partition(" ")[2][:1] != "2":
            self._refuse(status[:100])
            return
        self._connect(rest)

    def _read_socks(self) -> None:
        while self._step is not _Step.CONNECTED and len(self.received) >= 2 and not self.connected.done():
            before = self._step
            match self._step:
                case _Step.METHODS:
                    self._method_chosen(self.received[1])
                case _Step.CREDENTIALS:
                    self._credentials_checked(self.received[1])
                case _:
                    self._read_reply()
            if self._step is before:
                return

    def _method_chosen(self, method: int) -> None:
        self.received = self.received[2:]
        if method == 2 and self._upstream.username is not None:
            name, secret = self._upstream.username.encode()[:255], (self._upstream.password or "").encode()[:255]
            self._write(b"\x01" + bytes((len(name),)) + name + bytes((len(secret),)) + secret)
            self._step = _Step.CREDENTIALS
        elif method == 0:
            self._send_request()
        else:
            self._refuse("it requires other credentials")

    def _credentials_checked(self, status: int) -> None:
        self.received = self.received[2:]
        if status:
            self._refuse("it does not accept the credentials")
        else:
            self._send_request()

    def _send_request(self) -> None:
        name = self._host.encode("idna" if not self._host.isascii() else "ascii")[:255]
        self._write(b"\x05\x01\x00\x03" + bytes((len(name),)) + name + self._port.to_bytes(2, "big"))
        self._step = _Step.REQUEST

    def _read_reply(self) -> None:
        if len(self.received) < 5:
            return
        if self.received[1]:
            self._refuse(f"SOCKS5 reply {self.received[1]}")
            return
        size = {1: 4, 4: 16, 3: 1 + self.received[4]}.get(self.received[3], 0)
        if len(self.received) >= 6 + size:
            self._connect(self.received[6 + size :])

    def _connect(self, rest: bytes) -> None:
        self._step, self.received = _Step.CONNECTED, rest
        if self._transport is not None:
            self._transport.pause_reading()  # until `hand_over`
        if not self.connected.done():
            self.connected.set_result(None)

    def _refuse(self, why: str) -> None:
        if not self.connected.done():
            self.connected.set_exception(UpstreamRefused(why))
            self.connected.exception()  # read it: the caller may be gone

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)


def hand_over(
    transport: asyncio.Transport, handshake: asyncio.Protocol, protocol: Callable[[], asyncio.Protocol]
) -> tuple[asyncio.Transport, asyncio.Protocol]:
    """Replace the handshake's protocol by the caller's, which receives the bytes that came early."""
    successor = protocol()
    transport.set_protocol(successor)
    successor.connection_made(transport)
    if early_data := cast("_Handshake", handshake).received:
        successor.data_received(early_data)
    transport.resume_reading()
    return transport, successor
