"""A proxy of the job's own, behind the gate: asked by HTTP CONNECT (RFC 9110) or SOCKS5 (RFC 1928, 1929) for every connection."""

import asyncio
import base64
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import cast
from urllib.parse import urlsplit

from cplane.egress.rules import bracketed

LONGEST_ANSWER = 16_384
DEFAULT_PORTS = {"http": 80, "socks5": 1080}


class UpstreamRefused(Exception):
    """The proxy does not connect; the message says what it answered."""


@dataclass(frozen=True, slots=True)
class Upstream:
    """Where the proxy is, and who uses it."""

    kind: str
    """http or socks5."""
    host: str
    port: int
    username: str | None = None
    password: str | None = field(default=None, repr=False)

    @classmethod
    def read(cls, server: str, username: str | None = None, password: str | None = None) -> "Upstream":
        """From an address such as http://host:port or socks5://host:port; raises ValueError for any other."""
        address = urlsplit(server if "://" in server else f"http://{server}")
        if address.scheme not in DEFAULT_PORTS or not address.hostname:
            raise ValueError("a proxy is http://host:port or socks5://host:port")
        port = address.port or DEFAULT_PORTS[address.scheme]
        return cls(address.scheme, address.hostname, port, username or None, password or None)

    @property
    def place(self) -> str:
        """Its address without credentials."""
        return f"{self.kind}://{bracketed(self.host)}:{self.port}"

    def protocol(self, host: str, port: int) -> Callable[[], asyncio.Protocol]:
        """What asks it for a connection."""
        return lambda: _Asking(self, host, port)

    async def answered(self, protocol: asyncio.Protocol) -> None:
        """Wait until it has connected.

        Raises:
            UpstreamRefused: it does not.
        """
        await cast("_Asking", protocol).connected


class _Step(Enum):
    GREETED = auto()
    NAMED = auto()
    ASKED = auto()
    CONNECTED = auto()


class _Asking(asyncio.Protocol):
    """The talk before the proxy passes bytes on. What it says too early is kept for whoever takes over."""

    def __init__(self, upstream: Upstream, host: str, port: int) -> None:
        self.connected: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.kept = b""
        self._upstream = upstream
        self._host, self._port = host, port
        self._step = _Step.GREETED
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        if self._upstream.kind == "http":
            self._step = _Step.ASKED
            self._transport.write(self._http_request())
        else:
            methods = b"\x05\x02\x00\x02" if self._upstream.username else b"\x05\x01\x00"
            self._transport.write(methods)

    def data_received(self, data: bytes) -> None:
        self.kept += data
        if self._step is _Step.CONNECTED:
            return
        if len(self.kept) > LONGEST_ANSWER:
            self._refuse("its answer has no end")
        elif self._upstream.kind == "http":
            self._read_http()
        else:
            self._read_socks()

    def eof_received(self) -> bool:
        self._refuse("it closed the connection")
        return False

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  asyncio's name
        self._refuse("it closed the connection")

    def _http_request(self) -> bytes:
        place = f"{bracketed(self._host)}:{self._port}"
        lines = [f"CONNECT {place} HTTP/1.1", f"Host: {place}"]
        if self._upstream.username is not None:
            credentials = f"{self._upstream.username}:{self._upstream.password or ''}".encode()
            lines.append(f"Proxy-Authorization: Basic {base64.b64encode(credentials).decode()}")
        return "\r\n".join([*lines, "", ""]).encode()

    def _read_http(self) -> None:
        head, end, rest = self.kept.partition(b"\r\n\r\n")
        if not end:
            return
        status = head.split(b"\r\n", 1)[0].decode("latin-1")
        if not status.startswith("HTTP/1.") or status.partition(" ")[2][:1] != "2":
            self._refuse(status[:100])
            return
        self._connect(rest)

    def _read_socks(self) -> None:
        while self._step is not _Step.CONNECTED and len(self.kept) >= 2 and not self.connected.done():
            before = self._step
            match self._step:
                case _Step.GREETED:
                    self._choose(self.kept[1])
                case _Step.NAMED:
                    self._name_taken(self.kept[1])
                case _:
                    self._read_reply()
            if self._step is before:
                return

    def _choose(self, method: int) -> None:
        self.kept = self.kept[2:]
        if method == 2 and self._upstream.username is not None:
            name, secret = self._upstream.username.encode()[:255], (self._upstream.password or "").encode()[:255]
            self._write(b"\x01" + bytes((len(name),)) + name + bytes((len(secret),)) + secret)
            self._step = _Step.NAMED
        elif method == 0:
            self._ask()
        else:
            self._refuse("it wants other credentials")

    def _name_taken(self, status: int) -> None:
        self.kept = self.kept[2:]
        if status:
            self._refuse("it does not take the credentials")
        else:
            self._ask()

    def _ask(self) -> None:
        name = self._host.encode("idna" if not self._host.isascii() else "ascii")[:255]
        self._write(b"\x05\x01\x00\x03" + bytes((len(name),)) + name + self._port.to_bytes(2, "big"))
        self._step = _Step.ASKED

    def _read_reply(self) -> None:
        if len(self.kept) < 5:
            return
        if self.kept[1]:
            self._refuse(f"SOCKS5 reply {self.kept[1]}")
            return
        size = {1: 4, 4: 16, 3: 1 + self.kept[4]}.get(self.kept[3], 0)
        if len(self.kept) >= 6 + size:
            self._connect(self.kept[6 + size :])

    def _connect(self, rest: bytes) -> None:
        self._step, self.kept = _Step.CONNECTED, rest
        if self._transport is not None:
            self._transport.pause_reading()  # until somebody takes over
        if not self.connected.done():
            self.connected.set_result(None)

    def _refuse(self, why: str) -> None:
        if not self.connected.done():
            self.connected.set_exception(UpstreamRefused(why))
            self.connected.exception()  # whoever dialled may be gone

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)


def pass_on(
    transport: asyncio.Transport, asking: asyncio.Protocol, protocol: Callable[[], asyncio.Protocol]
) -> tuple[asyncio.Transport, asyncio.Protocol]:
    """Hand a connection that the proxy has made to who wanted it, with what came already."""
    taking = protocol()
    transport.set_protocol(taking)
    taking.connection_made(transport)
    if kept := cast("_Asking", asking).kept:
        taking.data_received(kept)
    transport.resume_reading()
    return transport, taking
