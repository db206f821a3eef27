"""A fake internet on loopback: names with invented public addresses, each served by a server of the test."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address

from cplane.egress import EgressProxy, EgressRules
from cplane.egress.rules import Address

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Internet:
    """The addresses of names, and the servers behind addresses. Nothing else can be reached."""

    names: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    """The addresses of each name."""
    rebinding: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    """The addresses of names that resolve to their next address at each lookup, as in DNS rebinding."""
    servers: dict[tuple[str, int], int] = field(default_factory=dict[tuple[str, int], int])
    """Address and port → port on loopback."""
    silent: set[tuple[str, int]] = field(default_factory=set[tuple[str, int]])
    """Addresses that never respond; `waiting` is set once a client waits for one of them."""
    waiting: asyncio.Event = field(default_factory=asyncio.Event)
    resolved: list[str] = field(default_factory=list[str])
    dialled: list[tuple[str, int]] = field(default_factory=list[tuple[str, int]])

    async def resolve(self, host: str, port: int) -> Sequence[Address]:
        self.resolved.append(host)
        if host in self.rebinding:
            return [ip_address(self.rebinding[host].pop(0))]
        if host not in self.names:
            raise OSError("there is no such name")
        return [ip_address(address) for address in self.names[host]]

    async def connect(
        self, protocol: Callable[[], asyncio.Protocol], address: str, port: int
    ) -> tuple[asyncio.Transport, asyncio.Protocol]:
        self.dialled.append((address, port))
        if (address, port) in self.silent:
            self.waiting.set()
            await asyncio.Event().wait()
        if (address, port) not in self.servers:
            raise ConnectionRefusedError(f"nothing listens at {address}:{port}")
        local = self.servers[address, port]
        return await asyncio.get_running_loop().create_connection(protocol, "127.0.0.1", local)

    def proxy(self, rules: EgressRules | None = None, *, max_bytes: int | None = None) -> EgressProxy:
        return EgressProxy(rules or EgressRules(), max_bytes=max_bytes, resolve=self.resolve, connect=self.connect)

    @asynccontextmanager
    async def serve(self, name: str, address: str, port: int, handler: Handler) -> AsyncGenerator[None]:
        """Start a server with this name and address."""
        async with await asyncio.start_server(handler, "127.0.0.1", 0) as server:
            self.names.setdefault(name, []).append(address)
            self.servers[address, port] = server.sockets[0].getsockname()[1]
            yield


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send everything back until the other side sends its end of file."""
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.write_eof()
    except ConnectionError:
        pass
    finally:
        writer.close()
