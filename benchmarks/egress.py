"""The cost of the egress gate: connections and bytes through it, compared with direct ones.

All on loopback, in one process.

python benchmarks/egress.py
"""

import asyncio
import statistics
import sys
import time
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

import uvloop

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cplane.egress import EgressProxy, EgressRules, Gate
from cplane.egress.rules import Address

CONNECTIONS = 1000
CHUNK = b"x" * 262_144
MEBIBYTES = 512


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Reply to one byte with one byte, and to two bytes with the data of the throughput measurement."""
    try:
        if await reader.read(2) == b"b!":
            for _ in range(MEBIBYTES * (1 << 20) // len(CHUNK)):
                writer.write(CHUNK)
                await writer.drain()
        else:
            writer.write(b"!")
    finally:
        writer.close()


class ByteCounter(asyncio.Protocol):
    """Counts the received bytes until the connection ends."""

    def __init__(self) -> None:
        self.received = 0
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        self.received += len(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended.set_result(None) if exc is None else self.ended.set_exception(exc)


async def connect(port: int, gate: Gate | None) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to the server, through the gate or directly."""
    if gate is None:
        return await asyncio.open_connection("127.0.0.1", port)
    reader, writer = await asyncio.open_connection("127.0.0.1", urlsplit(gate.server).port)
    writer.write(b"\x05\x01\x00")
    await reader.readexactly(2)
    writer.write(b"\x05\x01\x00\x03\x0csite.example" + port.to_bytes(2, "big"))
    assert (await reader.readexactly(10))[1] == 0
    return reader, writer


async def latency(port: int, gate: Gate | None) -> list[float]:
    """Return the milliseconds from the connect to the first byte, for each connection."""
    took: list[float] = []
    for _ in range(CONNECTIONS):
        start = time.perf_counter()
        reader, writer = await connect(port, gate)
        writer.write(b"a")
        await reader.readexactly(1)
        took.append((time.perf_counter() - start) * 1000)
        writer.close()
    return took


async def throughput(port: int, gate: Gate | None) -> float:
    """Return the MiB per second through one connection."""
    _, writer = await connect(port, gate)
    transport, counter = writer.transport, ByteCounter()
    transport.set_protocol(counter)
    start = time.perf_counter()
    transport.write(b"b!")
    await counter.ended
    assert counter.received == MEBIBYTES << 20
    return MEBIBYTES / (time.perf_counter() - start)


async def main() -> None:
    """Print latency and throughput, direct and through the gate."""

    async def resolve(host: str, port: int) -> Sequence[Address]:  # noqa: ARG001  the resolver's signature
        return [ip_address("127.0.0.1")]

    rules = EgressRules.read(["loopback"])
    async with (
        await asyncio.start_server(serve, "127.0.0.1", 0) as server,
        EgressProxy(rules, resolve=resolve) as proxy,
        proxy.gate() as gate,
    ):
        port: int = server.sockets[0].getsockname()[1]
        for name, used_gate in (("direct", None), ("with gate", gate)):
            await latency(port, used_gate)
            took = await latency(port, used_gate)
            rate = max([await throughput(port, used_gate) for _ in range(3)])
            p50, p99 = statistics.median(took), statistics.quantiles(took, n=100)[98]
            print(f"{name:12} first byte p50 {p50:.2f} ms, p99 {p99:.2f} ms; {rate:,.0f} MiB/s")
        start = time.perf_counter()
        for _ in range(1000):
            async with proxy.gate():
                pass
        print(f"{'a gate':12} opened and closed in {time.perf_counter() - start:.2f} ms")


if __name__ == "__main__":
    uvloop.run(main())
